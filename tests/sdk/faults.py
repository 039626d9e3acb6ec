"""Disks that refuse: mounts of a small size, and a kernel that answers chosen calls with an error.

`refuse` is a seccomp filter, so what the SDK meets is the system call's own answer; it stands in for a quota (EDQUOT) and a failing disk
(EIO) where the kernel knows no quotas and no broken disk is at hand. It cannot be taken back: use it in a process of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import platform
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

NUMBERS = {
    "x86_64": {"fallocate": 285, "pwrite64": 18, "write": 1, "ftruncate": 77},
    "aarch64": {"fallocate": 47, "pwrite64": 68, "write": 64, "ftruncate": 46},
}
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_TSYNC = 1


def refuse(calls: tuple[str, ...], error: int) -> None:
    """From now on these system calls fail with `error`, in every thread of this process, for good."""
    numbers = NUMBERS[platform.machine()]
    program = [struct.pack("HBBI", _LOAD, 0, 0, 0)]
    for place, call in enumerate(calls):
        program.append(struct.pack("HBBI", _JUMP_EQUAL, len(calls) - place, 0, numbers[call]))
    program += [struct.pack("HBBI", _RETURN, 0, 0, _ALLOW), struct.pack("HBBI", _RETURN, 0, 0, _ERRNO | error)]
    code = ctypes.create_string_buffer(b"".join(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) != 0:  # no new privileges: what lets anybody filter himself
        raise OSError(ctypes.get_errno(), "prctl")
    seccomp = {"x86_64": 317, "aarch64": 277}[platform.machine()]
    if libc.syscall(seccomp, 1, _TSYNC, ctypes.byref(Program(len(program), ctypes.cast(code, ctypes.c_void_p)))) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def can_refuse() -> bool:
    if platform.machine() not in NUMBERS or platform.system() != "Linux":
        return False
    with contextlib.suppress(OSError):
        return "seccomp" in Path("/proc/sys/kernel/seccomp/actions_avail").read_text() or Path("/proc/sys/kernel/seccomp").is_dir()
    return False


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """`mount … folder`; skips the test, with mount's own words, where that is not permitted."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mounting is not possible here: {done.stderr.strip().splitlines()[0] if done.stderr.strip() else done.returncode}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


ERRORS = {"EDQUOT": errno.EDQUOT, "EIO": errno.EIO, "ENOSPC": errno.ENOSPC}
