"""Neighbouring blocks of one writer become one, eight to one in tiers, and once more when their run is over.

The new object is written aside; one commit puts its row in the place of the old ones and their objects into the trash. A reader sees
either the old rows or the new one, and finds the old objects for as long as the trash keeps them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from datetime import timedelta

import structlog
from django.db import OperationalError, transaction
from django.utils import timezone

from tracker.domain.lifecycle import RunState
from tracker.models import MetricBlock
from tracker.services import blocked
from tracker.services.sweeping import TRASH
from tracker.store import blocks, joining, reserved, rows
from tracker.store.blobs import MissingObject, blob_store
from tracker.store.metrics import metric_store

FAN = 8
FULL_ROWS, FULL_POINTS, KEY_POINTS = blocks.ROWS // 2, 1_000_000, 2 * blocks.ROWS
"""A block with so many rows on an axis, and so many points or so many of each key, is worth no merging. All points of a key are in memory
at once where blocks are joined, about 160 bytes each: a block of one key is full long before it has FULL_POINTS."""
MERGED_POINTS, MERGED_BYTES = 8_000_000, 32 * 2**20
"""Of what is merged at once. Both bound the memory (about three times the bytes) and what a step up may write again."""
FINAL, FULL, DAMAGED = 100, 200, 201
"""Tiers beside the count of merges: the last one of a run that is over, no room for more, cannot be read. The index ``block_open`` and
merging by eights see what is below FINAL."""
QUIET = timedelta(hours=1)
"""A run that is over is merged for good when its newest block is so old: senders may come back."""
log = structlog.get_logger()


class _Overtaken(Exception):
    """Another process merged or deleted one of the blocks meanwhile."""


def is_full(block: blocks.Encoded) -> bool:
    is_long = block.rows >= FULL_ROWS and block.points >= min(FULL_POINTS, KEY_POINTS * block.keys)
    return is_long or block.points >= MERGED_POINTS or len(block.data) >= MERGED_BYTES


def merge_writer(run_id: str, writer_id: str, *, until: float = float("inf")) -> int:
    """Merge eights of this writer's blocks while there are any; the number of blocks made."""
    made = 0
    while time.monotonic() < until:
        chosen = _eight(run_id, writer_id)
        if chosen is None:
            break
        if not _fit(chosen[:2]):
            MetricBlock.objects.filter(id=chosen[0].id, tier=chosen[0].tier).update(tier=FULL)
        elif _merge(chosen, chosen[0].tier + 1):
            made += 1
        else:
            break
    return made


def finish_writer(run_id: str, writer_id: str) -> int:
    """Merge what is left of a writer that sends no more, to as few blocks as the bounds allow; the number of blocks made."""
    made = 0
    there = list(MetricBlock.objects.filter(run_id=run_id, writer_id=writer_id).order_by("first", "id"))
    for is_open, neighbours in itertools.groupby(there, key=lambda block: block.tier < FULL):
        if is_open:
            for portion in _portions(list(neighbours)):
                if len(portion) > 1:
                    made += _merge(portion, FINAL)
                else:
                    MetricBlock.objects.filter(id=portion[0].id, tier__lt=FINAL).update(tier=FINAL)
    return made


def finish_run(run_id: str) -> int:
    """``finish_writer`` for all writers of a run."""
    writers = MetricBlock.objects.filter(run_id=run_id, tier__lt=FINAL).order_by().values_list("writer_id", flat=True).distinct()
    return sum(finish_writer(run_id, writer_id) for writer_id in list(writers))


def merge_due(seconds: float = 60) -> int:
    """What compaction, which merges as it goes, has left: eights after a crash, and the rest of runs that are over."""
    until = time.monotonic() + seconds
    made = 0
    for work, found in ((merge_writer, _eights_left()), (finish_writer, _over())):
        for run_id, writer_id in found:
            if time.monotonic() >= until:
                return made
            try:
                made += work(run_id, writer_id)
            except Exception:
                log.exception("merging failed, it will be tried again", run=run_id, writer=writer_id)
    return made


# -- which -----------------------------------------------------------------------------------------------------------------------------


def _eight(run_id: str, writer_id: str) -> list[MetricBlock] | None:
    """The first eight neighbours of the lowest tier that has so many."""
    mine = MetricBlock.objects.filter(run_id=run_id, writer_id=writer_id).order_by("first", "id")
    oldest = mine.filter(tier__lt=FINAL).values_list("first", flat=True).first()
    if oldest is None:
        return None
    runs = [list(same) for _, same in itertools.groupby(mine.filter(first__gte=oldest), key=lambda block: block.tier)]
    fitting = [same[:FAN] for same in runs if len(same) >= FAN and same[0].tier < FINAL]
    return min(fitting, key=lambda same: same[0].tier, default=None)


def _portions(neighbours: list[MetricBlock]) -> Iterator[list[MetricBlock]]:
    """As many at a time as the bounds allow."""
    portion: list[MetricBlock] = []
    for block in neighbours:
        if portion and not _fit([*portion, block]):
            yield portion
            portion = []
        portion.append(block)
    if portion:
        yield portion


def _fit(chosen: list[MetricBlock]) -> bool:
    return (
        sum(block.points for block in chosen) <= MERGED_POINTS
        and sum(block.bytes for block in chosen) <= MERGED_BYTES
        and max(block.last for block in chosen) - min(block.first for block in chosen) < blocks.RANGE
    )


def _eights_left() -> list[tuple[str, str]]:
    with rows.cursor() as cursor:
        cursor.execute(
            # The number stands in the text so that SQLite can prove that the partial index serves.
            f"SELECT run_id, writer_id FROM tracker_metricblock WHERE tier < {FINAL} "  # noqa: S608
            "GROUP BY run_id, writer_id, tier HAVING COUNT(*) >= %s",
            [FAN],
        )
        return list(dict.fromkeys((run_id, writer_id) for run_id, writer_id in cursor.fetchall()))


def _over() -> list[tuple[str, str]]:
    """Writers that have blocks to be merged for good: they, or their runs, are over, and nothing came for a while."""
    ended = [state.value for state in RunState if state.is_terminal]
    open_ = MetricBlock.objects.filter(tier__lt=FINAL)
    over = open_.filter(run__state__in=ended) | open_.filter(writer__finish__isnull=False)
    newest = over.order_by().values_list("run_id", "writer_id").distinct()
    young = MetricBlock.objects.filter(tier__lt=FINAL, created_at__gt=timezone.now() - QUIET).values("writer_id")
    return list(newest.exclude(writer_id__in=young))


# -- one merge -------------------------------------------------------------------------------------------------------------------------


def _merge(chosen: list[MetricBlock], tier: int) -> int:
    """One block of these, or of as many from the start as the bounds allow (at least two do): 1, or 0 if another was faster."""
    run_id, writer_id = chosen[0].run_id, chosen[0].writer_id
    whole = chosen
    while not _fit(chosen):
        chosen = chosen[:-1]
    try:
        parts = [blob_store().read(each.object_key) for each in chosen]
    except MissingObject as problem:
        if MetricBlock.objects.filter(id__in=[each.id for each in chosen]).count() == len(chosen):
            log.error("a block's object is missing; its neighbours are not merged", run=run_id, writer=writer_id, object=str(problem))
        return 0
    try:
        block = joining.join(writer_id, parts)
    except blocks.DamagedBlock as problem:
        return _set_aside(chosen, parts, str(problem))
    del parts
    if is_full(block) or len(chosen) < len(whole):
        tier = FULL
    object_key = reserved.put(f"blocks/{run_id}", ".block", block.data)
    try:
        with transaction.atomic():
            if not metric_store().replace_blocks(chosen, block, object_key=object_key, tier=tier, delete_after=timezone.now() + TRASH):
                raise _Overtaken
    except _Overtaken:
        reserved.drop(object_key)
        return 0
    except (OperationalError, reserved.Swept) as problem:  # two merges of overlapping blocks: the database let one go first
        # Whether a commit was done is not known where the connection broke: the object stays, and the trash has it.
        log.info("a merge gave way", run=run_id, writer=writer_id, problem=str(problem))
        return 0
    return 1


def _set_aside(chosen: list[MetricBlock], parts: list[bytes], why: str) -> int:
    """Find which of them cannot be read, so that the others go on without it."""
    for each, data in zip(chosen, parts, strict=True):
        try:
            joining.join(each.writer_id, [data])
        except blocks.DamagedBlock as problem:
            if MetricBlock.objects.filter(id=each.id).exclude(tier=DAMAGED).update(tier=DAMAGED):
                blocked.note_block(each.run_id, each.writer_id, each.object_key, str(problem))
            return 0
    raise RuntimeError(f"blocks that can each be read cannot be joined: {why}")
