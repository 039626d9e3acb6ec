"""Was a process killed by the kernel for want of memory? Told by the counters of its control group, else by the kernel's log.

Neither a parent's wait nor anything else says it: the process dies of SIGKILL like any other. A sender looks at the counters while
the trainer lives, and again when it is gone.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
PROC = Path("/proc")
KERNEL_LOG = Path("/dev/kmsg")
REASON = "killed by the system for want of memory (OOM)"
_KILLED = re.compile(rb"Killed process (\d+)|oom-kill:.*\bpid=(\d+)")
LOG_BYTES = 4 << 20


class Watch:
    """Of one process of this host, begun while it lives; `killed` compares when it is gone."""

    def __init__(self, pid: int, started: float = 0.0) -> None:
        """started: seconds since boot at which the process started, so that an older process of the same pid is not taken for it."""
        self.pid, self.started = pid, started
        self.counters = counters_of(pid)
        self.before = {path: read_kills(path) for path in self.counters}

    def killed(self) -> str | None:
        """REASON if the kernel killed it (or another process of its control group) for memory since the watch began."""
        for path in self.counters:
            was, now = self.before.get(path), read_kills(path)
            if was is not None and now is not None and now > was:
                return REASON
        return REASON if kernel_log().get(self.pid, -1.0) >= self.started else None


def counters_of(pid: int) -> list[Path]:
    """Files that count OOM kills in the process's own memory control group: cgroup v2's memory.events, v1's memory.oom_control.

    Only its own group: a group above it also counts what befell others.
    """
    found: list[Path] = []
    try:
        lines = (PROC / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        below = path.lstrip("/")
        roots = []
        if number == "0" and not controllers:
            roots = [(CGROUP, "memory.events"), (CGROUP / "unified", "memory.events")]
        elif "memory" in controllers.split(","):
            roots = [(CGROUP / "memory", "memory.oom_control")]
        for root, name in roots:
            # In a container the path may be the host's while only the container's own group is mounted, at the root.
            for candidate in (root / below / name, root / name):
                if read_kills(candidate) is not None:
                    found.append(candidate)
                    break
    return found


def read_kills(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return None


def kernel_log() -> dict[int, float]:
    """Pids that the kernel's log names as OOM kills, with the seconds since boot; empty where it may not be read."""
    pids: dict[int, float] = {}
    try:
        fd = os.open(KERNEL_LOG, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return pids
    try:
        read = 0
        while read < LOG_BYTES:
            try:
                line = os.read(fd, 8192)
            except BrokenPipeError:  # overwritten while we read: go on with what is there
                continue
            if not line:
                break
            read += len(line)
            for each in line.splitlines():
                match = _KILLED.search(each)
                if match:
                    stamp = each.split(b",", 3)
                    pids[int(match[1] or match[2])] = int(stamp[2]) / 1e6 if len(stamp) > 3 and stamp[2].isdigit() else 0.0
    except OSError:  # EAGAIN: the end
        pass
    finally:
        os.close(fd)
    return pids
