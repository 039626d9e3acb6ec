"""Taking in batches: decode, check, one durable transaction, and only then the answer."""

from __future__ import annotations

import time
import zlib
from typing import Any

from tracker.domain.errors import Refused, TooLarge
from tracker.domain.limits import SENT_BYTES
from tracker.models import Token, User, Writer
from tracker.services import access, committing, repeats
from tracker.services.access import Access
from tracker.services.backpressure import hot_parts
from tracker.services.beats import beats
from tracker.store import wire, wire_json
from tracker.store.inflate import inflate
from tracker.store.metrics import metric_store

ACCESS_SECONDS = 3
"""For so long a writer's right to append is not asked again; so much later a withdrawn token, a stop or a deletion takes hold."""
MOST_ACCESS = 20_000


def append_batch(*, writer_id: str, user: User, token: Token | None, body: bytes, encoding: str, is_json: bool = False) -> dict[str, Any]:
    """Store one batch of a writer, exactly once. Answered after commit: ``{"next", "stop", "state"}``. ``is_json``: store/wire_json.py.

    Raises Refused, TooLarge (never acceptable), RangeConflict, KeylistUnknown (send again), RangeDiffers (set it aside), Busy,
    Unavailable (wait), WriterUnknown, RunDeleted, Forbidden.
    """
    if len(body) > SENT_BYTES:
        raise TooLarge(f"A batch is at most {SENT_BYTES // 2**20} MiB as sent: cut it into smaller ranges.")
    allowed = _may_append(writer_id, user, token)
    hot_parts.check(allowed.run.id)
    store = metric_store()
    inflated = inflate(body, encoding)
    if is_json := is_json and not inflated.startswith(wire.MAGIC):
        inflated = wire_json.packed(inflated, run=allowed.run.id, writer=writer_id, following=_following(writer_id))
        body, encoding = zlib.compress(inflated, 1), "deflate"
    batch = wire.decode(inflated, store.lookup(allowed.run.id))
    if batch.writer != writer_id or batch.run != allowed.run.id:
        raise Refused("The batch names another run or writer than it was posted to.", code="malformed")
    beats.note(batch.run)
    encoding = "" if encoding == "identity" else encoding
    waiting = committing.Waiting(allowed.run, allowed.writer, batch, body, encoding, docs=_documents(batch))
    committing.commit(waiting)
    if waiting.error is not None:
        raise waiting.error
    for frame in batch.frames:
        if isinstance(frame, wire.Dense) and frame.is_new:
            store.remember(batch.run, frame.keylist, (frame.types, frame.keys))
    if waiting.position is None:
        with committing.storable():
            repeats.require_same(batch, body, encoding, waiting.next, has_times=not is_json)
    else:
        hot_parts.note(batch.run, writer_id, waiting.position.hot_bytes)
    return {"next": waiting.next, "stop": allowed.stops, "state": allowed.run.state}


def _following(writer_id: str) -> int:
    with committing.storable():
        return Writer.objects.filter(id=writer_id).values_list("next", flat=True).first() or 0


# -- the right to append -------------------------------------------------------------------------------------------------------------

_access: dict[tuple[str, Any, Any], tuple[float, Access]] = {}


def _may_append(writer_id: str, user: User, token: Token | None) -> Access:
    key = (writer_id, user.pk, token.pk if token else None)
    now = time.monotonic()
    found = _access.get(key)
    if found is not None and found[0] > now:
        return found[1]
    _access.pop(key, None)
    with committing.storable():
        allowed = access.to_append(writer_id, user, token)
    if len(_access) >= MOST_ACCESS:
        _access.clear()
    _access[key] = now + ACCESS_SECONDS, allowed
    return allowed


def forget() -> None:
    """Drop what this process remembers of rights and sizes (tests that empty the database)."""
    _access.clear()
    committing.committer.rest()
    beats.forget()
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
