"""Starts the processes of the embedded mode, starts again those that die, and stops them all, in order, when told.

Every child is the leader of a process group of its own (a Ctrl-C in the terminal reaches the supervisor alone, which stops them in
order), dies with the supervisor (PDEATHSIG on Linux), and carries ``ENCORE_CHILD=<start>:<name>`` in its environment. By that mark its
own children are found again after any death, even those that left the group: no orphan keeps a port, a GPU or a socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MARK = "ENCORE_CHILD"
ROTATE_BYTES = 10 * 2**20
KEEP_LOGS = 3
STEADY_SECONDS = 30.0
"""A child that lived so long starts again at once; one that dies sooner waits twice as long each time."""
LONGEST_PAUSE_SECONDS = 30.0


@dataclass
class Child:
    name: str
    argv: list[str]
    env: dict[str, str]
    ready: Callable[[], bool]
    stage: int
    """Stages are stopped from the highest down, the children of one stage together."""
    stop_seconds: float = 10.0
    process: subprocess.Popen[bytes] | None = None
    deaths: int = 0
    started: float = 0.0
    again_at: float = 0.0
    shown: int = field(default=0, repr=False)


def marked(mark: str) -> list[psutil.Process]:
    """The living processes whose environment says ``ENCORE_CHILD=<mark>`` or ``<mark>:…``, whoever their parent is now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            value = process.environ().get(MARK, "")
            if process.pid != os.getpid() and (value == mark or value.startswith(mark + ":")):
                found.append(process)
    return found


def sweep(mark: str, seconds: float = 5.0) -> int:
    """Kill what carries the mark until nothing does; the number killed. Repeats, since a dying tree can still fork."""
    killed, until = 0, time.monotonic() + seconds
    while (left := [p for p in marked(mark) if p.status() != psutil.STATUS_ZOMBIE]) and time.monotonic() < until:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
                killed += 1
        psutil.wait_procs(left, timeout=1)
    return killed


def rotate(path: Path) -> None:
    """``web.log`` → ``web.log.1`` → … once it is large; called before a child opens it."""
    if not path.exists() or path.stat().st_size < ROTATE_BYTES:
        return
    for number in range(KEEP_LOGS - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{number + 1}"))
    path.replace(path.with_name(f"{path.name}.1"))


def _die_with(parent: int) -> Callable[[], None]:
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def after_fork() -> None:
        if prctl is not None:
            prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died between fork and prctl
            os._exit(1)

    return after_fork


class Supervisor:
    """``run()`` returns 0 after a stop that was asked for, 1 when a child cannot be brought up."""

    def __init__(self, folder: Path, logs: Path, *, verbose: bool, say: Callable[[str], None]) -> None:
        self.id = secrets.token_hex(8)
        self.folder, self.logs, self.verbose, self.say = folder, logs, verbose, say
        self.children: list[Child] = []
        self.stopping = 0
        self.record = folder / "processes.json"
        self._wake, self._wake_write = os.pipe()
        for end in (self._wake, self._wake_write):
            os.set_blocking(end, False)

    # -- the record and the guard: what a supervisor that was killed leaves behind --------------------------------------------

    def recover(self) -> int:
        """Kill what an earlier supervisor of this folder left when it was killed itself. The caller holds the folder's lock."""
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
            return sweep(json.loads(self.record.read_text())["id"])
        return 0

    def write_record(self, **more: object) -> None:
        children = [
            {"name": c.name, "pid": c.process.pid, "started": c.started} for c in self.children if c.process and c.process.poll() is None
        ]
        me = psutil.Process()
        document = {"id": self.id, "pid": me.pid, "started": me.create_time(), "children": children, **more}
        aside = self.record.with_suffix(".new")
        aside.write_text(json.dumps(document))
        aside.replace(self.record)
        self._more = more

    def guard(self, *, close: Iterable[int] = ()) -> None:
        """Fork a process that does nothing until we are gone, however that happens, and then kills what carries our mark.

        PDEATHSIG reaches the children; their own children (the web server's worker, a pool's processes) are found by the guard.
        """
        read, write = os.pipe()
        if os.fork():
            os.close(read)
            self._guard_pipe = write  # the system closes it when we die
            return
        try:
            os.setsid()
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(signum, signal.SIG_IGN)
            for descriptor in (write, *close):
                os.close(descriptor)
            null = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):  # a pipe that somebody reads must end when we do
                os.dup2(null, standard)
            while os.read(read, 1):
                pass
            sweep(self.id, seconds=20)
        finally:
            os._exit(0)

    # -- life -----------------------------------------------------------------------------------------------------------------

    def start(self, child: Child) -> None:
        path = self.logs / f"{child.name}.log"
        rotate(path)
        with path.open("ab") as log:
            child.shown = log.tell()
            child.process = subprocess.Popen(
                child.argv,
                env={**child.env, MARK: f"{self.id}:{child.name}"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=_die_with(os.getpid()),
            )
        child.started = time.time()

    def add(self, child: Child) -> None:
        self.children.append(child)
        self.start(child)

    def wait_ready(self, child: Child, seconds: float) -> bool:
        """False when the child has died three times, or is not ready in time, or a stop was asked for."""
        until = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < until:
            if child.process is not None and child.process.poll() is None and child.ready():
                return True
            self.tend()
            if child.deaths >= 3:
                return False
            self.pause(0.05)
        return False

    def tend(self) -> None:
        """Start again what died, each after its pause."""
        for child in self.children:
            if child.process is None:
                if time.monotonic() >= child.again_at:
                    self.start(child)
                    self.write_record(**self._more)
            elif (status := child.process.poll()) is not None:
                sweep(f"{self.id}:{child.name}")  # its own children hold its port
                child.deaths = 1 if time.time() - child.started > STEADY_SECONDS else child.deaths + 1
                pause = 0.0 if child.deaths == 1 else min(LONGEST_PAUSE_SECONDS, 0.25 * 2**child.deaths)
                child.process, child.again_at = None, time.monotonic() + pause
                why = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
                self.say(f"{child.name} {why}; starting it again" + (f" in {pause:g} s" if pause else ""))
            if self.verbose:
                self.show(child)

    def show(self, child: Child) -> None:
        with contextlib.suppress(OSError), (self.logs / f"{child.name}.log").open("rb") as log:
            log.seek(child.shown)
            whole, newline, _ = log.read(2**20).rpartition(b"\n")
            child.shown += len(whole) + len(newline)
            for line in whole.decode(errors="replace").splitlines():
                self.say(f"{child.name} | {line}")

    def tail(self, child: Child, lines: int = 20) -> str:
        with contextlib.suppress(OSError):
            return "\n".join((self.logs / f"{child.name}.log").read_text(errors="replace").splitlines()[-lines:])
        return ""

    def pause(self, seconds: float) -> None:
        with contextlib.suppress(InterruptedError, BlockingIOError):
            if select.select([self._wake], [], [], seconds)[0]:
                os.read(self._wake, 512)

    def handle_signals(self) -> None:
        def stop(signum: int, frame: object) -> None:
            self.stopping += 1

        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, stop)

    def run(self) -> int:
        while not self.stopping:
            self.tend()
            self.pause(0.25)
        return 0

    def stop(self) -> None:
        """Each stage gets its time to end by itself; another Ctrl-C ends the patience. Nothing of ours lives afterwards."""
        patience = self.stopping
        for stage in sorted({c.stage for c in self.children}, reverse=True):
            living = [(c, c.process) for c in self.children if c.stage == stage and c.process is not None]
            for _, process in living:
                if process.poll() is None:
                    process.terminate()
            until = time.monotonic() + max([c.stop_seconds for c, _ in living], default=0)
            while self.stopping <= patience and time.monotonic() < until and any(p.poll() is None for _, p in living):
                self.pause(0.05)
            for child, process in living:
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                sweep(f"{self.id}:{child.name}")
        sweep(self.id)
        self.record.unlink(missing_ok=True)
