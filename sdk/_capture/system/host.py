"""The machine as a whole: processor, memory, disks, network."""

from __future__ import annotations

import contextlib
import time
from typing import Any


class Host:
    def __init__(self) -> None:
        self.psutil: Any = None
        with contextlib.suppress(Exception):
            import psutil

            self.psutil = psutil
            psutil.cpu_percent(None)
        self.at = time.monotonic()
        self.seconds = 0.0  # between the last two samples
        self.before = self._counters()

    def sample(self) -> dict[str, Any]:
        psutil = self.psutil
        if psutil is None:
            return {}
        memory = psutil.virtual_memory()
        found: dict[str, Any] = {
            "cpu_percent": psutil.cpu_percent(None),
            "memory_percent": memory.percent,
            "memory_bytes": memory.total - memory.available,
        }
        with contextlib.suppress(Exception):
            found["load_1m"] = psutil.getloadavg()[0]
        with contextlib.suppress(Exception):
            found["swap_bytes"] = psutil.swap_memory().used
        return found | self._rates()

    def _rates(self) -> dict[str, float]:
        now, counters = time.monotonic(), self._counters()
        self.seconds = max(1e-3, now - self.at)
        rates = {
            f"{name}_per_second": max(0.0, value - self.before[name]) / self.seconds
            for name, value in counters.items()
            if name in self.before
        }
        self.before, self.at = counters, now
        return rates

    def _counters(self) -> dict[str, float]:
        found: dict[str, float] = {}
        with contextlib.suppress(Exception):
            disk = self.psutil.disk_io_counters()
            found["disk_read_bytes"], found["disk_write_bytes"] = disk.read_bytes, disk.write_bytes
        with contextlib.suppress(Exception):
            # The loopback is no network: what ranks of one node say to each other would drown the rest.
            cards = {name: card for name, card in self.psutil.net_io_counters(pernic=True).items() if name not in ("lo", "lo0")}
            found["network_sent_bytes"] = sum(card.bytes_sent for card in cards.values())
            found["network_received_bytes"] = sum(card.bytes_recv for card in cards.values())
        return found


def disk_of(folder: str | None) -> dict[str, Any]:
    """Room on the disk of the program's folder."""
    if folder is None:
        return {}
    import shutil

    usage = shutil.disk_usage(folder)
    return {"disk_free_bytes": usage.free, "disk_used_percent": 100 * usage.used / max(1, usage.used + usage.free)}
