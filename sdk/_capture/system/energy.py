"""Energy in kWh, counted from the run's start on this node, over restarts.

A GPU's own counter is read where there is one: it runs through every gap. Else sampled power is integrated by trapezoids, and a gap of more
than `MOST_GAP_SECONDS` between two samples is not filled in but told. Processor packages are read from RAPL where the system lets us.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

MOST_GAP_SECONDS = 30.0
JOULES_A_KWH = 3.6e6
RAPL = Path("/sys/class/powercap")


class Meter:
    """Of one consumer."""

    def __init__(self, joules: float = 0.0, gap_seconds: float = 0.0) -> None:
        self.joules, self.gap_seconds = joules, gap_seconds
        self._at: float | None = None
        self._last = 0.0
        self._counting = False

    def counter(self, at: float, joules: float, wraps_at: float | None = None) -> None:
        """A counter's reading. One that went back was set to zero meanwhile: what it had counted in between is not known."""
        if self._at is not None and self._counting:
            more = joules - self._last
            if wraps_at is not None and (more < 0 or at - self._at > MOST_GAP_SECONDS):
                # It may have gone round more than once during a long gap.
                more = more + wraps_at if more < 0 and at - self._at <= MOST_GAP_SECONDS else -1.0
            if more >= 0:
                self.joules += more
            else:
                self.gap_seconds += at - self._at
        self._at, self._last, self._counting = at, joules, True

    def power(self, at: float, watts: float) -> None:
        if self._counting:  # it has a counter that only failed this time
            return
        if self._at is not None:
            seconds = at - self._at
            if seconds <= MOST_GAP_SECONDS:
                self.joules += seconds * (watts + self._last) / 2
            else:
                self.gap_seconds += seconds
        self._at, self._last = at, watts


class Energy:
    def __init__(self, ledger: Path | None = None, rapl: Path = RAPL) -> None:
        """ledger: a JSON file that carries the sums over restarts of the sender and of training."""
        self.ledger = ledger
        self.meters: dict[str, Meter] = {}
        self._packages = _packages(rapl)
        stored: Any = {}
        if ledger is not None:
            with contextlib.suppress(OSError, ValueError):
                stored = json.loads(ledger.read_text())
        for name, value in (stored.get("meters") or {}).items() if isinstance(stored, dict) else ():
            with contextlib.suppress(TypeError, ValueError, KeyError):
                self.meters[str(name)] = Meter(float(value["joules"]), float(value["gap_seconds"]))

    def measure(self, now: float, boards: Any) -> None:
        for index, uuid in enumerate(boards.uuids):
            millijoules = boards.energy_millijoules(index)
            if millijoules is not None:
                self._meter(uuid).counter(now, millijoules / 1000)
            elif (watts := boards.watts(index)) is not None:
                self._meter(uuid).power(now, watts)
        for name, path, wraps_at in self._packages:
            with contextlib.suppress(OSError, ValueError):
                self._meter(name).counter(now, int(path.read_text()) / 1e6, wraps_at)

    def told(self, boards: Any) -> dict[str, float]:
        """kWh of each board, of the boards the run may use, of the processors, of both; and the seconds that were not measured."""
        found: dict[str, float] = {}
        gpus = processors = gaps = 0.0
        known = False
        for index, uuid in enumerate(boards.uuids):
            meter = self.meters.get(uuid)
            if meter is not None:
                found[f"gpu.{index}/energy_kwh"] = meter.joules / JOULES_A_KWH
                if index in boards.ours:
                    known, gpus, gaps = True, gpus + meter.joules, max(gaps, meter.gap_seconds)
        if known:
            found["gpu_energy_kwh"] = gpus / JOULES_A_KWH
        packages = [self.meters[name] for name, _, _ in self._packages if name in self.meters]
        if packages:
            processors = sum(meter.joules for meter in packages)
            gaps = max(gaps, *(meter.gap_seconds for meter in packages))
            found["cpu_energy_kwh"] = processors / JOULES_A_KWH
        if found:
            found["energy_kwh"] = (gpus + processors) / JOULES_A_KWH
            found["energy_gap_seconds"] = gaps
            self._keep()
        return found

    def _meter(self, name: str) -> Meter:
        return self.meters.setdefault(name, Meter())

    def _keep(self) -> None:
        if self.ledger is None:
            return
        from ..._journal import write_json

        meters = {name: {"joules": meter.joules, "gap_seconds": meter.gap_seconds} for name, meter in self.meters.items()}
        with contextlib.suppress(OSError):
            write_json(self.ledger, {"format": 1, "meters": meters})


def _packages(root: Path) -> list[tuple[str, Path, float | None]]:
    """(name, file, where the counter begins again) of each processor package whose counter may be read: root alone, on most systems."""
    found: list[tuple[str, Path, float | None]] = []
    with contextlib.suppress(OSError):
        for folder in sorted(root.glob("intel-rapl:*")):
            if folder.name.count(":") != 1:
                continue  # a part of a package
            with contextlib.suppress(OSError, ValueError):
                int((folder / "energy_uj").read_text())
                wraps_at = None
                with contextlib.suppress(OSError, ValueError):
                    wraps_at = int((folder / "max_energy_range_uj").read_text()) / 1e6
                found.append((f"cpu {folder.name.partition(':')[2]}", folder / "energy_uj", wraps_at))
    return found
