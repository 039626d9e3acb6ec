"""Group commit: one thread of this process stores all the batches that wait, in one transaction with one sync.

One thread, so one connection, whose page cache and prepared statements stay warm; while it syncs, the others decode. On PostgreSQL it
saves round trips, not syncs: five a group instead of five a batch. There it never waits for a lock: a batch whose writer another
transaction holds is stored by its own thread, and so is one with documents, since those lock rows of the run.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import structlog
from django.db import OperationalError, connection, transaction

from tracker.domain.errors import EncoreError, Unavailable, WriterUnknown
from tracker.domain.ids import is_id
from tracker.models import Run, Writer
from tracker.services import documents
from tracker.services.beats import beats
from tracker.store import rows, wire
from tracker.store.metrics import News, Position, metric_store

GROUP = 256
GROUP_BYTES = 16 * 2**20
TRIES = 3
"""Of a transaction that PostgreSQL gave up (a deadlock, a connection that broke)."""
log = structlog.get_logger()


def _taken() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(slots=True)
class Waiting:
    """A decoded batch on its way into the database, and its outcome: ``next``, or ``error``."""

    run: Run
    writer: Writer
    batch: wire.Batch
    body: bytes
    encoding: str
    docs: list[dict[str, Any]] = field(default_factory=list)
    next: int = 0
    error: BaseException | None = None
    position: Position | None = None
    """Where the writer stands now, if the batch was new."""
    is_alone: bool = False
    """The committer left it to its own thread."""
    is_over: threading.Lock = field(default_factory=_taken)
    """Released when the outcome stands."""


_REST: Any = Waiting(*[None] * 3, b"", "")  # type: ignore[list-item]


class Committer:
    def __init__(self) -> None:
        self._begin()
        os.register_at_fork(after_in_child=self._begin)  # threads stay behind
        beats.on_first(self._wake)

    def _begin(self) -> None:
        self._queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    def commit(self, waiting: Waiting) -> None:
        """Returns when its outcome stands."""
        self._put(waiting)
        waiting.is_over.acquire()

    def rest(self) -> None:
        """End the thread, and with it its connection, until there is work again (tests that empty the database)."""
        with self._start:
            if self._thread is not None:
                self._queue.put(_REST)
                self._thread.join()
                self._thread = None

    def _wake(self) -> None:
        self._put(None)

    def _put(self, waiting: Waiting | None) -> None:
        if self._thread is None:
            with self._start:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
                    self._thread.start()
        self._queue.put(waiting)

    def _run(self) -> None:
        is_over = False
        while not is_over:
            group = self._group()
            if is_over := bool(group) and group[-1] is _REST:
                group.pop()
            if beats.due_in() == 0 and (not group or rows.on_postgres()):
                self._write_beats()
            if group:
                store(group, may_wait=not rows.on_postgres())
            if any(isinstance(waiting.error, Unavailable) for waiting in group):
                connection.close()  # the next group finds a fresh one
            for waiting in group:
                waiting.is_over.release()
        connection.close()

    def _group(self) -> list[Waiting]:
        """All that wait, at least one; none if signs of life are to be written first."""
        group: list[Waiting] = []
        bytes_ = 0
        with contextlib.suppress(queue.Empty):
            found = self._queue.get(timeout=beats.due_in())
            while True:
                if found is not None:
                    group.append(found)
                    bytes_ += len(found.body)
                if found is _REST:
                    break
                if len(group) >= GROUP or bytes_ >= GROUP_BYTES:
                    break
                found = self._queue.get_nowait()
        return group

    def _write_beats(self) -> None:
        try:
            beats.write()
        except Exception:
            log.exception("signs of life could not be written")
            connection.close()


committer = Committer()


def commit(waiting: Waiting) -> None:
    """Store it; ``waiting`` then has the outcome. Never raises."""
    if connection.in_atomic_block or (waiting.docs and rows.on_postgres()):
        store([waiting])
        return
    committer.commit(waiting)
    if waiting.is_alone:
        store([waiting])


def store(group: list[Waiting], *, may_wait: bool = True) -> None:
    """Store all of ``group`` in one transaction; what fails alone fails for itself. Never raises: each gets its outcome.

    Without ``may_wait`` a batch whose writer is locked elsewhere is left ``is_alone``.
    """
    for attempt in range(1, TRIES + 1):
        try:
            with storable(), transaction.atomic(), rows.cursor() as cursor:
                _store(cursor, group, may_wait)
            return
        except Unavailable as problem:
            if attempt == TRIES or not rows.on_postgres():
                for waiting in group:
                    waiting.error, waiting.is_alone = problem, False
                return
        except BaseException as problem:
            if len(group) > 1:  # nothing of the group is stored: find the one that cannot be
                log.warning("a group of batches is stored one by one", problem=repr(problem))
                for waiting in group:
                    store([waiting], may_wait=may_wait)
            else:
                group[0].error = problem
            return


def _store(cursor, group: list[Waiting], may_wait: bool) -> None:
    for waiting in group:
        waiting.error = waiting.position = None
    if rows.on_postgres():
        _lock_runs(cursor, group)
    elif beats.due_in() == 0:
        beats.write()
    news = News.begin()
    names = {name for waiting in group for name in (waiting.batch.writer, *_told_gone(waiting.docs))}
    positions = metric_store().positions(cursor, sorted(names), may_wait=may_wait)
    for waiting in group:
        position = positions.get(waiting.batch.writer)
        waiting.is_alone = position is None and not may_wait
        if not waiting.is_alone:
            _store_one(waiting, position, news)
    metric_store().write(cursor, news)


def _lock_runs(cursor, group: list[Waiting]) -> None:
    """Documents lock the run's row; with it first, two batches cannot wait for each other."""
    for waiting in group:
        if waiting.docs:
            cursor.execute("SELECT 1 FROM tracker_run WHERE id = %s FOR UPDATE", [waiting.batch.run])


def _told_gone(docs: list[dict[str, Any]]) -> Iterator[str]:
    """The writers that these documents will change beside their own: all are locked at once, in one order."""
    for entry in docs:
        doc = entry["doc"]
        if doc.get("type") == "event" and doc.get("name") == "gone" and isinstance(doc.get("data"), dict):
            writer = doc["data"].get("writer")
            if isinstance(writer, str) and is_id(writer):
                yield writer


def _store_one(waiting: Waiting, position: Position | None, news: News) -> None:
    batch = waiting.batch
    try:
        if position is None or position.run != batch.run:
            raise WriterUnknown
        if waiting.docs and batch.first == position.next:
            with transaction.atomic():  # documents that cannot be stored leave no trace
                documents.apply(run=waiting.run, writer=waiting.writer, docs=waiting.docs)
        is_new = metric_store().append(position, batch, waiting.body, waiting.encoding, news)
    except OperationalError:
        raise
    except Exception as problem:
        if not isinstance(problem, EncoreError):
            log.exception("a batch could not be stored", writer=batch.writer, first=batch.first, last=batch.last)
            if not waiting.docs:
                raise  # no savepoint around it: the transaction may be broken
        waiting.error = problem
        return
    waiting.next = position.next
    if is_new:
        waiting.position = position


@contextlib.contextmanager
def storable() -> Iterator[None]:
    """A database that is locked, full or gone for the moment is no fault of the batch: the sender waits and sends again."""
    try:
        yield
    except OperationalError as problem:
        log.warning("the database did not take it", problem=str(problem))
        raise Unavailable("The database cannot take it just now (locked, full or restarting): send it again.", retry_after=2) from problem
