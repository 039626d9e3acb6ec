"""Who a process is: pid and start time together, since pids are used again."""

from __future__ import annotations

import os
import socket
from functools import lru_cache
from pathlib import Path


def started(pid: int) -> float | None:
    """Seconds since boot at which the process started, as the system gives it; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        fields = stat[stat.rindex(b")") + 2 :].split()
        if fields[0] in (b"Z", b"X"):  # a zombie has ended; only its parent has not looked yet
            return None
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        if os.path.exists("/proc/self/stat"):
            return None
    except (OSError, ValueError, IndexError):
        return None
    try:
        import psutil

        return psutil.Process(pid).create_time() - psutil.boot_time()
    except Exception:
        return None


@lru_cache(maxsize=1)
def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        try:
            import psutil

            return str(int(psutil.boot_time()))
        except Exception:
            return ""


def pid_namespace() -> str:
    """Pids mean something only within one of these (a sandbox has its own)."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def host() -> str:
    try:
        return socket.gethostname()
    except OSError:
        return "localhost"
