"""Writers of whose segments no block can be made: set aside, told on the run's page, and tried again later. Nothing of theirs is lost."""

from __future__ import annotations

from datetime import timedelta

import structlog
from django.utils import timezone

from tracker.domain import storable
from tracker.models import Event, Writer

FIRST, MOST = timedelta(minutes=10), timedelta(days=1)
"""It is tried again after as long as it has been blocked, within these."""
log = structlog.get_logger()


def note(run_id: str, writer: Writer, why: str) -> None:
    now = timezone.now()
    since = writer.blocked_at or now
    pause = min(max(now - since, FIRST), MOST)
    Writer.objects.filter(id=writer.id).update(blocked_at=since, compact_after=now + pause)
    log.error("a segment cannot be read; its writer is set aside", run=run_id, writer=writer.id, why=why, again_in=pause.total_seconds())
    if writer.blocked_at is None:
        _tell(run_id, writer.id, "blocked", {"why": f"A segment cannot be read: {why}", "segments": writer.hot_segments})
        writer.blocked_at = since


def clear(run_id: str, writer: Writer) -> None:
    """A block was made after all."""
    Writer.objects.filter(id=writer.id).update(blocked_at=None)
    log.info("a writer that was set aside is compacted again", run=run_id, writer=writer.id)
    _tell(run_id, writer.id, "unblocked", {})


def note_block(run_id: str, writer_id: str, object_key: str, why: str) -> None:
    log.error("a block cannot be read; it is not merged", run=run_id, writer=writer_id, object=object_key, why=why)
    _tell(run_id, writer_id, "block_damaged", {"why": f"Block {object_key} cannot be read: {why}"})


def _tell(run_id: str, writer_id: str, name: str, data: dict) -> None:
    time_us = int(timezone.now().timestamp() * 1_000_000)
    Event.objects.create(run_id=run_id, writer_id=writer_id, name=name, time_us=time_us, data=storable.value(data))
