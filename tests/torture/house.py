"""The real product and the means to kill its parts: `encore up`, senders of one journal, and the web process."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from sdk import _sender, _settings
from sdk._sender import adopt
from tests.e2e.conftest import Up
from tests.services import free_port

TORTURE = os.environ.get("ENCORE_TORTURE") == "1"
PATIENCE = 300.0  # all data is there so long after a fault has ended


def until(what: Callable[[], object], seconds: float = PATIENCE, every: float = 0.05) -> object:
    deadline = time.monotonic() + seconds
    while True:
        found = what()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(every)


def senders(folder: Path) -> list[int]:
    """Pids of the senders at work below a journal folder, by their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError, ValueError):
            argv = path.read_bytes().decode("utf-8", "replace").split("\0")
            if any(each.endswith("_sender/__main__.py") for each in argv) and any(each.startswith(str(folder)) for each in argv):
                found.append(int(path.parent.name))
    return found


def kill(pids: list[int]) -> int:
    killed = 0
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed += 1
    return killed


class House:
    """One `encore up`, with journals beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.up = Up(folder / "home")
        self.journal = folder / "journal"
        self.journal.mkdir()
        self.runs = 0

    @property
    def settings(self) -> _settings.Settings:
        return _settings.Settings(url=self.up.url, token=self.up.token, home=self.folder / "nobody", journal=self.journal)

    def environment(self, url: str | None = None, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ENCORE_", "PYTEST"))}
        kept |= {"ENCORE_URL": url or self.up.url, "ENCORE_TOKEN": self.up.token, "ENCORE_JOURNAL": str(self.journal)}
        kept |= {"ENCORE_SENDER_NICE": "0"}  # else a sender gets a sixtieth of a core beside the suite's other processes
        root = Path(__file__).resolve().parents[2]
        return kept | {"ENCORE_HOME": str(self.folder / "nobody"), "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"} | more

    def send(self, run: str) -> bool:
        return _sender.start(self.journal / run, self.settings)

    def history(self, run: str, key: str, rank: int = 0) -> list[list]:
        return self.up.get(f"runs/{run}/history?key={key}&rank={rank}")["points"]

    def state(self, run: str) -> str | None:
        with contextlib.suppress(OSError):
            return self.up.get(f"runs/{run}")["state"]
        return None

    def is_delivered(self, run: str) -> bool:
        """Whether the run's sender has said that all is over, after the last start, and has gone; one is started where none is at work."""
        if adopt.is_settled(self.journal / run):
            return not senders(self.journal / run)
        self.send(run)
        return False

    def close(self) -> None:
        kill(senders(self.journal))
        self.up.process.kill()  # an orderly end waits for the compaction of all this; its guard kills what it leaves
        self.up.process.wait()
        until(lambda: not self.up.everything(), 30)
        self.up.process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Web:
    """Another web process of the same house, as its supervisor starts it, that is killed without making the supervisor wait longer
    each time (its rule for a child that does not come up)."""

    def __init__(self, house: House) -> None:
        pid = house.up.children()["web"]
        self.argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
        pairs = (entry.partition("=") for entry in Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0"))
        self.env = {name: value for name, _, value in pairs if name and name != "ENCORE_CHILD"}
        self.port = free_port()
        self.argv[self.argv.index("--port") + 1] = str(self.port)
        self.log = house.folder / "web.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.argv, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0)
        assert until(self.healthy, 120), self.log.read_text()[-3000:]

    def healthy(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def kill(self) -> None:
        """The server and its worker, at once."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class Chaos:
    """Kills something again and again at random instants until it is told to stop."""

    def __init__(self, seed: int, between: tuple[float, float], act: Callable[[], int | bool]) -> None:
        self.count = 0
        self._over = threading.Event()
        self._chance, self._between, self._act = random.Random(seed), between, act
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._over.wait(self._chance.uniform(*self._between)):
            self.count += int(self._act())

    def stop(self) -> int:
        self._over.set()
        self._thread.join()
        return self.count
