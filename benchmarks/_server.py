"""A real server for benchmarks: granian over WSGI on a free port, SQLite or PostgreSQL (both synced), a folder or an S3 server, in a
temporary ENCORE_HOME, and the maintenance beside it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import services  # noqa: E402

SQLITE, POSTGRES = "sqlite", "postgres"
FOLDER, S3 = "folder", "s3"
_PREPARE = """
import django; django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from tracker.services import accounts
user = accounts.ensure_owner("bench") if hasattr(accounts, "ensure_owner") else accounts.create_user(username="bench", superuser=True)
print(accounts.create_token(user=user, name="bench", scopes=["api"])[1])
"""
_MAINTAIN = """
import sys, time, django; django.setup()
from tracker.services import compaction, summaries
pause = float(sys.argv[1])
while True:
    summaries.summarise_due()
    compaction.run_due()
    time.sleep(pause)
"""


@dataclass
class Server:
    url: str
    port: int
    token: str
    home: Path
    environment: dict[str, str]
    processes: list[subprocess.Popen] = field(default_factory=list)
    database: list[subprocess.Popen] = field(default_factory=list)

    def cpu_seconds(self) -> float:
        """Of all its processes and their children, PostgreSQL's too, so far."""
        total = 0.0
        for process in self.processes + self.database:
            with contextlib.suppress(psutil.NoSuchProcess):
                for one in [top := psutil.Process(process.pid), *top.children(recursive=True)]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        times = one.cpu_times()
                        total += times.user + times.system
        return total

    def request(self, method: str, path: str, body: bytes | dict | None = None, **headers: str) -> tuple[int, bytes]:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json", **headers}
        for attempt in (1, 2):  # the server closes what was idle
            if not hasattr(self, "_connection"):
                self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            try:
                self._connection.request(method, f"/api/v1/{path}", data, headers)
                answer = self._connection.getresponse()
                return answer.status, answer.read()
            except (ConnectionError, http.client.HTTPException):
                del self._connection
                if attempt == 2:
                    raise
        raise AssertionError

    def open_writer(self, run: str, writer: str, project: str = "bench", **more) -> None:
        now = time.time_ns() // 1000
        doc = {
            "format": 1, "writer": writer, "kind": "trainer", "run": {"id": run, "project": project, "name": "bench"}, "rank": 0,
            "world_size": 1, "host": "bench", "pid": 1, "started_us": now, "anchor_wall_us": now, "launch": {"kind": "python"}, **more,
        }  # fmt: skip
        status, answer = self.request("POST", "ingest/writers", doc)
        if status != 200:
            raise RuntimeError(f"the writer was not opened: {status} {answer[:500]!r}")

    def python(self, code: str, *arguments: str) -> str:
        """Run code beside the server, on its database."""
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=ROOT, env=self.environment, check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout.strip()


@contextlib.contextmanager
def server(maintenance: float | None = 1.0, threads: int = 32, *, database: str = SQLITE, store: str = FOLDER) -> Iterator[Server]:
    """``maintenance``: seconds between two rounds of summaries and compaction, None for none."""
    with contextlib.ExitStack() as stack:
        # Below /tmp and open to pass through: PostgreSQL runs as another user where this is root.
        folder = Path(tempfile.mkdtemp(prefix="encore-bench-services-", dir="/tmp"))
        folder.chmod(0o755)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        more, processes = {}, []
        if database == POSTGRES:
            more["DATABASE_URL"] = stack.enter_context(services.postgres(folder, is_durable=True))
            processes = [services.STARTED[-1]]
        if store == S3:
            bucket = stack.enter_context(services.s3(folder))
            more |= {f"ENCORE_S3_{name.upper()}": value for name, value in bucket.items()}
        yield from _serve(maintenance, threads, more, processes)


def _serve(maintenance: float | None, threads: int, more: dict[str, str], database: list[subprocess.Popen]) -> Iterator[Server]:
    home = Path(tempfile.mkdtemp(prefix="encore-bench-"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ENCORE_") and name != "DATABASE_URL"}
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    environment |= {
        "ENCORE_HOME": str(home), "ENCORE_URL": f"http://127.0.0.1:{port}", "DJANGO_SETTINGS_MODULE": "tracker.settings",
        "ENCORE_SECRET_KEY": secrets.token_hex(32), "ENCORE_LOG_LEVEL": "WARNING", **more,
    }  # fmt: skip
    found = Server(f"http://127.0.0.1:{port}", port, "", home, environment, database=database)
    try:
        found.token = found.python(_PREPARE)
        granian = [
            sys.executable,
            "-m",
            "granian",
            "--interface",
            "wsgi",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--http",
            "1",
            "--no-ws",
        ]
        found.processes.append(_start([*granian, "--workers", "1", "--blocking-threads", str(threads), "tracker.wsgi:application"], found))
        until = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if found.request("GET", "me")[0] == 200:
                    break
            if time.monotonic() > until or found.processes[0].poll() is not None:
                raise RuntimeError(f"the server did not start; its log:\n{(home / 'log').read_text()[-3000:]}")
            time.sleep(0.1)
        if maintenance is not None:
            found.processes.append(_start([sys.executable, "-c", _MAINTAIN, str(maintenance)], found))
        yield found
    finally:
        for process in found.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in found.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _start(argv: list[str], found: Server) -> subprocess.Popen:
    log = (found.home / "log").open("ab")
    return subprocess.Popen(argv, cwd=ROOT, env=found.environment, stdout=log, stderr=log, start_new_session=True)


def report(rows: list[dict], as_json: bool) -> int:
    """Print the rows; 1 if one missed its budget."""
    for row in rows:
        row.setdefault("beside", "")
        if as_json:
            print(json.dumps(row), flush=True)
        else:
            print(f"{'kept  ' if row['ok'] else 'MISSED'} {row['what']}: {row['value']} {row['unit']} (of {row['budget']}) {row['beside']}")
    return int(not all(row["ok"] for row in rows))
