"""The run's processes, each rank with its children (loader workers): all of this node together, and by rank where there are several."""

from __future__ import annotations

import time
from typing import Any

PSS_EVERY = 6  # samples: the kernel walks the process's page tables for it, and holds up its page faults meanwhile
PSS_SLOW_SECONDS = 0.05  # a process for which it took longer is not asked again


class Processes:
    def __init__(self, boards: Any = None) -> None:
        self.boards = boards
        self.followed: dict[int, int | None] = {}  # pid -> rank
        self.known: dict[int, Any] = {}
        self.bytes: dict[int, tuple[float, float, float]] = {}  # rank -> (at, read, written)
        self.samples = 0
        self.no_pss: set[int] = set()
        try:
            import psutil

            self.psutil: Any = psutil
        except Exception:
            self.psutil = None

    def follow(self, pid: int, rank: int | None = None) -> None:
        if pid not in self.followed:
            self.followed[pid] = rank
            try:
                self.known[pid] = self.psutil.Process(pid)
                self.known[pid].cpu_percent(None)  # its first answer is since now
            except Exception:
                return

    def sample(self) -> dict[str, Any]:
        if self.psutil is None or not self.followed:
            return {}
        families = self._families()
        self.followed = {pid: rank for pid, rank in self.followed.items() if families.get(pid)}
        several = len([rank for rank in self.followed.values() if rank is not None]) > 1
        gpu_memory = self.boards.memory_by_process() if self.boards is not None else {}
        total: dict[str, float] = {}
        found: dict[str, float] = {}
        with_pss = self.samples % PSS_EVERY == 0
        self.samples += 1
        for pid, rank in self.followed.items():
            family = families[pid]
            told = self._family(family, rank, with_pss)
            on_boards = [gpu_memory[each.pid] for each in family if each.pid in gpu_memory]
            if on_boards:
                told["gpu_memory_bytes"] = float(sum(on_boards))
            for name, value in told.items():
                total[name] = total.get(name, 0.0) + value
                if rank is not None and several:
                    found[f"rank.{rank}/{name}"] = value
        living = {each.pid for family in families.values() for each in family}
        self.known = {pid: process for pid, process in self.known.items() if pid in living or pid in self.followed}
        return found | {f"process_{'count' if name == 'processes' else name}": value for name, value in total.items()}

    def _families(self) -> dict[int, list[Any]]:
        """pid -> the process and what it started, however deep; a followed process stands in its own family alone. One walk for all."""
        children: dict[int, list[int]] = {}
        alive = set()
        for process in self.psutil.process_iter():
            try:
                parent = process.ppid()
            except self.psutil.Error:
                continue
            alive.add(process.pid)
            children.setdefault(parent, []).append(process.pid)
        families: dict[int, list[Any]] = {}
        for root in self.followed:
            if root not in alive:
                continue
            members, waiting = [], [root]
            while waiting:
                pid = waiting.pop()
                members.append(pid)
                waiting += [child for child in children.get(pid, ()) if child not in self.followed]
            families[root] = [process for pid in members if (process := self._process(pid)) is not None]
        return families

    def _process(self, pid: int) -> Any:
        known = self.known.get(pid)
        try:
            if known is None or not known.is_running():
                known = self.known[pid] = self.psutil.Process(pid)
                known.cpu_percent(None)
            return known
        except self.psutil.Error:
            self.known.pop(pid, None)
            return None

    def _family(self, family: list[Any], rank: int | None, with_pss: bool) -> dict[str, float]:
        found = {"cpu_percent": 0.0, "memory_bytes": 0.0, "threads": 0.0, "processes": 0.0}
        read = written = pss = 0.0
        pss_whole, io_whole = with_pss, True
        for process in family:
            try:
                with process.oneshot():
                    found["cpu_percent"] += process.cpu_percent(None)
                    found["memory_bytes"] += process.memory_info().rss
                    found["threads"] += process.num_threads()
                    found["processes"] += 1
            except self.psutil.Error:
                continue
            try:
                counters = process.io_counters()
                read, written = read + counters.read_bytes, written + counters.write_bytes
            except Exception:
                io_whole = False
            if pss_whole:
                own = self._pss(process)
                pss, pss_whole = pss + (own or 0.0), own is not None
        if pss_whole:
            found["pss_bytes"] = pss
        if io_whole and rank is not None:
            now = time.monotonic()
            before, self.bytes[rank] = self.bytes.get(rank), (now, read, written)
            if before is not None and now - before[0] > 0.5:
                # A loader worker that has ended takes its count with it: then there is no rate this time.
                if read >= before[1]:
                    found["read_bytes_per_second"] = (read - before[1]) / (now - before[0])
                if written >= before[2]:
                    found["write_bytes_per_second"] = (written - before[2]) / (now - before[0])
        return found

    def _pss(self, process: Any) -> float | None:
        """Its memory with shared pages divided among those that share them: forked workers are not counted many times."""
        if process.pid in self.no_pss:
            return None
        begun = time.monotonic()
        try:
            found = float(process.memory_full_info().pss)
        except Exception:
            self.no_pss.add(process.pid)
            return None
        if time.monotonic() - begun > PSS_SLOW_SECONDS:
            self.no_pss.add(process.pid)
        return found
