"""Taking in batches: decode, check, one durable transaction, and only then the answer."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import structlog
from django.db import OperationalError, connection, transaction

from tracker.domain.errors import EncoreError, Refused, TooLarge, Unavailable, WriterUnknown
from tracker.models import Run, Token, User, Writer
from tracker.services import documents, writers
from tracker.services.backpressure import hot_parts
from tracker.store import rows, wire
from tracker.store.inflate import SENT_BYTES, inflate
from tracker.store.metrics import News, Position, metric_store

ACCESS_SECONDS = 3
"""For so long a writer's right to append is not asked again; so much later a withdrawn token, a stop or a deletion takes hold."""
MOST_ACCESS = 20_000
GROUP = 256
log = structlog.get_logger()


@dataclass(slots=True)
class _Access:
    writer: Writer
    run: Run
    until: float


def _taken() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(slots=True)
class _Waiting:
    """A decoded batch on its way through the committer."""

    access: _Access
    batch: wire.Batch
    body: bytes
    encoding: str
    next: int = 0
    error: BaseException | None = None
    position: Position | None = None
    docs: list[dict[str, Any]] = field(default_factory=list)
    is_over: threading.Lock = field(default_factory=_taken)
    """Released when the outcome stands."""


def append_batch(*, writer_id: str, user: User, token: Token | None, body: bytes, encoding: str) -> dict[str, Any]:
    """Store one batch of a writer, exactly once. Answered after commit: ``{"next", "stop", "state"}``.

    Raises Refused, TooLarge (never acceptable), RangeConflict, KeylistUnknown (send again), Busy, Unavailable (wait), WriterUnknown,
    RunDeleted, Forbidden.
    """
    if len(body) > SENT_BYTES:
        raise TooLarge(f"A batch is at most {SENT_BYTES // 2**20} MiB as sent: cut it into smaller ranges.")
    access = _may_append(writer_id, user, token)
    hot_parts.check(access.run.id)
    store = metric_store()
    batch = wire.decode(inflate(body, encoding), store.lookup(access.run.id))
    if batch.writer != writer_id or batch.run != access.run.id:
        raise Refused("The batch names another run or writer than it was posted to.", code="malformed")
    waiting = _Waiting(access, batch, body, "" if encoding == "identity" else encoding, docs=_documents(batch))
    _commit(waiting)
    if waiting.error is not None:
        raise waiting.error
    for frame in batch.frames:
        if isinstance(frame, wire.Dense) and frame.is_new:
            store.remember(batch.run, frame.keylist, (frame.types, frame.keys))
    if waiting.position is not None:
        hot_parts.note(batch.run, writer_id, waiting.position.hot_bytes)
    run = access.run
    return {"next": waiting.next, "stop": writers.stops(run), "state": run.state}


# -- the right to append -------------------------------------------------------------------------------------------------------------

_access: dict[tuple[str, Any, Any], _Access] = {}


def _may_append(writer_id: str, user: User, token: Token | None) -> _Access:
    key = (writer_id, user.pk, token.pk if token else None)
    now = time.monotonic()
    found = _access.get(key)
    if found is not None and found.until > now:
        return found
    _access.pop(key, None)
    with _storable():
        writer = writers.get_for_append(writer_id, user, token)
    if len(_access) >= MOST_ACCESS:
        _access.clear()
    found = _access[key] = _Access(writer, writer.run, now + ACCESS_SECONDS)
    return found


def forget() -> None:
    """Drop what this process remembers of rights and sizes (tests that empty the database)."""
    _access.clear()
    hot_parts.forget()
    metric_store().forget()


def _documents(batch: wire.Batch) -> list[dict[str, Any]]:
    """The batch's documents, with an event for each hole, so that a loss is seen on the run's page."""
    docs = list(batch.docs)
    now = time.time_ns() // 1000
    for first, last in batch.holes:
        event = {"type": "event", "name": "hole", "data": {"first": first, "last": last}}
        docs.append({"n": first, "step": None, "time": now, "doc": event})
    docs.sort(key=lambda entry: entry["n"])
    return docs


# -- committing ----------------------------------------------------------------------------------------------------------------------


class _Committer:
    """Group commit on SQLite: one thread stores all that waits in this process in one transaction, with one sync.

    One thread, so one connection, whose page cache and prepared statements stay warm; while it syncs, the others decode.
    """

    def __init__(self) -> None:
        self._begin()
        os.register_at_fork(after_in_child=self._begin)  # threads stay behind

    def _begin(self) -> None:
        self._queue: queue.SimpleQueue[_Waiting] = queue.SimpleQueue()
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    def commit(self, waiting: _Waiting) -> None:
        if self._thread is None:
            with self._start:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
                    self._thread.start()
        self._queue.put(waiting)
        waiting.is_over.acquire()

    def _run(self) -> None:
        while True:
            group = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while len(group) < GROUP:
                    group.append(self._queue.get_nowait())
            _store_group(group)
            if any(isinstance(waiting.error, Unavailable) for waiting in group):
                connection.close()  # the next group finds a fresh one
            for waiting in group:
                waiting.is_over.release()


_committer = _Committer()


def _commit(waiting: _Waiting) -> None:
    """With all that wait at the same time; on PostgreSQL a transaction each: it commits concurrent ones together itself."""
    if rows.on_postgres() or connection.in_atomic_block:
        _store_group([waiting])
    else:
        _committer.commit(waiting)


def _store_group(group: list[_Waiting]) -> None:
    """Store all of ``group``; what fails alone fails for itself. Never raises: each gets its outcome."""
    for attempt in (1, 2, 3):
        try:
            with _storable(), transaction.atomic(), rows.cursor() as cursor:
                _lock_runs(cursor, group)
                news = News.begin()
                positions = metric_store().positions(cursor, list({waiting.batch.writer for waiting in group}))
                for waiting in group:
                    waiting.error = waiting.position = None
                    _store_one(waiting, positions.get(waiting.batch.writer), news)
                metric_store().write(cursor, news)
            return
        except Unavailable as problem:
            if attempt == 3 or not rows.on_postgres():
                for waiting in group:
                    waiting.error = problem
                return
        except BaseException as problem:
            if len(group) > 1:  # nothing of the group is stored: find the one that cannot be
                for waiting in group:
                    _store_group([waiting])
            else:
                group[0].error = problem
            return


def _lock_runs(cursor, group: list[_Waiting]) -> None:
    """Documents lock the run's row; with it first, two batches cannot wait for each other."""
    if rows.on_postgres():
        for waiting in group:
            if waiting.docs:
                cursor.execute("SELECT 1 FROM tracker_run WHERE id = %s FOR UPDATE", [waiting.batch.run])


def _store_one(waiting: _Waiting, position: Position | None, news: News) -> None:
    batch = waiting.batch
    try:
        if position is None or position.run != batch.run:
            raise WriterUnknown
        if waiting.docs and batch.first == position.next:
            with transaction.atomic():  # documents that cannot be stored leave no trace
                documents.apply(run=waiting.access.run, writer=waiting.access.writer, docs=waiting.docs)
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
def _storable():
    """A database that is locked, full or gone for the moment is no fault of the batch: the sender waits and sends again."""
    try:
        yield
    except OperationalError as problem:
        log.warning("the database did not take it", problem=str(problem))
        raise Unavailable("The database cannot take it just now (locked, full or restarting): send it again.", retry_after=2) from problem
