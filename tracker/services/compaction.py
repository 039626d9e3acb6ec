"""Moving what is hot into blocks (docs/metric-store.md). What becomes of blocks: services/merging.py; what nobody needs: sweeping.py.

A crash at any point loses nothing: an object without a row is in the trash (store/reserved.py); segments go in the same commit that
brings the block's row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

import structlog
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Q
from django.utils import timezone

from tracker.domain.lifecycle import RunState
from tracker.models import Run, Writer
from tracker.services import backpressure, blocked, merging, summaries
from tracker.services.sweeping import discard_blocks, sweep_orphans, sweep_trash
from tracker.store import blocks, reserved, rows
from tracker.store.metrics import DamagedSegment, SegmentHead, metric_store

__all__ = ["compact_run", "discard_blocks", "due_runs", "is_spread", "run_due", "sweep_orphans", "sweep_trash"]

SMALL_BYTES = 65536
"""A writer with less than this in hot segments keeps them: a block would gain nothing. The index ``writer_hot`` has this number."""
SEGMENTS, WIDE_SEGMENTS, WIDE_KEYS = 64, 120, 1000
BYTES, WIDE_BYTES = 4 * 2**20, 16 * 2**20
SECONDS, WIDE_SECONDS = 30, 600
BLOCK_POINTS = 2_000_000
"""Bounds the memory of one block's making, about 50 bytes a point; a point that came alone (sparse) takes six times as much."""
LOOSE_WEIGHT = 6
LEASE_SECONDS = 120
"""So long one worker has a writer for itself. A block takes a second; should a worker take longer, the swap of ``upto`` decides."""
FAR_SECONDS = 2 * 86400
"""``compact_after`` is never set so far ahead (blocked.MOST): it comes from a process whose clock was wrong, and binds nobody."""
FAILED_SECONDS = 10
FAILURES = 3
"""So many in a row are not the writers' fault: the store or the database is away, and the round ends."""
RUNS_AT_ONCE = 200
log = structlog.get_logger()
_served = ""
"""The writer to whom this process came last in its round."""


def run_due(seconds: float = 20) -> int:
    """Compact every writer that is due for at most ``seconds``; the number of blocks made. Safe to run in several workers at once."""
    until = time.monotonic() + seconds
    made = 0
    while time.monotonic() < until:
        before = made
        made += _round(_candidates(), until)
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


def due_runs() -> list[str]:
    """Runs in which something may be due, in the order of ``run_due``: one task each where several workers share the work."""
    found = dict.fromkeys(run_id for _, run_id in _turns(_candidates()))
    return list(found)[:RUNS_AT_ONCE]


def compact_due_of(run_id: str, seconds: float = 20) -> int:
    """``run_due`` for one run."""
    until = time.monotonic() + seconds
    made = 0
    while count := _round(_candidates(run_id), until):
        made += count
    return made


def is_spread() -> bool:
    """Whether workers on several machines may share the work: SQLite has one machine."""
    return rows.on_postgres() and settings.CELERY_BROKER_URL.startswith(("redis://", "rediss://"))


# -- whose turn it is ------------------------------------------------------------------------------------------------------------------


def _candidates(run_id: str | None = None) -> list[tuple[str, str]]:
    """(writer, run) of all that wait with more than a little, largest first, but those that a worker has or that failed just now."""
    # The number stands in the text so that SQLite can prove that the partial index serves.
    sql = f"SELECT id, run_id FROM tracker_writer WHERE hot_bytes >= {SMALL_BYTES} "  # noqa: S608
    sql, args = sql + "AND (compact_after IS NULL OR compact_after <= %s OR compact_after > %s)", [_ago(0), _ago(-FAR_SECONDS)]
    if run_id is not None:
        sql, args = sql + " AND run_id = %s", [*args, run_id]
    with rows.cursor() as cursor:
        cursor.execute(sql + " ORDER BY hot_bytes DESC, id", args)
        return cursor.fetchall()


def _turns(candidates: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Every second turn goes to the largest, the others round and round, so that many large ones never keep a small one waiting."""
    global _served
    in_round = sorted(candidates)
    start = next((at for at, (writer, _) in enumerate(in_round) if writer > _served), 0)
    by_size, round_ = iter(candidates), iter(in_round[start:] + in_round[:start])
    seen: set[str] = set()
    while len(seen) < len(candidates):
        for turns in (by_size, round_):
            chosen = next((each for each in turns if each[0] not in seen), None)
            if chosen is None:
                continue
            seen.add(chosen[0])
            if turns is round_:
                _served = chosen[0]
            yield chosen


def _round(candidates: list[tuple[str, str]], until: float) -> int:
    made = failures = 0
    for writer_id, run_id in _turns(candidates):
        if time.monotonic() >= until or failures >= FAILURES:
            break
        try:
            count = _compact_writer(run_id, writer_id, force=False, alone=True)
        except Exception:
            # What it was about to do was not done, and is tried again: the segments are where they were.
            failures += 1
            log.exception("compaction failed, it will be tried again", run=run_id, writer=writer_id)
            _leave(writer_id, FAILED_SECONDS)
            continue
        failures = 0
        made += count
        if count:
            _merge(run_id, writer_id, until)
    return made


def _merge(run_id: str, writer_id: str, until: float) -> None:
    try:
        merging.merge_writer(run_id, writer_id, until=until)
    except Exception:
        log.exception("merging failed, it will be tried again", run=run_id, writer=writer_id)


def _take(writer_id: str) -> bool:
    """Keep other workers off this writer for a while; False if one of them has it."""
    now = timezone.now()
    is_free = Q(compact_after=None) | Q(compact_after__lte=now) | Q(compact_after__gt=now + timedelta(seconds=FAR_SECONDS))
    return Writer.objects.filter(is_free, id=writer_id).update(compact_after=now + timedelta(seconds=LEASE_SECONDS)) == 1


def _leave(writer_id: str, seconds: float = 0) -> None:
    try:
        Writer.objects.filter(id=writer_id).update(compact_after=timezone.now() + timedelta(seconds=seconds) if seconds else None)
    except Exception:
        log.exception("the writer stays taken until its time is over", writer=writer_id)


# -- one block -------------------------------------------------------------------------------------------------------------------------


def _compact_writer(run_id: str, writer_id: str, *, force: bool, alone: bool = False) -> int:
    """One block of the writer's oldest hot segments, if it is due: 1, else 0. ``alone``: only if no other worker is at it."""
    store = metric_store()
    fields = ("upto", "hot_bytes", "hot_segments", "finish", "summarised", "next", "blocked_at")
    writer = Writer.objects.filter(id=writer_id, run_id=run_id).only(*fields).first()
    if writer is None or not writer.hot_segments:
        return 0
    with rows.cursor() as cursor:
        heads = store.segment_heads(cursor, run_id, writer_id)
    if not heads or not (force or _is_due(run_id, writer, heads)) or (alone and not _take(writer_id)):
        return 0
    try:
        made = _move(run_id, writer, heads)
    except DamagedSegment as problem:
        blocked.note(run_id, writer, str(problem))
        return 0
    if made and writer.blocked_at:
        blocked.clear(run_id, writer)
    elif not made and alone:
        _leave(writer_id)
    return made


def _move(run_id: str, writer: Writer, heads: list[SegmentHead]) -> int:
    store = metric_store()
    if writer.summarised < heads[-1].last + 1:
        # Summaries are made from segments: none goes uncounted.
        summaries.summarise_run(run_id)
        writer.refresh_from_db(fields=["summarised"])
    chosen = _prefix([head for head in heads if head.last < writer.summarised])
    wanted = chosen or _prefix(heads)  # nothing is counted: either it cannot be read, or another process is at it
    with rows.snapshot() as cursor:
        batches = store.batches(cursor, run_id, writer.id, wanted[0].first, wanted[-1].first)
    if not chosen or len(batches) != len(chosen):
        return 0  # another compaction has them
    block = blocks.encode(writer.id, chosen[0].first, chosen[-1].last, [frame for batch in batches for frame in batch.frames])
    del batches
    points = sum(head.points for head in chosen)
    if block.points != points:
        raise DamagedSegment(f"of writer {writer.id}: the block would hold {block.points} points of {points}; not stored")
    object_key = reserved.put(f"blocks/{run_id}", ".block", block.data)
    tier = merging.FULL if merging.is_full(block) else 0
    try:
        with transaction.atomic(), rows.cursor() as cursor:
            moved = store.move_to_block(
                cursor, run=run_id, writer=writer.id, was_upto=writer.upto, heads=chosen, block=block, object_key=object_key, tier=tier
            )
    except reserved.Swept as problem:
        log.warning("a block will be made again", run=run_id, writer=writer.id, problem=str(problem))
        return 0
    if not moved:  # another one was faster; after a failure, whose outcome may be unknown, the trash has the object
        reserved.drop(object_key)
    return int(moved)


def _is_due(run_id: str, writer: Writer, heads: list[SegmentHead]) -> bool:
    if writer.hot_bytes < SMALL_BYTES:
        return False
    is_wide = _is_wide(run_id, heads)
    if writer.hot_segments >= (WIDE_SEGMENTS if is_wide else SEGMENTS) or writer.hot_bytes >= (WIDE_BYTES if is_wide else BYTES):
        return True
    if (
        writer.finish is not None
        or backpressure.is_pressed(run_id)
        or Run.objects.filter(id=run_id, state__in=[s.value for s in RunState if s.is_terminal]).exists()
    ):
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
        points += head.points * (LOOSE_WEIGHT if "*" in head.keylists.split() else 1)
        if chosen and (points > BLOCK_POINTS or head.last - chosen[0].first >= blocks.RANGE):
            break
        chosen.append(head)
    return chosen
