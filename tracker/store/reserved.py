"""Objects that have no row yet. Each is in the trash from before its first byte on, and leaves it in the commit that brings its row.

So a process that dies in between, or stands still for days, or reads a clock that is wrong, can at most lose its own work: an object that
was swept meanwhile cannot be claimed, and the commit that wanted it rolls back.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from datetime import timezone as zones

import structlog
from django.utils import timezone

from tracker.models import MetricTrash
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


def drop(object_key: str) -> None:
    """Delete an object that was put and is not wanted, now. Only after a claim that surely did not commit.

    Where the store is away it stays doomed: the next sweep takes it.
    """
    mine = MetricTrash.objects.filter(object_key=object_key)
    mine.update(delete_after=DOOMED)
    try:
        blob_store().delete(object_key)
    except Exception:
        log.exception("an object stays until the next sweep", object=object_key)
    else:
        mine.delete()
