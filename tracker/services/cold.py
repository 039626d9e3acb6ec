"""Moving blocks of old runs to the cold store: another folder, bucket or storage class, read as before, only slower and for less money."""

from __future__ import annotations

from datetime import timedelta

from django.db import transaction
from django.utils import timezone

from tracker.domain.errors import Invalid
from tracker.models import MetricBlock, MetricTrash
from tracker.services import compaction, merging, sweeping
from tracker.services.dropping import Dropped
from tracker.store.blobs import COLD, MissingObject, blob_store, has_cold, random_key
from tracker.store.metrics import metric_store


def require() -> None:
    if not has_cold():
        raise Invalid(
            "This instance has no cold store: set ENCORE_COLD_STORE (a folder), or with S3 ENCORE_COLD_S3_BUCKET or ENCORE_COLD_S3_CLASS.",
            action="no cold store",
        )


def move(run_id: str, *, dry_run: bool = False) -> Dropped:
    """Move a run's blocks that are not there yet; points and bytes of those. What is small enough to stay in the database stays there."""
    found = Dropped()
    if not has_cold():
        return found
    if not dry_run:
        compaction.compact_run(run_id)
        merging.finish_run(run_id)  # to as few blocks as there can be: each is a read of its own, and cold reads are slow
    for block in MetricBlock.objects.filter(run_id=run_id).exclude(object_key__startswith=f"{COLD}/").order_by("id"):
        if dry_run or _move(block):
            found.points += block.points
            found.bytes += block.bytes
    return found


def _move(block: MetricBlock) -> bool:
    """One block: written there, then swapped in one commit, as a merge does; a reader finds the one or the other."""
    key = random_key(f"{COLD}/blocks/{block.run_id}", ".block")
    try:
        blob_store().put(key, blob_store().read(block.object_key))
    except MissingObject:
        return False  # merged meanwhile; the next pass finds what it became
    moved = False
    try:
        if blob_store().size(key) != block.bytes:
            raise RuntimeError(f"block {block.id} arrived in the cold store with another size; it stays where it was")
        with transaction.atomic():
            moved = bool(MetricBlock.objects.filter(id=block.id, object_key=block.object_key).delete()[0])
            if moved:
                metric_store().discard(block.object_key, timezone.now() + sweeping.TRASH)
                block.pk, block.object_key = None, key  # a row of its own, so that a merge that has read the old one finds it gone
                block.save(force_insert=True)
    finally:
        if not moved:
            blob_store().delete(key)
    return moved


def sweep_orphans(older_than: timedelta = sweeping.ORPHAN) -> int:
    """Delete objects of the cold store that no row knows (a move died before its commit); how many."""
    if not has_cold():
        return 0
    swept = 0
    limit = timezone.now() - older_than
    for key, _, stored_at in blob_store().list(COLD):
        if stored_at < limit and not _is_known(key):
            blob_store().delete(key)
            swept += 1
    return swept


def _is_known(key: str) -> bool:
    return MetricBlock.objects.filter(object_key=key).exists() or MetricTrash.objects.filter(object_key=key).exists()
