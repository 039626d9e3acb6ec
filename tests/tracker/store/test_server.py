"""The whole way over HTTP with a real server: named errors for every wrong body, and nothing lost or doubled when it is killed."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.tracker.store import wire_writer as write
from tracker.domain.ids import new_id

ROOT = Path(__file__).parents[3]
KILLS = int(os.environ.get("ENCORE_TEST_KILLS", "4"))


class Server:
    """granian on a port of its own, on a database of its own; can be killed and started again."""

    def __init__(self, home: Path, database: str | None) -> None:
        self.home, self.process = home, None
        with socket.socket() as trial:
            trial.bind(("127.0.0.1", 0))
            self.port = trial.getsockname()[1]
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("ENCORE_") and name != "DATABASE_URL"}
        self.environment |= {"ENCORE_HOME": str(home), "ENCORE_SECRET_KEY": "x" * 50, "DJANGO_SETTINGS_MODULE": "tracker.settings"}
        if database:
            self.environment["DATABASE_URL"] = database
        self.token = self.python(
            "import django; django.setup()\nfrom django.core.management import call_command as c\nc('migrate', verbosity=0)\n"
            "from tracker.services import accounts as a\nu = a.create_user(username='kill', superuser=True)\n"
            "print(a.create_token(user=u, name='t', scopes=['api'])[1])"
        )
        self.start()

    def python(self, code: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, check=True, text=True
        )
        return done.stdout.strip()

    def start(self) -> None:
        argv = [
            sys.executable,
            "-m",
            "granian",
            "--interface",
            "wsgi",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--no-ws",
            "--workers",
            "1",
        ]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*argv, "--blocking-threads", "8", "tracker.wsgi:application"],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + 120
        while True:
            with suppress(OSError, http.client.HTTPException):
                if self.request("GET", "me")[0] == 200:
                    return
            assert time.monotonic() < until, (self.home / "log").read_text()[-3000:]
            time.sleep(0.05)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(
                method, f"/api/v1/{path}", body, {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json", **headers}
            )
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        finally:
            connection.close()

    def open_writer(self) -> tuple[str, str]:
        run, writer = new_id(), new_id()
        doc = {
            "format": 1,
            "writer": writer,
            "kind": "trainer",
            "run": {"id": run, "project": "kill", "name": "k"},
            "rank": 0,
            "world_size": 1,
            "host": "h",
            "pid": 1,
            "started_us": 1,
            "anchor_wall_us": 1,
            "launch": {"kind": "python"},
        }
        assert self.request("POST", "ingest/writers", json.dumps(doc).encode())[0] == 200
        return run, writer


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    database = None
    if os.environ.get("DATABASE_URL"):
        import psycopg

        name = f"encore_kill_{os.getpid()}"
        base = os.environ["DATABASE_URL"]
        with psycopg.connect(base, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}")
        database = base.rsplit("/", 1)[0] + "/" + name
    found = Server(tmp_path_factory.mktemp("server"), database)
    yield found
    found.kill()
    if database:
        with psycopg.connect(base, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_wrong_requests_get_the_one_error_shape(server):
    """Past Django's own request handling every error still has its status, code and message."""
    run, writer = server.open_writer()
    path = f"ingest/writers/{writer}/batches"
    body = write.simple(run, writer, 0, [1.0])
    cases = [
        (("POST", path, b""), 422, "malformed"),
        (("POST", path, b"x" * 100), 422, "malformed"),
        (("POST", f"ingest/writers/{new_id()}/batches", body), 404, "writer_unknown"),
        (("POST", "ingest/writers/nonsense/batches", body), 404, "writer_unknown"),
        (("POST", path, bytes(4 * 2**20 + 1)), 413, "too_large"),
        (("POST", path, write.simple(run, writer, 5, [1.0])), 409, "range"),
        (("GET", path), 405, "method_not_allowed"),
    ]
    for request, status, code in cases:
        found, answer = server.request(*request)
        assert (found, answer["code"], bool(answer["message"])) == (status, code, True)
    assert server.request("POST", path, body, Authorization="Bearer enc_wrong")[0] == 401
    assert server.request("POST", path, body, **{"Content-Encoding": "br"})[1]["code"] == "encoding"
    bomb = write.deflate(bytes(65 * 2**20))
    assert server.request("POST", path, bomb, **{"Content-Encoding": "deflate"})[0] == 413
    assert server.request("POST", path, write.deflate(body), **{"Content-Encoding": "deflate"}) == (
        200,
        {"next": 1, "stop": False, "state": "running"},
    )


def test_nothing_is_lost_or_doubled_when_the_server_is_killed(server):
    """Killed a few dozen times amid batches, the server has every acknowledged record and each record once."""
    writers = [server.open_writer() for _ in range(3)]
    over = threading.Event()
    acknowledged = [0, 0, 0]
    problems: list[BaseException] = []

    def send(at: int) -> None:
        run, writer = writers[at]
        draw, next_ = random.Random(at), 0
        while not over.is_set() or next_ == 0:
            values = [float(n) for n in range(next_, next_ + draw.randrange(1, 30))]
            try:
                status, answer = server.request("POST", f"ingest/writers/{writer}/batches", write.simple(run, writer, next_, values))
            except (OSError, http.client.HTTPException):
                time.sleep(0.01)
                continue
            if status == 200:
                assert answer["next"] >= acknowledged[at]
                next_ = acknowledged[at] = answer["next"]
            elif status == 409:
                next_ = answer["fields"]["next"]
                assert next_ >= acknowledged[at]
            elif status not in (429, 503):
                problems.append(AssertionError((status, answer)))
                return

    threads = [threading.Thread(target=send, args=(at,)) for at in range(3)]
    for thread in threads:
        thread.start()
    draw = random.Random(7)
    for _ in range(KILLS):
        before = sum(acknowledged)
        until = time.monotonic() + 60
        while sum(acknowledged) == before and not problems and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.05)  # at any moment of a batch
        server.kill()
        server.start()
    over.set()
    for thread in threads:
        thread.join()
    assert problems == []
    code = (
        "import sys, django; django.setup()\nfrom tracker.store import reading\nfrom tracker.services import compaction\n"
        "for turn in range(2):\n"
        " c = reading.history([sys.argv[1]], ['loss'])[0]\n"
        " assert c.records.tolist() == list(range(len(c.records))) and c.values.tolist() == [float(n) for n in c.records]\n"
        " print(len(c.records)); reading.forget(); compaction.compact_run(sys.argv[1], force=True)"
    )
    for (run, _), count in zip(writers, acknowledged, strict=True):
        before, after = map(int, server.python(code, run).split())
        assert before == after
        assert before >= count
