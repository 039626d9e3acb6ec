"""How much waits for compaction, counted cheaply in this process; the database is asked only when that looks like too much."""

from __future__ import annotations

import threading
import time

from tracker.domain.errors import Busy
from tracker.models import Writer

RUN_BYTES = 64 * 2**20
INSTANCE_BYTES = 2**30
LOOK_AGAIN_SECONDS = 0.5
COUNTED_BYTES = 65536
"""Writers below this stay segments for good (compaction.SMALL_BYTES) and wait for nothing."""


class HotParts:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        self._runs: dict[str, dict[str, int]] = {}
        self._total = 0
        self._looked: dict[str, tuple[float, bool]] = {}

    def note(self, run: str, writer: str, hot_bytes: int) -> None:
        """A writer's row says so now."""
        with self._lock:
            mine = self._runs.setdefault(run, {})
            hot_bytes = hot_bytes if hot_bytes >= COUNTED_BYTES else 0
            self._total += hot_bytes - mine.get(writer, 0)
            mine[writer] = hot_bytes
            if not any(mine.values()):
                del self._runs[run]

    def check(self, run: str) -> None:
        """Raises Busy when the run's or the instance's hot part is too large to take more."""
        mine = self._runs.get(run)
        if mine is not None and sum(list(mine.values())) > RUN_BYTES and self._really(run):
            raise Busy("This run's batches come faster than they are compacted: wait, then send again.", retry_after=2)
        if self._total > INSTANCE_BYTES and self._really(""):
            raise Busy("Batches come faster than they are compacted: wait, then send again.", retry_after=5)

    def _really(self, run: str) -> bool:
        """Ask the database, at most twice a second; another process may have compacted since."""
        looked = self._looked.get(run)
        if looked is not None and looked[0] + LOOK_AGAIN_SECONDS > time.monotonic():
            return looked[1]
        found = Writer.objects.filter(hot_bytes__gte=COUNTED_BYTES)
        if run:
            found = found.filter(run_id=run)
        with self._lock:
            counted: dict[str, dict[str, int]] = {}
            for run_id, writer_id, hot_bytes in found.values_list("run_id", "id", "hot_bytes"):
                counted.setdefault(run_id, {})[writer_id] = hot_bytes
            if run:
                self._total -= sum(self._runs.pop(run, {}).values())
                self._runs.update(counted)
                self._total += sum(sum(each.values()) for each in counted.values())
            else:
                self._runs, self._total = counted, sum(sum(each.values()) for each in counted.values())
            total = sum(counted.get(run, {}).values()) if run else self._total
            is_so = total > (RUN_BYTES if run else INSTANCE_BYTES)
            if len(self._looked) > 1000:
                self._looked.clear()
            self._looked[run] = (time.monotonic(), is_so)
        return is_so


hot_parts = HotParts()
