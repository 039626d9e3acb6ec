"""System metrics of one node by psutil, /sys and NVML. The sender samples; training never does.

Parts: host (processor, memory, disks, network), cgroups (a container's own limits), processes (each rank with its children), boards (GPUs),
energy. What a machine cannot say is left out; nothing here raises.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import cgroups, host
from .boards import Boards
from .boards import open_nvml as _open_nvml
from .energy import Energy
from .processes import Processes

PREFIX = "system/"
TICK_SECONDS = 1.0  # between two looks at the power of boards without an energy counter


class Sampler:
    """Each `sample()` gives rates since the one before: `{"system/cpu_percent": 12.5, …}`."""

    def __init__(
        self, pids: Iterable[int] = (), nvml: Any = None, *, node: str | None = None, ledger: Path | None = None, folder: str | None = None
    ) -> None:
        """nvml: pynvml or an object with its functions; None: look for it. node: named in the keys, where a run has several.

        ledger: a file that keeps the energy over restarts. folder: whose disk's free space is told.
        """
        self.node, self.folder = node, folder
        self.boards = Boards(nvml)
        self.energy = Energy(ledger)
        self.processes = Processes(self.boards)
        for pid in pids:
            self.processes.follow(pid)
        self.host = host.Host()
        self._cgroup: dict[str, float] = {}
        self._next_tick = 0.0
        self.tick()

    @property
    def pids(self) -> list[int]:
        return list(self.processes.followed)

    @pids.setter
    def pids(self, pids: Iterable[int]) -> None:
        self.processes.followed = dict.fromkeys(pids)

    def follow(self, pid: int, rank: int | None = None) -> None:
        """Sample the process `pid` and its children too, under its rank."""
        self.processes.follow(pid, rank)

    def tick(self) -> None:
        """Cheap, between samples: power where a board has no energy counter, so that bursts shorter than a sample count."""
        now = time.monotonic()
        if now >= self._next_tick:
            self._next_tick = now + TICK_SECONDS
            try:
                self.energy.measure(now, self.boards)
            except Exception:
                return

    def sample(self) -> dict[str, float]:
        self._next_tick = 0.0
        self.tick()
        found: dict[str, float] = {}
        prefix = PREFIX + (f"{self.node}/" if self.node else "")
        parts = (
            self.host.sample,
            lambda: host.disk_of(self.folder),
            lambda: cgroups.sample(self.host.seconds, self._cgroup),
            self.processes.sample,
            self.boards.sample,
            lambda: self.energy.told(self.boards),
        )
        for part in parts:
            try:
                found.update({prefix + name: float(value) for name, value in part().items() if value is not None})
            except Exception:  # noqa: S112 - a machine without this counter
                continue
        return found

    def news(self) -> list[dict[str, Any]]:
        """What happened to the machine since the last call, as events: a board that fell off the bus, or came back."""
        news, self.boards.news = self.boards.news, []
        return news

    def close(self) -> None:
        self.boards.close()


__all__ = ["PREFIX", "Sampler", "_open_nvml"]
