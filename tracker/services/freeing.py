"""How many bytes a run takes, and emptying the trash with an account of what it really freed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from django.conf import settings
from django.db.models import Min, Sum
from django.utils import timezone

from tracker.models import MetricBlock, MetricSegment, MetricTrash, Run, Writer
from tracker.services import cold, compaction, dropping, runs

OBJECTS_AT_ONCE = 10_000
RUNS_AT_ONCE = 100
log = structlog.get_logger()


@dataclass
class Size:
    """Of one run's metrics and console lines. Blobs (source, media) belong to the project, which may share them between runs."""

    points: int = 0
    block_bytes: int = 0
    hot_bytes: int = 0
    """In the database, waiting for compaction or too small for it."""
    log_bytes: int = 0

    @property
    def bytes(self) -> int:
        return self.block_bytes + self.hot_bytes + self.log_bytes


def size_of(run_id: str) -> Size:
    stored = MetricBlock.objects.filter(run_id=run_id).aggregate(points=Sum("points"), bytes=Sum("bytes"))
    hot = MetricSegment.objects.filter(run_id=run_id).aggregate(points=Sum("points"))["points"] or 0
    waiting = Writer.objects.filter(run_id=run_id).aggregate(bytes=Sum("hot_bytes"))["bytes"] or 0
    return Size((stored["points"] or 0) + hot, stored["bytes"] or 0, waiting, dropping.log_bytes(run_id))


@dataclass
class Freed:
    """What one emptying of the trash did. ``object_bytes`` left the store; ``row_bytes`` the database, which uses the room again."""

    runs: int = 0
    objects: int = 0
    object_bytes: int = 0
    row_bytes: int = 0
    orphans: int = 0

    @property
    def bytes(self) -> int:
        return self.object_bytes + self.row_bytes


def empty_trash() -> Freed:
    """Purge runs whose days in the trash are over, delete objects whose hour is. Safe to run twice at once; bounded, so run it often."""
    found = Freed()
    limit = timezone.now() - timedelta(days=settings.ENCORE_TRASH_DAYS)
    due = list(Run.objects.filter(deleted_at__lt=limit, purged_at=None).values_list("id", flat=True)[:RUNS_AT_ONCE])
    sizes = {run: size_of(run) for run in due}
    runs.purge_trash()
    for run in Run.objects.filter(id__in=due).exclude(purged_at=None).values_list("id", flat=True):
        found.runs += 1
        found.row_bytes += sizes[run].hot_bytes + sizes[run].log_bytes
    found.objects, found.object_bytes = sweep_objects()
    found.orphans = compaction.sweep_orphans() + cold.sweep_orphans()
    if found.bytes or found.orphans:
        log.info("emptied the trash", **vars(found))
    return found


def sweep_objects() -> tuple[int, int]:
    """Delete the objects whose time in the trash is over: (how many, the bytes that they took)."""
    sizes: dict[str, int] = {}
    compaction.sweep_trash(sizes=sizes)
    if sizes:
        log.info("freed objects", objects=len(sizes), bytes=sum(sizes.values()))
    return len(sizes), sum(sizes.values())


@dataclass
class Waiting:
    runs: int = 0
    run_bytes: int = 0
    next_run_at: datetime | None = None
    objects: int = 0
    next_object_at: datetime | None = None


def waiting() -> Waiting:
    """What lies in the trash, and when the next of it goes."""
    found = Waiting()
    days = timedelta(days=settings.ENCORE_TRASH_DAYS)
    for run, deleted_at in (
        Run.objects.exclude(deleted_at=None).filter(purged_at=None).values_list("id", "deleted_at").order_by("deleted_at")
    ):
        found.runs += 1
        found.run_bytes += size_of(run).bytes
        found.next_run_at = found.next_run_at or deleted_at + days
    found.objects = MetricTrash.objects.count()
    found.next_object_at = MetricTrash.objects.aggregate(at=Min("delete_after"))["at"]
    return found
