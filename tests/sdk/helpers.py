"""Programs run as users run them, and waiting without sleeping blindly."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server import Server

ROOT = Path(__file__).resolve().parents[2]


def until(what: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Waits for a true value; the last one is returned either way."""
    deadline = time.monotonic() + seconds
    while True:
        found = what()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


class Shop:
    """Runs programs in an environment of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.work = folder / "work"
        self.home.mkdir()
        self.work.mkdir()
        self.started: list[subprocess.Popen[str]] = []

    @property
    def journal(self) -> Path:
        return self.home / "sdk"

    def environment(self, server: Server | None = None, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ENCORE_", "PYTEST", "COV_"))}
        kept |= {
            "ENCORE_HOME": str(self.home),
            "ENCORE_LOCAL": str(self.folder / "local"),
            "HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "ENCORE_SENDER_NICE": "0",  # else it gets a sixtieth of a core beside the suite's other processes
        }
        if server is not None:
            kept |= {"ENCORE_URL": server.url, "ENCORE_TOKEN": "secret-token-of-ada"}
        return kept | more

    def start(
        self, program: str, server: Server | None = None, *, cwd: Path | None = None, arguments: tuple[str, ...] = (), **env: str
    ) -> subprocess.Popen[str]:
        script, text = self.work / "train.py", textwrap.dedent(program)
        if not script.exists() or script.read_text() != text:  # an earlier rank may be about to read it: it must never find it empty
            script.write_text(text)
        process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=self.environment(server, **env),
            cwd=cwd or self.work,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, program: str, server: Server | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        process = self.start(program, server, **options)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def encore(self, *arguments: str, server: Server | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "import sys; from sdk._cli import main; sys.exit(main())", *arguments]
        return subprocess.run(command, env=self.environment(server, **env), cwd=self.work, capture_output=True, text=True, timeout=120)

    def writers(self, kind: str = "trainer") -> list[Path]:
        import json

        found = sorted(self.journal.glob("*/*/writer.json"))
        return [path.parent for path in found if json.loads(path.read_text())["kind"] == kind]

    def close(self) -> None:
        """Ends what a test left behind: its programs, and the senders of its journals, which would wait a day for a server that is gone."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError, ValueError):
                argv = path.read_bytes().decode("utf-8", "replace").split("\0")
                if any(each.endswith("_sender/__main__.py") for each in argv) and any(each.startswith(f"{self.folder}/") for each in argv):
                    os.kill(int(path.parent.name), 9)

    def senders(self) -> list[int]:
        """Pids of the senders at work on this home's journals, by their own status files."""
        import json

        found = []
        for path in self.journal.glob("*/sender.json"):
            try:
                pid = int(json.loads(path.read_text())["pid"])
                if str(self.home) in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(pid)
            except (OSError, ValueError, KeyError):
                continue
        return found
