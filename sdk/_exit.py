"""How the process ends, told without changing how it ends.

- an unhandled exception: Python leaves it in sys.last_value before atexit runs; nothing is hooked.
- sys.exit(n): noted on the way through. A bare `raise SystemExit(n)` has no such way; it shows in the bottom frame, and the status is
  then written by libc itself (on_exit), for the sender to read.
- SIGTERM, SIGHUP with default disposition: faulthandler's C-level handler leaves a mark and passes the signal on to the default
  action, so the process dies as fast and with the same status as ever, also inside a long C call; Python's own view of the handlers
  does not change.
- SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL: faulthandler writes all threads' stacks into the writer's folder and raises the signal again,
  so status and core file are as ever. Only where nobody has taken these signals: a Java machine or Julia in the process lives by them,
  and who has enabled faulthandler wants its output elsewhere.
- an exception that ends a thread: told as an event; the program goes on, as ever.
- os._exit, SIGKILL: nothing can be told; the sender sees the process gone.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dis
import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import _secrets
from ._plain import text

MARKED = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
CRASHES = tuple(getattr(signal, name) for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL") if hasattr(signal, name))
MAX_TRACEBACK = 32_000
MAX_THREAD_ERRORS = 20
HIGH_FD = 900  # below the usual limit of 1,024, above what programs reach

_installed = False
_at_exit: Callable[[], None] | None = None
_bottom: Any = None
_asked: int | None = None
_original_exit: Any = None
_marks: dict[int, Any] = {}
_crash_file: Any = None
_tell_thread: Callable[[dict[str, Any]], None] | None = None
_thread_errors = 0


def install(at_exit: Callable[[], None], thread_died: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Once a process. thread_died: gets type, message and thread of an exception that ended a thread."""
    global _installed, _at_exit, _bottom, _original_exit, _tell_thread
    _at_exit, _tell_thread = at_exit, thread_died
    if _installed:
        return
    _installed = True
    atexit.register(_ended)
    import threading  # at the first run, not at import

    if threading.current_thread() is threading.main_thread():
        frame: Any = sys._getframe()
        while frame.f_back is not None:
            frame = frame.f_back
        _bottom = frame
    _original_exit = sys.exit

    sys.exit = _exit
    previous = threading.excepthook

    def excepthook(args: Any, /) -> Any:
        _thread_died(args)
        return previous(args)

    threading.excepthook = excepthook


def _exit(status: Any = None, /) -> Any:
    """Exit the interpreter by raising SystemExit(status)."""
    global _asked
    _asked = exit_code(status)
    return _original_exit(status)


# So that it can be handed to a spawned process, as the original can: pickle finds it as sys.exit.
_exit.__module__, _exit.__name__, _exit.__qualname__ = "sys", "exit", "exit"


def _ended() -> None:
    if _at_exit is not None:
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C while the last records go over: the waiting ends, the status stays
            _at_exit()


def _thread_died(args: Any) -> None:
    global _thread_errors
    if _tell_thread is None or _thread_errors >= MAX_THREAD_ERRORS or args.exc_value is None or args.exc_type is SystemExit:
        return
    _thread_errors += 1
    with contextlib.suppress(Exception):
        _tell_thread({**error_of(args.exc_value), "thread": str(getattr(args.thread, "name", None))})


def exit_code(status: Any) -> int:
    if status is None:
        return 0
    return status & 0xFF if isinstance(status, int) else 1


def error_of(error: BaseException) -> dict[str, Any]:
    """Type, message, traceback; masked."""
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    if len(lines) > MAX_TRACEBACK:
        lines = lines[: MAX_TRACEBACK // 2] + "\n…\n" + lines[-MAX_TRACEBACK // 2 :]
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    try:
        message = str(error)
    except Exception:
        message = "<no message>"
    return {"type": name, "message": text(_secrets.mask_text(message[:4000])), "traceback": text(_secrets.mask_text(lines))}


def outcome_of(error: BaseException | None) -> dict[str, Any]:
    """The finish event's data for a program that ends by this exception (None: it ends well)."""
    if error is None:
        return {"state": "finished", "exit_code": 0, "signal": None, "error": None}
    if isinstance(error, SystemExit):
        code = exit_code(error.code)
        return {"state": "failed" if code else "finished", "exit_code": code, "signal": None, "error": None}
    if isinstance(error, KeyboardInterrupt):
        return {"state": "killed", "exit_code": None, "signal": int(signal.SIGINT), "error": error_of(error)}
    return {"state": "failed", "exit_code": 1, "signal": None, "error": error_of(error)}


def outcome() -> dict[str, Any] | None:
    """How the interpreter is ending, asked at atexit. None: by a SystemExit whose code only libc will know."""
    last = getattr(sys, "last_value", None)
    if last is not None and not hasattr(sys, "ps1") and not sys.flags.interactive:
        return outcome_of(last)
    if _unwound():
        if _asked is None:
            return None
        return {"state": "failed" if _asked else "finished", "exit_code": _asked, "signal": None, "error": None}
    return outcome_of(None)


def _unwound() -> bool:
    """Whether the main module's frame ended by an exception instead of its last line."""
    if _bottom is None:
        return False
    try:
        code, last = _bottom.f_code.co_code, _bottom.f_lasti
        return last >= 0 and not dis.opname[code[last]].startswith("RETURN")
    except Exception:
        return False


def leave_status(folder: Path) -> bool:
    """Have libc write the exit status into the writer's folder when the process ends.

    `on_exit` calls f(status, argument), and putw(int, FILE *) fits that. False where the C library has no on_exit (musl, macOS).
    """
    try:
        libc = ctypes.CDLL(None)
        libc.fopen.restype = ctypes.c_void_p
        libc.fopen.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
        libc.on_exit.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        file = libc.fopen(os.fsencode(folder / "exit-status"), b"wb")
        return bool(file) and libc.on_exit(ctypes.cast(libc.putw, ctypes.c_void_p), file) == 0
    except (OSError, AttributeError, ValueError):
        return False


def mark_signals(folder: Path) -> None:
    """Leave a mark in `folder` when a signal with default disposition ends the process."""
    if not hasattr(faulthandler, "register"):
        return
    for number in MARKED:
        try:
            # What C code has taken (another's faulthandler.register, a runtime) does not show in Python's view.
            if signal.getsignal(number) is not signal.SIG_DFL or number in _marks or number in caught():
                continue
            file = _lasting(folder / f"signal-{int(number)}")
            faulthandler.register(number, file=file, all_threads=False, chain=True)
            _marks[number] = file
        except (OSError, ValueError, RuntimeError):
            continue


def caught() -> set[int]:
    """Signals of this process with a handler, in C or Python; empty where the system does not say."""
    try:
        with open("/proc/self/status") as status:
            mask = next((int(line.split()[1], 16) for line in status if line.startswith("SigCgt:")), 0)
    except (OSError, ValueError):
        return set()
    return {number + 1 for number in range(64) if mask >> number & 1}


def mark_crashes(folder: Path) -> None:
    """Leave the stacks in `folder` when the program crashes in C code."""
    global _crash_file
    if _crash_file is not None:  # a second run: if faulthandler still writes to our file, it now writes there
        _redirect(folder / "crash")
    elif not faulthandler.is_enabled() and sys.platform != "win32" and not caught() & set(CRASHES):
        _crash_file = _lasting(folder / "crash")
        faulthandler.enable(file=_crash_file, all_threads=True)


def _lasting(path: Path) -> Any:
    """A file that a C handler writes to as long as the process lives, under a number that nobody else is given: a program that closes
    all it has open (daemons do) and opens its own must not find our words in its data."""
    file = open(path, "wb")  # noqa: SIM115
    try:
        from fcntl import F_DUPFD_CLOEXEC, fcntl

        high = os.fdopen(fcntl(file.fileno(), F_DUPFD_CLOEXEC, HIGH_FD), "wb")
    except (ImportError, OSError, ValueError):  # fewer are allowed here
        return file
    file.close()
    return high


def _redirect(path: Path) -> None:
    if _crash_file is not None:
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.dup2(fd, _crash_file.fileno(), inheritable=False)
            os.close(fd)


def unmark_signals(folder: Path | None = None) -> None:
    """At finish, and in a forked child, whose SIGTERM is not its parent's."""
    for number, file in list(_marks.items()):
        with contextlib.suppress(Exception):
            # Only if nobody has taken the signal meanwhile: unregister would put the old disposition back over theirs.
            if signal.getsignal(number) is signal.SIG_DFL:
                faulthandler.unregister(number)
        with contextlib.suppress(OSError):
            file.close()
        if folder is not None:
            with contextlib.suppress(OSError):
                (folder / f"signal-{int(number)}").unlink()
    _marks.clear()


def after_fork() -> None:
    global _bottom, _asked
    unmark_signals()
    _redirect(Path(os.devnull))  # a loader worker's crash is not the trainer's
    _bottom, _asked = None, None
