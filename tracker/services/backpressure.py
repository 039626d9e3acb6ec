"""How much waits for compaction: counted in this process as it takes batches, and looked up in the database for what others took.

Never a trap: what counts here is what compaction can take. Writers below ``COUNTED_BYTES`` stay segments for good and count for
nothing, and where a limit is near (``is_pressed``) a writer is due for compaction however young its segments are.
"""

from __future__ import annotations

import threading
import time

import structlog
from django.db import DatabaseError

from tracker.domain.errors import Busy
from tracker.store import rows

RUN_BYTES = 64 * 2**20
INSTANCE_BYTES = 2**30
LOOK_SECONDS = 2.0
"""So old may be what is known of other processes' batches; what they take meanwhile comes on top of the limits."""
LOOK_AGAIN_SECONDS = 0.5
"""While a limit is passed: compaction may have caught up."""
COUNTED_BYTES = 65536
"""Writers below this stay segments for good (compaction.SMALL_BYTES) and wait for nothing."""
log = structlog.get_logger()


class HotParts:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self.forget()

    def forget(self) -> None:
        self._runs: dict[str, dict[str, int]] = {}
        self._sums: dict[str, int] = {}
        self._total = 0
        self._looked = -LOOK_SECONDS

    def note(self, run: str, writer: str, hot_bytes: int) -> None:
        """A writer's row says so now."""
        hot_bytes = hot_bytes if hot_bytes >= COUNTED_BYTES else 0
        with self._lock:
            mine = self._runs.get(run)
            before = mine.get(writer, 0) if mine is not None else 0
            if hot_bytes == before:
                return
            self._total += hot_bytes - before
            self._sums[run] = self._sums.get(run, 0) + hot_bytes - before
            if mine is None:
                mine = self._runs[run] = {}
            mine[writer] = hot_bytes
            if not hot_bytes:
                del mine[writer]
            if not mine:
                del self._runs[run], self._sums[run]

    def check(self, run: str) -> None:
        """Raises Busy when the run's or the instance's hot part is too large to take more."""
        self._look(LOOK_AGAIN_SECONDS if self._is_over(run) else LOOK_SECONDS)
        if self._sums.get(run, 0) > RUN_BYTES:
            raise Busy("This run's batches come faster than they are compacted: wait, then send again.", retry_after=2)
        if self._total > INSTANCE_BYTES:
            raise Busy("Batches come faster than they are compacted: wait, then send again.", retry_after=5)

    def _is_over(self, run: str) -> bool:
        return self._sums.get(run, 0) > RUN_BYTES or self._total > INSTANCE_BYTES

    def _look(self, most_seconds: float) -> None:
        """Read how it stands, unless that is known well enough or another thread is at it."""
        if time.monotonic() - self._looked < most_seconds or not self._looking.acquire(blocking=False):
            return
        try:
            counted: dict[str, dict[str, int]] = {}
            for run, writer, hot_bytes in _hot():
                counted.setdefault(run, {})[writer] = hot_bytes
            with self._lock:
                self._runs = counted
                self._sums = {run: sum(mine.values()) for run, mine in counted.items()}
                self._total = sum(self._sums.values())
        except DatabaseError as problem:  # the batch itself will tell
            log.warning("the hot part could not be looked up", problem=str(problem))
        finally:
            self._looked = time.monotonic()
            self._looking.release()


def _hot() -> list[tuple[str, str, int]]:
    with rows.cursor() as cursor:
        # The number stands in the text so that SQLite can prove that the partial index serves.
        cursor.execute(f"SELECT run_id, id, hot_bytes FROM tracker_writer WHERE hot_bytes >= {COUNTED_BYTES}")  # noqa: S608
        return cursor.fetchall()


def is_pressed(run: str) -> bool:
    """Whether the run's or the instance's hot part is more than half of what it may be: then compaction takes whatever it can get.

    Without it a run of 200 ranks, each with 0.3 MiB of wide batches, would wait at its limit until they are two minutes old.
    """
    with rows.cursor() as cursor:
        cursor.execute(
            f"SELECT COALESCE(SUM(hot_bytes), 0), COALESCE(SUM(CASE WHEN run_id = %s THEN hot_bytes ELSE 0 END), 0) "  # noqa: S608
            f"FROM tracker_writer WHERE hot_bytes >= {COUNTED_BYTES}",
            [run],
        )
        total, mine = (int(found) for found in cursor.fetchone())
    return mine > RUN_BYTES // 2 or total > INSTANCE_BYTES // 2


hot_parts = HotParts()
