"""The one place of the runner that starts processes.

``run`` is for helpers (the installer, the interpreter's version): a child in its own session, output read line by line.
``Program`` is for the recorded command: a **supervisor** (this very file, run as a script) stands between it and the worker. It is a
sub-reaper, so whatever the program leaves behind, however often it forked or made sessions, becomes the supervisor's child and dies
with it; and it holds a pipe from the worker, so the tree also dies when the worker is killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import contextlib

from runner import mounts

PR_SET_CHILD_SUBREAPER = 36
TAIL_BYTES = 64 * 1024
BARE = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH")
"""What of the worker's environment a helper gets; never ENCORE_*, never tokens."""


@dataclass(frozen=True)
class Completed:
    returncode: int
    output: str
    """stdout and stderr together, the last 64 KiB."""


def bare_environment(**more: str) -> dict[str, str]:
    return {name: os.environ[name] for name in BARE if name in os.environ} | more


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    cwd: Path | None = None,
    input: str | None = None,
    stop: threading.Event | None = None,
    seconds: float = 3600,
    on_line: Callable[[str], None] | None = None,
    stderr: bool = True,
) -> Completed:
    """Runs to the end. Killed, with all its process group, when ``stop`` is set or ``seconds`` have passed (returncode -9 then)."""
    process = subprocess.Popen(
        [str(part) for part in command],
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if stderr else subprocess.DEVNULL,
        start_new_session=True,
        text=True,
        errors="replace",
    )
    kept: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        size = 0
        for line in process.stdout:
            kept.append(line)
            size += len(line)
            while size > TAIL_BYTES and len(kept) > 1:
                size -= len(kept.pop(0))
            if on_line:
                on_line(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    if input is not None:
        assert process.stdin is not None
        try:
            process.stdin.write(input)
            process.stdin.close()
        except BrokenPipeError:
            pass
    end = time.monotonic() + seconds
    while True:
        try:
            process.wait(timeout=0.1)
            break
        except subprocess.TimeoutExpired:
            if (stop and stop.is_set()) or time.monotonic() > end:
                _kill_group(process.pid)
    reader.join(timeout=5)
    return Completed(process.returncode, "".join(kept))


def start_quietly(command: Sequence[str | Path], *, env: Mapping[str, str], log: Path, cwd: Path | None = None) -> subprocess.Popen:
    """A helper that nobody waits for, its output in ``log``. It leads its own session."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [str(part) for part in command],
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Ended:
    exit_code: int | None
    signal: int | None
    seconds: float
    error: str | None
    """Why it could not even be started; None if it was."""


GRACE_SECONDS = 5.0


class Program:
    """The recorded command under its supervisor."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        output: Path,
        view: dict[str, Any] | None = None,
        affinity: Sequence[int] | None = None,
        grace_seconds: float | None = None,
    ):
        """``view``: a plan for ``mounts.enter``. ``affinity``: CPUs to run on. ``output`` takes stdout and stderr.

        ``grace_seconds``: from SIGTERM to SIGKILL; GRACE_SECONDS unless said.
        """
        spec = {
            "command": list(command),
            "env": dict(env),
            "cwd": cwd,
            "output": str(output),
            "view": view,
            "affinity": list(affinity) if affinity else None,
            "grace_seconds": GRACE_SECONDS if grace_seconds is None else grace_seconds,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(Path(__file__).resolve()), "supervise"],
            env=bare_environment(),
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(spec).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its end says why

    @property
    def supervisor_pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """Ends the whole tree; returns at once. The supervisor reads the end of its pipe as the order to do so."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def wait(self, seconds: float) -> Ended | None:
        """How it ended, or None if it still runs after ``seconds``."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.kill()
        told = self._process.stdout.read()
        try:
            return Ended(**json.loads(told))
        except (ValueError, TypeError):
            error = self._process.stderr.read().decode(errors="replace").strip()[-2000:]
            return Ended(None, None, 0.0, f"the supervisor ended with {self._process.returncode}: {error}")


# The supervisor: from here on, code that runs in a process of its own.


def supervise() -> int:
    import psutil  # noqa: F401  # now, while the worker's own file system is in sight

    spec = json.loads(sys.stdin.buffer.readline())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    output = os.open(spec["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    if spec["view"]:
        try:
            mounts.enter(spec["view"])
        except OSError as error:
            return _tell(None, None, 0.0, f"the view of the file system could not be made: {error}")
    started = time.monotonic()
    failed_read, failed_write = os.pipe()
    main = os.fork()
    if main == 0:
        _become(spec, output, failed_write)
    os.close(failed_write)
    os.close(output)
    with os.fdopen(failed_read, "rb") as pipe:
        if why := pipe.read():
            os.waitpid(main, 0)
            return _tell(None, None, 0.0, why.decode(errors="replace"))
    status = _watch(main, spec["grace_seconds"])
    seconds = time.monotonic() - started
    if os.WIFSIGNALED(status):
        return _tell(None, os.WTERMSIG(status), seconds, None)
    return _tell(os.WEXITSTATUS(status), None, seconds, None)


def _tell(exit_code: int | None, number: int | None, seconds: float, error: str | None) -> int:
    sys.stdout.write(json.dumps({"exit_code": exit_code, "signal": number, "seconds": round(seconds, 3), "error": error}))
    sys.stdout.flush()
    return 0


def _become(spec: dict[str, Any], output: int, failed: int) -> None:
    """In the child: turn into the program, or say why not."""
    try:
        os.setsid()
        for number in range(1, signal.NSIG):
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                with contextlib.suppress(OSError, ValueError):
                    signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if spec["affinity"] and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, spec["affinity"])
        os.chdir(spec["cwd"])
        for descriptor in range(3, 256):
            if descriptor != failed:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        os.set_inheritable(failed, False)
        os.execve(spec["command"][0], spec["command"], spec["env"])  # noqa: S606
    except BaseException as error:
        os.write(failed, f"{spec['command'][0]} could not be started: {error}".encode())
        os._exit(127)


def _watch(main: int, grace_seconds: float) -> int:
    """Until the program has ended and nothing of its tree is left; returns its wait status."""
    status: int | None = None
    kill_at: float | None = None
    asked = False
    while True:
        while True:  # as sub-reaper we also get what the program left behind
            try:
                pid, state = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return status if status is not None else 9
            if pid == 0:
                break
            if pid == main:
                status = state
        now = time.monotonic()
        if status is not None and kill_at is None:
            kill_at = now + min(grace_seconds, 2)  # stragglers of a program that ended by itself
        if kill_at is not None and now >= kill_at:
            _signal_all(signal.SIGKILL)
        ready, _, _ = select.select([] if asked else [sys.stdin], [], [], 0.05)
        if ready and not os.read(0, 4096):
            asked = True  # the worker asks for the end, or is gone
            _signal_all(signal.SIGTERM)
            kill_at = min(kill_at or now + grace_seconds, now + grace_seconds)


def _signal_all(number: int) -> None:
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


if __name__ == "__main__":
    sys.exit(supervise())
