"""The real product: ``encore up`` on a folder and port of its own, driven as a user would."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
ENCORE = Path(sys.executable).with_name("encore")
PATIENCE = 300.0


def clean_environment(**more: str) -> dict[str, str]:
    """Without what this machine or the suite says about Encore."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ENCORE_", "DATABASE_URL", "DJANGO_"))}
    return {**kept, "ENCORE_SENDER_NICE": "0", **more}  # else a sender gets a sixtieth of a core beside the suite's other processes


def poll(question: Callable[[], object], seconds: float = PATIENCE, what: str = "") -> object:
    """The first true answer; fails after ``seconds``."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if answer := question():
            return answer
        time.sleep(0.1)
    pytest.fail(f"not within {seconds:.0f} s: {what or question}")


class Up:
    """One ``encore up --json``."""

    def __init__(self, home: Path, *arguments: str, port: int = 0, **environment: str) -> None:
        self.home = home
        self.errors = home.with_name(home.name + ".stderr")
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [str(ENCORE), "up", "--json", "--home", str(home), "--port", str(port), *arguments],
                stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL, text=True, process_group=0,
                env=clean_environment(**environment),
            )  # fmt: skip
        line = self.process.stdout.readline()
        assert line, f"encore up said nothing (status {self.process.wait()}):\n{self.said()}"
        self.access = json.loads(line)
        self.url, self.token, self.login_url = self.access["url"], self.access["token"], self.access["login_url"]
        self.port = int(self.url.rsplit(":", 1)[1])

    def said(self) -> str:
        return self.errors.read_text(errors="replace")

    def children(self) -> dict[str, int]:
        with contextlib.suppress(OSError, ValueError):
            return {child["name"]: child["pid"] for child in json.loads((self.home / "run" / "processes.json").read_text())["children"]}
        return {}

    def healthy(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/healthz", timeout=2) as answer:
            return answer.status == 200
        return False

    def get(self, path: str) -> dict:
        request = urllib.request.Request(f"{self.url}/api/v1/{path}", headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def everything(self) -> list[psutil.Process]:
        """All living processes of this Encore, found by its data folder in their environment or command line."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                alive = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
                if alive and (process.environ().get("ENCORE_HOME") == str(self.home) or str(self.home) in process.cmdline()):
                    found.append(process)
        return found

    def stop(self, signum: int = signal.SIGINT, seconds: float = 60) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(seconds)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A short path, so that a unix socket fits below it; not the suite's folder, whose name may be long."""
    folder = Path(tempfile.mkdtemp(prefix="encore-e2e-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start(scratch: Path) -> Iterator[Callable[..., Up]]:
    running: list[Up] = []

    def starter(home: Path | None = None, *arguments: str, **more) -> Up:
        running.append(Up(home or scratch / "home", *arguments, **more))
        return running[-1]

    yield starter
    for up in running:
        if up.process.poll() is None:
            up.stop()
        up.process.stdout.close()
