"""Objects that have no row yet. Each is in the trash from before its first byte on, and leaves it in the commit that brings its row.

So a process that dies in between, or stands still for days, or reads a clock that is wrong, can at most lose its own work: an object that
was swept meanwhile cannot be claimed, and the commit that wanted it rolls back.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from datetime import timezone as zones

import structlog
from django.utils import timezone

from tracker.models import MetricBlock, MetricTrash
from tracker.store.blobs import blob_store, random_key

UNCLAIMED = timedelta(hours=24)
"""So long an object may wait for its row. Compaction takes seconds; one that takes longer than this does its work again."""
DOOMED = datetime(1970, 1, 1, tzinfo=zones.utc)
"""``delete_after`` of what is being deleted: from here on no claim succeeds."""
log = structlog.get_logger()


class Swept(Exception):
    """The object was deleted before its row came; nothing was changed. Do the work again."""


def put(folder: str, suffix: str, data: bytes) -> str:
    """Store ``data`` under a new key below ``folder``, which ``claim`` must be asked for in the commit that brings its row.

    Call outside a transaction: the reservation has to be committed before the object is there.
    """
    object_key = random_key(folder, suffix)
    MetricTrash.objects.create(object_key=object_key, delete_after=timezone.now() + UNCLAIMED)
    blob_store().put(object_key, data)
    return object_key


def claim(object_key: str) -> None:
    """In the transaction that brings the object's row. Raises Swept, which must roll it back."""
    taken, _ = MetricTrash.objects.filter(object_key=object_key, delete_after__gt=DOOMED).delete()
    if taken != 1:
        raise Swept(f"{object_key} was swept before its row came; nothing was moved")


def sweep(limit: int = 1000) -> int:
    """Delete the objects whose time in the trash is over; how many. A row goes after its object, so that a crash repeats, not forgets."""
    due = list(MetricTrash.objects.filter(delete_after__lte=timezone.now()).order_by("delete_after").values_list("pk", flat=True)[:limit])
    # Committed before the first object goes. A claim in flight holds its row's lock: it is waited for, and its row is gone then.
    MetricTrash.objects.filter(pk__in=due).update(delete_after=DOOMED)
    swept = 0
    for trash in MetricTrash.objects.filter(pk__in=due, delete_after=DOOMED):
        try:
            swept += _delete(trash)
        except Exception:  # the others do not wait for it; it stays, and is tried again
            log.exception("an object could not be deleted", object=trash.object_key)
    return swept


def drop(object_key: str) -> None:
    """Delete an object that was put and is not wanted, now. Only after a claim that surely did not commit."""
    MetricTrash.objects.filter(object_key=object_key).update(delete_after=DOOMED)
    for trash in MetricTrash.objects.filter(object_key=object_key):
        _delete(trash)


def _delete(trash: MetricTrash) -> int:
    is_read = MetricBlock.objects.filter(object_key=trash.object_key).exists()  # no row should be in both; one that is read stays
    if not is_read:
        blob_store().delete(trash.object_key)
    trash.delete()
    return int(not is_read)
