"""The server's side of the store's torture: web processes, maintenance, a database and a store, each of which can be killed alone."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

from tests.services import free_port
from tests.torture.house import until

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
PROCESSES = 2  # of web, and as many of maintenance


class StoreHouse:
    """`database` None is SQLite below `folder`; `s3` None is the folder store there. All its processes share both."""

    def __init__(self, folder: Path, database: str | None = None, s3: dict[str, str] | None = None) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ENCORE_", "PYTEST", "DJANGO_", "DATABASE_URL"))}
        self.environment = kept | {
            "ENCORE_HOME": str(self.home), "ENCORE_SECRET_KEY": secrets.token_hex(32), "DJANGO_SETTINGS_MODULE": "tracker.settings",
            "ENCORE_LOG_LEVEL": "WARNING", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        if database:
            self.environment["DATABASE_URL"] = database
        if s3:
            self.environment |= {f"ENCORE_S3_{name.upper()}": value for name, value in s3.items()}
        self.log = folder / "server.log"
        with self.log.open("ab") as log:
            self.zygote = subprocess.Popen(
                [sys.executable, str(HERE / "store_zygote.py")], env=self.environment, cwd=ROOT, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, text=True, process_group=0,
            )  # fmt: skip
        self._lock = threading.Lock()
        self.token = self._told()["token"]
        self.ports = [free_port() for _ in range(PROCESSES)]
        self.webs: dict[int, int] = {}  # port -> pid
        self.maintainers: list[int] = []
        for port in self.ports:
            self.start_web(port)
        for _ in range(PROCESSES):
            self.start_maintenance()

    def _told(self) -> dict:
        line = self.zygote.stdout.readline()
        assert line, f"the server's mother died:\n{self.said()}"
        return json.loads(line)

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def order(self, **what) -> dict:
        with self._lock:
            self.zygote.stdin.write(json.dumps(what) + "\n")
            self.zygote.stdin.flush()
            return self._told()

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    def start_web(self, port: int, skew: float = 0, wait: bool = True) -> None:
        self.webs[port] = self.order(do="web", port=port, skew=skew)["pid"]
        assert not wait or until(lambda: self.healthy(port), 120, 0.01), self.said()

    def healthy(self, port: int) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def start_maintenance(self, skew: float = 0) -> None:
        self.maintainers.append(self.order(do="maintain", pause=0.03, skew=skew)["pid"])

    def kill_web(self, chance: random.Random, skews: tuple[float, ...] = (0,)) -> int:
        """One of them, server and worker in one instant, and another in its place. 1, the number of kills."""
        port = chance.choice(self.ports)
        end_group(self.webs[port])
        self.start_web(port, chance.choice(skews))
        return 1

    def kill_maintenance(self, chance: random.Random, skews: tuple[float, ...] = (0,)) -> int:
        place = chance.randrange(len(self.maintainers))
        end_group(self.maintainers.pop(place))
        self.start_maintenance(chance.choice(skews))
        return 1

    def stop_maintenance(self) -> None:
        while self.maintainers:
            end_group(self.maintainers.pop())

    def close(self) -> None:
        self.stop_maintenance()
        for pid in self.webs.values():
            end_group(pid)
        self.zygote.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.zygote.wait(10)
        end_group(self.zygote.pid)
        self.zygote.wait()
        self.zygote.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def end_group(pid: int) -> None:
    """SIGKILL for a process and all it started, and back when none of them runs any more."""

    def is_gone() -> bool:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
            return False
        return True

    until(is_gone, 60, 0.001)
