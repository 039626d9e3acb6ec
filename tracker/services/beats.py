"""Signs of life on their way to the database: noted in memory, written for all runs together, one statement a table.

A thousand runs speak each ten seconds. A commit of their own for each would cost more than their batches do. What waits here when the
process dies is lost, which the next heartbeat mends: silence counts only after ENCORE_SILENT_SECONDS.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime

import structlog
from django.db import connection, transaction
from django.utils import timezone

from tracker.store import rows

RUN_EVERY_SECONDS = 5.0
"""A run's sign of life is written at most so often, however many batches come."""
WRITE_AFTER_SECONDS = 0.5
MOST_REMEMBERED = 100_000
log = structlog.get_logger()


class Beats:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake: Callable[[], None] = lambda: None
        self.forget()

    def forget(self) -> None:
        self._written: dict[str, float] = {}
        self._runs: dict[str, None] = {}
        self._writers: dict[str, int | None] = {}
        self._since: datetime | None = None
        self._due = 0.0

    def on_first(self, wake: Callable[[], None]) -> None:
        """``wake`` is called when something begins to wait; whoever it wakes calls ``write`` once ``due_in`` is over."""
        self._wake = wake

    def note(self, run: str, writers: Iterable[str] = (), skew_us: int | None = None) -> None:
        """The run gave a sign of life, and these of its writers did, whose clock is ``skew_us`` behind the server's (None: unknown)."""
        writers = list(writers)
        now = time.monotonic()
        with self._lock:
            is_first = self._since is None
            if self._written.get(run, -RUN_EVERY_SECONDS) + RUN_EVERY_SECONDS <= now:
                if len(self._written) >= MOST_REMEMBERED:
                    self._written.clear()
                self._written[run] = now
                self._runs[run] = None
            elif not writers:
                return
            self._writers.update(dict.fromkeys(writers, skew_us))
            if is_first:
                self._since, self._due = timezone.now(), now + WRITE_AFTER_SECONDS
        if connection.in_atomic_block:
            self.write()  # the caller's transaction takes it along
        elif is_first:
            self._wake()

    def due_in(self) -> float | None:
        """Seconds until what waits is to be written, 0 at the least; None if nothing waits."""
        return None if self._since is None else max(0.0, self._due - time.monotonic())

    def write(self) -> None:
        """Write all that waits: in the caller's transaction, or (without one) in its own. Never raises but for what breaks a transaction
        of the caller's; what could not be written waits on."""
        with self._lock:
            runs, writers, since = list(self._runs), dict(self._writers), self._since
            self._runs, self._writers, self._since = {}, {}, None
        if since is None:
            return
        is_own = not connection.in_atomic_block
        try:
            with transaction.atomic(savepoint=False), rows.cursor() as cursor:
                if not rows.on_postgres():
                    _write_on_sqlite(cursor, runs, writers, since)
                    runs, writers = [], {}
                else:
                    if is_own:
                        cursor.execute("SET LOCAL synchronous_commit TO off")  # worth no sync
                    runs, writers = _write_on_postgres(cursor, runs, writers, since)
        except Exception as problem:
            if not is_own:
                self._wait_on(runs, writers, since)
                raise
            log.warning("signs of life could not be written yet", problem=str(problem))
        if runs or writers:
            self._wait_on(runs, writers, since)

    def _wait_on(self, runs: list[str], writers: dict[str, int | None], since: datetime) -> None:
        if (timezone.now() - since).total_seconds() > 2 * RUN_EVERY_SECONDS:
            return  # the next heartbeats are here by now
        with self._lock:
            self._runs.update(dict.fromkeys(runs))
            self._writers = {**writers, **self._writers}
            self._since, self._due = min(since, self._since or since), time.monotonic() + WRITE_AFTER_SECONDS


def _write_on_sqlite(cursor, runs: list[str], writers: dict[str, int | None], at: datetime) -> None:
    moment = connection.ops.adapt_datetimefield_value(at)
    if runs:
        cursor.execute(
            "UPDATE tracker_run SET heartbeat_at = %s WHERE id IN (SELECT value FROM json_each(%s))",
            [moment, json.dumps(runs)],
        )
    if writers:
        cursor.execute(
            "UPDATE tracker_writer SET heartbeat_at = %s, skew_us = v.value FROM json_each(%s) AS v WHERE tracker_writer.id = v.key",
            [moment, json.dumps(writers)],
        )


def _write_on_postgres(cursor, runs: list[str], writers: dict[str, int | None], at: datetime) -> tuple[list[str], dict[str, int | None]]:
    """What is left: rows that others hold are passed over, so that no lock is ever waited for here and none can be the last of a ring."""
    left_runs, left_writers = [], {}
    if runs:
        cursor.execute(
            "UPDATE tracker_run SET heartbeat_at = %s WHERE id IN "
            "(SELECT id FROM tracker_run WHERE id = ANY(%s) FOR NO KEY UPDATE SKIP LOCKED) RETURNING id",
            [at, runs],
        )
        written = {run for (run,) in cursor.fetchall()}
        left_runs = [run for run in runs if run not in written]
    if writers:
        cursor.execute(
            "UPDATE tracker_writer SET heartbeat_at = %s, skew_us = v.skew FROM unnest(%s::text[], %s::bigint[]) AS v (id, skew) "
            "WHERE tracker_writer.id = v.id AND v.id IN "
            "(SELECT id FROM tracker_writer WHERE id = ANY(%s) FOR NO KEY UPDATE SKIP LOCKED) RETURNING v.id",
            [at, list(writers), list(writers.values()), list(writers)],
        )
        written = {writer for (writer,) in cursor.fetchall()}
        left_writers = {writer: skew for writer, skew in writers.items() if writer not in written}
    return left_runs, left_writers


beats = Beats()
