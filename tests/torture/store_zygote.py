"""One warm process that forks the web server and the maintenance, so that a killed one is back in a tenth of a second.

    python store_zygote.py

Reads one JSON a line: `{"do": "web", "port"}`, `{"do": "maintain", "pause"}`, `{"do": "audit", …}`; each may have `"skew"`, seconds by
which the process's clock is wrong. Answers `{"pid"}`, for the audit its result. The server is granian with one worker, as in service.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tracker.settings")
os.register_at_fork(after_in_child=lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL))  # dies with what forked it

import django  # noqa: E402

django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import connections  # noqa: E402
from django.test import Client  # noqa: E402
from django.utils import timezone  # noqa: E402

import tracker.wsgi  # noqa: E402, F401 - imported before the fork
from tests.torture import store_audit  # noqa: E402
from tracker.services import accounts, compaction, merging, summaries  # noqa: E402
from tracker.store import blocks  # noqa: E402, F401


def prepare() -> str:
    call_command("migrate", verbosity=0)
    token = accounts.create_token(user=accounts.create_user(username="torture", superuser=True), name="torture", scopes=["api"])[1]
    for path in ("/healthz", "/api/v1/me", f"/api/v1/runs/{'a' * 26}/history?key=x"):  # imports what a first request does
        Client().get(path, headers={"authorization": f"Bearer {token}", "host": "127.0.0.1"})
    connections.close_all()  # no handle may be shared with a child
    return token


def skew(seconds: float) -> None:
    """The clock of this process is wrong by so much from now on."""
    real = timezone.now
    timezone.now = lambda: real() + timedelta(seconds=seconds)
    real_time = time.time
    time.time = lambda: real_time() + seconds


def serve(port: int) -> None:
    from granian.constants import HTTPModes, Interfaces
    from granian.server import Server

    Server(
        "tracker.wsgi:application", address="127.0.0.1", port=port, interface=Interfaces.WSGI, http=HTTPModes.http1, websockets=False,
        workers=1, blocking_threads=8, log_enabled=False,
    ).serve()  # fmt: skip


def hurried() -> None:
    """Triggers that come after moments instead of minutes; a reader is given a second to find its objects."""
    compaction.SMALL_BYTES, compaction.SEGMENTS, compaction.BYTES, compaction.SECONDS = 4096, 8, 65536, 1
    merging.TRASH = timedelta(seconds=1)
    merging.FAN, merging.QUIET = 4, timedelta(seconds=1)
    merging.FULL_ROWS, merging.FULL_POINTS = 5000, 10_000


def maintain(pause: float) -> None:
    """What tracker/tasks.py does, without a pause to speak of. A round that fails (the database or the store is away) is tried again."""
    hurried()
    chance = random.Random()
    while True:
        for act in (summaries.summarise_due, compaction.run_due, merging.merge_due, compaction.sweep_trash, sweep_orphans):
            try:
                act()
            except Exception:
                traceback.print_exc()
                connections.close_all()
                time.sleep(0.05)
        time.sleep(pause * chance.random())


def sweep_orphans() -> None:
    if random.random() < 0.2:
        compaction.sweep_orphans()


def main() -> None:
    ctypes.CDLL(None).prctl(36, 1)  # what a killed server leaves behind is reaped here (PR_SET_CHILD_SUBREAPER)
    token = prepare()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing but answers goes that way
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    print(json.dumps({"token": token}), file=out, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "audit":
            source, sink = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.setpgid(0, 0)
                if order.get("skew"):
                    skew(order["skew"])
                if order["do"] == "web":
                    serve(order["port"])
                elif order["do"] == "maintain":
                    maintain(order["pause"])
                else:
                    hurried()
                    answer = store_audit.audit(order)
                    with os.fdopen(sink, "w") as pipe:
                        json.dump(answer, pipe)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        answer = {"pid": child}
        if order["do"] == "audit":
            os.close(sink)
            with os.fdopen(source) as pipe:
                text = pipe.read()
            answer = json.loads(text) if text else {"failed": True}
        print(json.dumps(answer), file=out, flush=True)


def _reap() -> None:
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return


if __name__ == "__main__":
    main()
