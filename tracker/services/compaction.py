"""Moving what is hot into blocks, one tier; and taking away what nobody can read any more.

A crash at any point loses nothing: an object without a row is an orphan, found by listing; segments go in the same commit that
brings the block's row.
"""

from __future__ import annotations

import time
from datetime import timedelta

import structlog
from django.db import connection, transaction
from django.utils import timezone

from tracker.domain.lifecycle import RunState
from tracker.models import MetricBlock, MetricTrash, Run, Writer
from tracker.services import summaries
from tracker.store import blocks, reserved, rows
from tracker.store.blobs import blob_store
from tracker.store.metrics import SegmentHead, metric_store

SMALL_BYTES = 65536
"""A writer with less than this in hot segments keeps them: a block would gain nothing. The index ``writer_hot`` has this number."""
SEGMENTS, WIDE_SEGMENTS, WIDE_KEYS = 64, 120, 1000
BYTES, WIDE_BYTES = 4 * 2**20, 16 * 2**20
SECONDS, WIDE_SECONDS = 30, 120
BLOCK_POINTS = 4_000_000
TRASH = timedelta(hours=1)
"""A reader holds a snapshot far shorter than this."""
ORPHAN = timedelta(hours=24)
"""An object without a row is an orphan after so long; a compaction takes seconds."""
log = structlog.get_logger()


def run_due(seconds: float = 20) -> int:
    """Compact every writer that is due, largest first, for at most ``seconds``; the number of blocks made. Safe to run twice at once."""
    until = time.monotonic() + seconds
    made = 0
    while time.monotonic() < until:
        before = made
        for writer_id, run_id in _candidates():
            if time.monotonic() >= until:
                break
            made += _compact_writer(run_id, writer_id, force=False)
        if made == before:
            break
    return made


def compact_run(run_id: str, *, force: bool = False) -> int:
    """Compact what is due in this run; with ``force`` all of it, however small or young. The number of blocks made."""
    made = 0
    for writer_id in Writer.objects.filter(run_id=run_id, hot_segments__gt=0).order_by("id").values_list("id", flat=True):
        while count := _compact_writer(run_id, writer_id, force=force):
            made += count
    return made


def _candidates() -> list[tuple[str, str]]:
    with rows.cursor() as cursor:
        # The number stands in the text so that SQLite can prove that the partial index serves.
        cursor.execute(f"SELECT id, run_id FROM tracker_writer WHERE hot_bytes >= {SMALL_BYTES} ORDER BY hot_bytes DESC")  # noqa: S608
        return cursor.fetchall()


def _compact_writer(run_id: str, writer_id: str, *, force: bool) -> int:
    """One block of the writer's oldest hot segments, if it is due: 1, else 0."""
    store = metric_store()
    writer = (
        Writer.objects.filter(id=writer_id, run_id=run_id).only("upto", "hot_bytes", "hot_segments", "finish", "summarised", "next").first()
    )
    if writer is None or not writer.hot_segments:
        return 0
    with rows.cursor() as cursor:
        heads = store.segment_heads(cursor, run_id, writer_id)
    if not heads or not (force or _is_due(run_id, writer, heads)):
        return 0
    if writer.summarised < heads[-1].last + 1:
        # Summaries are made from segments: none goes uncounted.
        summaries.summarise_run(run_id)
        writer.refresh_from_db(fields=["summarised"])
    heads = _prefix([head for head in heads if head.last < writer.summarised])
    if not heads:
        return 0
    with rows.snapshot() as cursor:
        batches = store.batches(cursor, run_id, writer_id, heads[0].first, heads[-1].first)
    if len(batches) != len(heads):
        return 0  # another compaction has them
    block = blocks.encode(writer_id, heads[0].first, heads[-1].last, [frame for batch in batches for frame in batch.frames])
    if block.points != sum(head.points for head in heads):
        raise RuntimeError(f"a block of writer {writer_id} holds {block.points} points of {sum(head.points for head in heads)}; not stored")
    object_key = reserved.put(f"blocks/{run_id}", ".block", block.data)
    try:
        with transaction.atomic(), rows.cursor() as cursor:
            moved = store.move_to_block(
                cursor, run=run_id, writer=writer_id, was_upto=writer.upto, heads=heads, block=block, object_key=object_key
            )
        if not moved:  # another one was faster; after a failure, whose outcome may be unknown, the object waits in the trash
            reserved.drop(object_key)
        return int(moved)
    except reserved.Swept as problem:
        log.warning("a block will be made again", writer=writer_id, problem=str(problem))
        return 0


def _is_due(run_id: str, writer: Writer, heads: list[SegmentHead]) -> bool:
    if writer.hot_bytes < SMALL_BYTES:
        return False
    is_wide = _is_wide(run_id, heads)
    if writer.hot_segments >= (WIDE_SEGMENTS if is_wide else SEGMENTS) or writer.hot_bytes >= (WIDE_BYTES if is_wide else BYTES):
        return True
    if writer.finish is not None or Run.objects.filter(id=run_id, state__in=[s.value for s in RunState if s.is_terminal]).exists():
        return True
    with rows.cursor() as cursor:
        cursor.execute(
            'SELECT 1 FROM tracker_metricsegment WHERE run_id = %s AND writer_id = %s AND "first" = %s AND received_at < %s',
            [run_id, writer.id, heads[0].first, _ago(WIDE_SECONDS if is_wide else SECONDS)],
        )
        return cursor.fetchone() is not None


def _is_wide(run_id: str, heads: list[SegmentHead]) -> bool:
    """Thousands of keys with few rows each make poor columns: such a run waits for longer ones."""
    for name in {name for head in heads for name in head.keylists.split()} - {"*"}:
        keylist = metric_store().keylist(run_id, name)
        if keylist is not None and len(keylist[1]) > WIDE_KEYS:
            return True
    return False


def _ago(seconds: float):
    return connection.ops.adapt_datetimefield_value(timezone.now() - timedelta(seconds=seconds))


def _prefix(heads: list[SegmentHead]) -> list[SegmentHead]:
    """As many from the start as make one block."""
    points, chosen = 0, []
    for head in heads:
        points += head.points
        if chosen and points > BLOCK_POINTS:
            break
        chosen.append(head)
    return chosen


# -- what is no longer needed ----------------------------------------------------------------------------------------------------------


def discard_blocks(run_id: str) -> int:
    """Put all blocks of a run into the trash (the run is being deleted for good). Call in its transaction."""
    keys = list(MetricBlock.objects.filter(run_id=run_id).values_list("object_key", flat=True))
    for object_key in keys:
        metric_store().discard(object_key, timezone.now() + TRASH)
    MetricBlock.objects.filter(run_id=run_id).delete()
    return len(keys)


def sweep_trash(limit: int = 1000) -> int:
    """Delete the objects whose time in the trash is over; how many."""
    return reserved.sweep(limit)


def sweep_orphans(older_than: timedelta = ORPHAN) -> int:
    """Delete block objects that no row knows (a compaction died before its commit); how many."""
    swept = 0
    limit = timezone.now() - older_than
    portion: list[str] = []

    def delete_unknown() -> int:
        known = set(MetricBlock.objects.filter(object_key__in=portion).values_list("object_key", flat=True))
        known |= set(MetricTrash.objects.filter(object_key__in=portion).values_list("object_key", flat=True))
        gone = [key for key in portion if key not in known]
        for key in gone:
            blob_store().delete(key)
        portion.clear()
        return len(gone)

    for key, _, stored_at in blob_store().list("blocks"):
        if stored_at < limit:
            portion.append(key)
        if len(portion) >= 500:
            swept += delete_unknown()
    swept += delete_unknown() if portion else 0
    sweep_aside = getattr(blob_store(), "sweep_aside", None)
    if sweep_aside is not None:
        sweep_aside(limit)
    if swept:
        log.info("swept orphaned blocks", count=swept)
    return swept
