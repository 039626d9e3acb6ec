"""A hang gives evidence: on a signal, Python's faulthandler writes the stacks of all threads into the writer's folder.

The sender sends the signal when somebody asks, or when no step came for too long. faulthandler works in C, so also while the process
hangs in a collective, a driver or a lock; the file is open and its room is reserved from init on. Only a real-time signal that nobody
uses is taken, none is replaced, and ENCORE_STACKS=off leaves all of them alone. Linux only: elsewhere nobody can see from outside
whether a process is ready for such a signal, and one that is not would die of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

VARIABLE = "ENCORE_STACKS"
FILE = "stacks.txt"
OFFSETS = (13, 12, 11, 10, 9)  # from SIGRTMIN; the first that is free
RESERVED_BYTES = 64 << 10  # so that a full disk takes no dump away
_HEAD = re.compile(rb"# signal (\d+): ")

_number: int | None = None
_file: Any = None


def wanted() -> bool:
    return os.environ.get(VARIABLE, "").strip().lower() not in ("0", "off", "false", "no")


def install(folder: Path) -> int | None:
    """Makes this process ready to dump; the signal's number, or None. A second run of the process takes its own folder's file.

    Never undone: between the sender's look and its signal the default action would be there again, and it kills.
    """
    global _number, _file
    if not wanted() or not hasattr(signal, "SIGRTMIN") or not hasattr(faulthandler, "register") or not os.path.exists("/proc/self/status"):
        return None
    if not getattr(sys, "_is_gil_enabled", lambda: True)():  # without the GIL another thread's frames may go while they are read
        return None
    number = _number if _number is not None else _free()
    if number is None:
        return None
    file = open(folder / FILE, "wb", buffering=0)  # noqa: SIM115 - the handler writes to it as long as the process lives
    file.write(b"# signal %d: Python's stacks of this process, each time it is sent (ENCORE_STACKS=off: never)\n" % number)
    with contextlib.suppress(OSError):  # a full disk: there may be room later
        os.posix_fallocate(file.fileno(), 0, RESERVED_BYTES)
    if _number is None:
        # faulthandler puts back what it found when the interpreter ends: a late signal must find itself ignored, not deadly.
        libc = ctypes.CDLL(None)
        libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
        libc.signal(number, int(signal.SIG_IGN))
    faulthandler.register(number, file=file, all_threads=True, chain=False)
    _number, _file = number, file
    return number


def _free() -> int | None:
    """A signal that neither Python nor C code has a handler for, that is not ignored and not blocked."""
    masks = [mask(os.getpid(), name) for name in ("SigCgt", "SigIgn", "SigBlk")]
    if any(found is None for found in masks):
        return None
    taken = 0
    for found in masks:
        taken |= found or 0
    for offset in OFFSETS:
        number = int(signal.SIGRTMIN) + offset
        if number < signal.SIGRTMAX and signal.getsignal(number) is signal.SIG_DFL and not taken >> (number - 1) & 1:
            return number
    return None


def mask(pid: int, name: str) -> int | None:
    """A set of signals as the system gives it for a process: bit n - 1 is signal n."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(name.encode() + b":"):
                    return int(line.split()[1], 16)
    except (OSError, ValueError, IndexError):
        pass
    return None


def number_of(folder: Path) -> int | None:
    """Which signal makes the process of this folder dump; None: none does."""
    try:
        with open(folder / FILE, "rb") as file:
            match = _HEAD.match(file.read(32))
    except OSError:
        return None
    return int(match[1]) if match else None


def written(folder: Path, since: int = 0) -> bytes:
    """What was dumped from byte `since` on; the room that is still reserved reads as zeros and is cut off."""
    try:
        with open(folder / FILE, "rb") as file:
            file.seek(since)
            return file.read(8 << 20).rstrip(b"\0")
    except OSError:
        return b""
