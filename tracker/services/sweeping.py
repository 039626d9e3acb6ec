"""Taking away the objects that nobody can read any more: replaced and deleted blocks after a delay, orphans by listing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import structlog
from django.db.models import Sum
from django.utils import timezone

from tracker.models import MetricBlock, MetricTrash
from tracker.store import reserved
from tracker.store.blobs import MissingObject, blob_store
from tracker.store.metrics import metric_store

TRASH = timedelta(hours=1)
"""A reader holds a snapshot far shorter than this."""
ORPHAN = timedelta(hours=24)
"""An object without a row is an orphan after so long; a compaction takes seconds."""
AT_ONCE = 500
THREADS = 8
log = structlog.get_logger()


def discard_blocks(run_id: str) -> tuple[int, int]:
    """Put all blocks of a run into the trash (the run is being deleted for good); (blocks, their bytes). Call in its transaction."""
    mine = MetricBlock.objects.filter(run_id=run_id)
    freed = mine.aggregate(total=Sum("bytes"))["total"] or 0
    keys = list(mine.values_list("object_key", flat=True))
    for object_key in keys:
        metric_store().discard(object_key, timezone.now() + TRASH)
    mine.delete()
    return len(keys), freed


def sweep_trash(seconds: float = 60, sizes: dict[str, int] | None = None) -> int:
    """Delete the objects whose time in the trash is over, for at most ``seconds``; how many. ``sizes`` gets the bytes that each took.

    They are doomed first, in a commit of its own (store/reserved.py), and a row goes after its object: a crash repeats, not forgets.
    """
    until = time.monotonic() + seconds
    # What a crash or a failing store left, by chance so that nothing waits for good behind what cannot be deleted.
    swept = _delete_doomed(MetricTrash.objects.filter(delete_after=reserved.DOOMED).order_by("?")[:AT_ONCE], sizes)
    while time.monotonic() < until:
        due = MetricTrash.objects.filter(delete_after__gt=reserved.DOOMED, delete_after__lte=timezone.now()).order_by("delete_after")
        ids = list(due.values_list("id", flat=True)[:AT_ONCE])
        if not ids:
            break
        MetricTrash.objects.filter(id__in=ids).update(delete_after=reserved.DOOMED)
        gone = _delete_doomed(MetricTrash.objects.filter(id__in=ids, delete_after=reserved.DOOMED), sizes)
        swept += gone
        if not gone:
            break  # the store is away
    return swept


def _delete_doomed(doomed: Iterable[MetricTrash], sizes: dict[str, int] | None) -> int:
    rows = list(doomed)
    keys = [each.object_key for each in rows]
    used = set(MetricBlock.objects.filter(object_key__in=keys).values_list("object_key", flat=True))
    gone = _delete([key for key in keys if key not in used], sizes)
    MetricTrash.objects.filter(id__in=[each.id for each in rows if each.object_key in gone or each.object_key in used]).delete()
    return len(gone)


def sweep_orphans(older_than: timedelta = ORPHAN) -> int:
    """Delete block objects that no row knows (a compaction died before its commit); how many. Holds a portion of the list at a time."""
    swept = 0
    limit = timezone.now() - older_than
    portion: list[str] = []
    for key, _, stored_at in blob_store().list("blocks"):
        if stored_at < limit:
            portion.append(key)
        if len(portion) >= AT_ONCE:
            swept += _delete_unknown(portion)
            portion = []
    if portion:
        swept += _delete_unknown(portion)
    sweep_aside = getattr(blob_store(), "sweep_aside", None)
    if sweep_aside is not None:
        sweep_aside(limit)
    if swept:
        log.info("swept orphaned blocks", count=swept)
    return swept


def _delete_unknown(keys: list[str]) -> int:
    # In this order: a block that is replaced in between is found in the trash.
    known = set(MetricBlock.objects.filter(object_key__in=keys).values_list("object_key", flat=True))
    known |= set(MetricTrash.objects.filter(object_key__in=keys).values_list("object_key", flat=True))
    return len(_delete([key for key in keys if key not in known]))


def _delete(keys: list[str], sizes: dict[str, int] | None = None) -> set[str]:
    """Several at once, since each is a request where the store is S3; those that are gone."""
    store = blob_store()
    took: dict[str, int] = {}

    def delete(key: str) -> Exception | None:
        try:
            if sizes is not None:
                with contextlib.suppress(MissingObject):
                    took[key] = store.size(key)
            store.delete(key)
        except Exception as problem:
            return problem
        return None

    with ThreadPoolExecutor(THREADS, thread_name_prefix="sweep") as pool:
        problems = dict(zip(keys, pool.map(delete, keys), strict=True))
    if failed := {key: problem for key, problem in problems.items() if problem is not None}:
        log.warning("objects could not be deleted, it will be tried again", count=len(failed), problem=str(next(iter(failed.values()))))
    gone = {key for key, problem in problems.items() if problem is None}
    if sizes is not None:
        sizes.update((key, size) for key, size in took.items() if key in gone)
    return gone
