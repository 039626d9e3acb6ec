"""Steps and tokens per second and MFU, from the steps and times of rank 0's records: training says the figures, we do the sums."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .._reader import Reader
from .._records import RECORD, RECORD_BYTES

KEYS = ("perf/steps_per_second", "perf/tokens_per_second", "perf/tflops_per_device", "perf/mfu")


class Gauge:
    """Follows one writer's journal beside its outbox. Each `read` tells the rate since the last step that the one before knew."""

    def __init__(self, folder: Path, figures: dict[str, Any]) -> None:
        self.figures = figures
        self.reader = Reader(folder)
        self.last: tuple[int, int] | None = None  # (step, time ns)
        self.tokens = 0.0  # of the key that counts them, since `last`
        self.holes = False

    def read(self) -> tuple[int, dict[str, float]] | None:
        """(step, values), or None when no step came since."""
        newest = self._newest()
        if newest is None:
            return None
        last, self.last = self.last, newest
        tokens, self.tokens = self.tokens, 0.0
        holes, self.holes = self.holes, False
        if last is None or newest[0] < last[0]:  # the first look, or the program went back to an earlier step
            return None
        if newest[0] == last[0] or newest[1] <= last[1]:
            self.last, self.tokens = last, tokens
            return None
        seconds = (newest[1] - last[1]) / 1e9
        steps = newest[0] - last[0]
        return newest[0], self._told(steps / seconds, self._tokens_per_second(steps, tokens, seconds, holes))

    def _tokens_per_second(self, steps: int, tokens: float, seconds: float, holes: bool) -> float | None:
        a_step = self.figures.get("tokens_per_step")
        if isinstance(a_step, str):
            return None if holes else tokens / seconds
        return None if a_step is None else steps * float(a_step) / seconds

    def _told(self, steps: float, tokens: float | None) -> dict[str, float]:
        found = {"perf/steps_per_second": steps}
        flops, peak = self.figures.get("flops_per_token"), self.figures.get("peak_flops")
        devices = max(1, int(self.figures.get("devices") or 1))
        if tokens is not None and math.isfinite(tokens):
            found["perf/tokens_per_second"] = tokens
            if flops:
                found["perf/tflops_per_device"] = tokens * flops / devices / 1e12
                if peak:
                    found["perf/mfu"] = tokens * flops / (peak * devices)
        return found

    def _newest(self) -> tuple[int, int] | None:
        """The greatest step of the new records and when it was first logged."""
        key = self.figures.get("tokens_per_step")
        best: tuple[int, int] | None = None
        counted: list[tuple[int, float]] = []  # (step, tokens)
        while self.reader.waiting():
            chunk = self.reader.read()
            if chunk is None:
                break
            self.holes |= bool(chunk.holes)
            for list_id, rows in chunk.dense.items():
                names, types = chunk.lists[list_id]
                at = names.index(key) if isinstance(key, str) and key in names else None
                for row in rows:
                    step, time = RECORD.unpack_from(row)[7:9]
                    if best is None or step > best[0]:
                        best = (step, time)
                    if at is not None:
                        place = RECORD_BYTES + 8 * at
                        cell = row[place : place + 8].cast("d" if types[at] == "d" else "q")[0]
                        counted.append((step, float(cell)))
        # What the first step before the window counted belongs to the window before.
        self.tokens += sum(value for step, value in counted if math.isfinite(value) and (self.last is None or step > self.last[0]))
        if self.last is None:
            self.tokens = 0.0
        return best
