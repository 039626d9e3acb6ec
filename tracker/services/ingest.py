"""Taking in batches: decode, check, one durable transaction, and only then the answer."""

from __future__ import annotations

import contextlib
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
from tracker.store.metrics import Position, metric_store

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


@dataclass
class _Waiting:
    """A decoded batch on its way through the committer."""

    access: _Access
    batch: wire.Batch
    body: bytes
    encoding: str
    next: int = 0
    is_over: bool = False
    error: BaseException | None = None
    position: Position | None = None
    docs: list[dict[str, Any]] = field(default_factory=list)


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

_queue: list[_Waiting] = []
_queue_lock = threading.Lock()
_leader = threading.Lock()


def _commit(waiting: _Waiting) -> None:
    """Group commit: whoever holds the leader's lock stores all that waits in this process in one transaction, with one sync.

    On PostgreSQL a transaction each: it commits concurrent ones together itself.
    """
    if rows.on_postgres() or connection.in_atomic_block:
        _store_group([waiting])
        return
    with _queue_lock:
        _queue.append(waiting)
    with _leader:
        if waiting.is_over:
            return  # an earlier leader took it along
        with _queue_lock:
            group = _queue[:GROUP]
            del _queue[:GROUP]
        if waiting not in group:  # more than a group before it: the next leaders take the rest
            with _queue_lock:
                _queue[:] = [other for other in _queue if other is not waiting]
            group.append(waiting)
        _store_group(group)


def _store_group(group: list[_Waiting]) -> None:
    """Store all of ``group``; what fails alone fails for itself. Never raises: each gets its outcome."""
    for attempt in (1, 2, 3):
        try:
            with _storable(), transaction.atomic(), rows.cursor() as cursor:
                positions: dict[str, Position] = {}
                last_steps: dict[str, int] = {}
                for waiting in group:
                    waiting.error = None
                    _store_one(cursor, waiting, positions, last_steps)
                for writer_id, position in positions.items():
                    metric_store().advance(cursor, writer_id, position, last_steps.get(writer_id))
            break
        except Unavailable as problem:
            if attempt == 3 or not rows.on_postgres():
                for waiting in group:
                    waiting.error = problem
                break
        except BaseException as problem:
            if len(group) > 1:  # nothing of the group is stored: find the one that cannot be
                for waiting in group:
                    _store_group([waiting])
                return
            group[0].error = problem
            break
    for waiting in group:
        waiting.is_over = True


def _store_one(cursor, waiting: _Waiting, positions: dict[str, Position], last_steps: dict[str, int]) -> None:
    batch, writer_id = waiting.batch, waiting.batch.writer
    try:
        if waiting.docs and rows.on_postgres():
            # Documents lock the run's row; in this order two batches cannot wait for each other.
            cursor.execute("SELECT 1 FROM tracker_run WHERE id = %s FOR UPDATE", [batch.run])
        position = positions.get(writer_id) or metric_store().position(cursor, writer_id)
        if position.run != batch.run:
            raise WriterUnknown
        if waiting.docs and batch.first == position.next:
            trial = Position(position.run, position.next, position.hot_bytes, position.hot_segments)
            with transaction.atomic():
                metric_store().append(cursor, trial, batch, waiting.body, waiting.encoding)
                documents.apply(run=waiting.access.run, writer=waiting.access.writer, docs=waiting.docs)
            is_new, position = True, trial
        else:
            is_new = metric_store().append(cursor, position, batch, waiting.body, waiting.encoding)
    except OperationalError:
        raise
    except Exception as problem:
        if not isinstance(problem, EncoreError):
            log.exception("a batch could not be stored", writer=writer_id, first=batch.first, last=batch.last)
            if not waiting.docs:
                raise  # no savepoint around it: the transaction may be broken
        waiting.error = problem
        return
    waiting.next = position.next
    if is_new:
        waiting.position = positions[writer_id] = position
        if batch.hi_step is not None:
            last_steps[writer_id] = max(batch.hi_step, last_steps.get(writer_id, batch.hi_step))


@contextlib.contextmanager
def _storable():
    """A database that is locked, full or gone for the moment is no fault of the batch: the sender waits and sends again."""
    try:
        yield
    except OperationalError as problem:
        log.warning("the database did not take it", problem=str(problem))
        raise Unavailable("The database cannot take it just now (locked, full or restarting): send it again.", retry_after=2) from problem
