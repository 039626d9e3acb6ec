"""Taking points of some keys, or console lines, away from a run for good.

Blocks are immutable: one that holds such a key is written anew without it, and the old one goes to the trash, in one commit. What the
points amounted to (last, min, max, mean, count) stays, and an event on the run says what went.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from re import Pattern

import numpy as np
from django.db import connection, transaction
from django.utils import timezone

from tracker.domain import lineage
from tracker.models import Event, LogChunk, MetricBlock, MetricSummary, Run, Writer
from tracker.services import compaction, export_points, summaries, sweeping
from tracker.store import blocks, reading
from tracker.store.blobs import MissingObject, blob_store, random_key
from tracker.store.metrics import metric_store
from tracker.store.wire import Dense, Sparse

LINES_AT_ONCE = 2_000


@dataclass
class Dropped:
    points: int = 0
    bytes: int = 0


def points(run: Run, keys: Sequence[str], *, dry_run: bool = False) -> Dropped:
    """Drop every point of ``keys`` (names or globs) of a run that is over. Of a run with a stitched history only ``system/`` metrics:
    its summaries are made again from its points. A dry run counts the bytes of blocks alone, which are nearly all."""
    wanted = export_points.matcher(keys)
    found = Dropped()
    if not _logged(run, wanted):
        return found
    if dry_run:
        logged = reading.keys_of(run.id).items()
        found.points = sum(sum(ranks.values()) for key, ranks in logged if _is_dropped(run, key, wanted))
    else:
        while compaction.compact_run(run.id, force=True):
            pass
    for attempt in range(100):
        tried = [_drop_from(block, run, wanted, dry_run) for block in MetricBlock.objects.filter(run_id=run.id).order_by("id")]
        for each in tried:
            if each is not None:
                found.points += 0 if dry_run else each.points
                found.bytes += each.bytes
        if None not in tried or dry_run:
            break
        time.sleep(0.02 * attempt)  # a block was merged with its neighbours meanwhile: look anew
    if found.points and not dry_run:
        _note(run, {"action": "points", "keys": list(keys), "points": found.points, "bytes": found.bytes})
    return found


def _is_dropped(run: Run, key: str, wanted: Pattern[str] | None) -> bool:
    return (wanted is None or wanted.match(key) is not None) and (not run.is_stitched or lineage.is_measured(key))


def _logged(run: Run, wanted: Pattern[str] | None) -> bool:
    names = set(MetricSummary.objects.filter(run_id=run.id).values_list("key", flat=True).distinct())
    if len(names) >= summaries.MOST_KEYS or Writer.objects.filter(run_id=run.id, hot_segments__gt=0).exists():
        names |= set(reading.keys_of(run.id))
    return any(_is_dropped(run, key, wanted) for key in names)


def _drop_from(block: MetricBlock, run: Run, wanted: Pattern[str] | None, dry_run: bool) -> Dropped | None:
    """What this block loses; None if it is no longer there."""
    try:
        directory = blocks.Directory(blob_store().read(block.object_key, 0, blocks.HEAD.size + block.directory_bytes))
        columns = [n for n in range(len(directory.columns)) if _is_dropped(run, directory.name(n), wanted)]
        if not columns:
            return Dropped()
        entries = directory.columns[columns]
        lost = int(entries["rows"].astype("i8").sum())
        if dry_run:
            whole = len(columns) == len(directory.columns)
            return Dropped(lost, block.bytes if whole else min(_bytes_of(directory, columns, block.directory_bytes), block.bytes))
        kept = _without(blob_store().read(block.object_key), set(columns), block) if len(columns) < len(directory.columns) else None
    except MissingObject:
        return None
    if kept is not None and kept.points != block.points - lost:
        raise RuntimeError(f"block {block.id} would keep {kept.points} of {block.points} points, not all but {lost}; nothing was changed")
    key = None
    if kept is not None:
        key = random_key(block.object_key.rsplit("/", 2)[0], ".block")  # where it lay, in the cold store too
        blob_store().put(key, kept.data)
    done = False
    try:
        with transaction.atomic():
            # Out and in again, as a merge does it: one that has read the old block finds it gone.
            done = bool(MetricBlock.objects.filter(id=block.id, object_key=block.object_key).delete()[0])
            if done and kept is not None:
                MetricBlock.objects.create(
                    run_id=block.run_id, writer_id=block.writer_id, first=block.first, last=block.last, tier=block.tier, points=kept.points,
                    lo_step=kept.lo_step, hi_step=kept.hi_step, bytes=len(kept.data), directory_bytes=kept.directory_bytes, object_key=key,
                )  # fmt: skip
            if done:
                metric_store().discard(block.object_key, timezone.now() + sweeping.TRASH)
    finally:
        if key is not None and not done:
            blob_store().delete(key)
    return Dropped(lost, block.bytes - (len(kept.data) if kept is not None else 0)) if done else None


def _bytes_of(directory: blocks.Directory, columns: list[int], directory_bytes: int) -> int:
    """About what these columns take: their values, their part of the directory, and axes that nobody else is on. Of what several keys
    share (``sliced``) by their rows."""
    every = directory.columns
    mine = np.zeros(len(every), bool)
    mine[columns] = True
    _, first, values = np.unique(every["at"], return_index=True, return_inverse=True)
    found = float(every["bytes"][first] @ _shares(every, values, mine)) + directory_bytes * len(columns) / len(every)
    axes = directory.axes
    sizes = axes["records_bytes"].astype("f8") + axes["steps_bytes"] + axes["times_bytes"]
    shares = _shares(every, every["axis"], mine, len(axes))
    kept = np.bincount(every["axis"], ~mine & (every["sliced"] == 0), len(axes)) > 0
    return int(found + float(sizes @ np.where(kept, 0, shares)))


def _shares(every: np.ndarray, places: np.ndarray, mine: np.ndarray, count: int = 0) -> np.ndarray:
    """At each place the part of its rows that is of ``mine``."""
    rows = every["rows"].astype("f8")
    return np.bincount(places, rows * mine, count) / np.maximum(np.bincount(places, rows, count), 1)


def _without(data: bytes, dropped: set[int], block: MetricBlock) -> blocks.Encoded:
    """The block with the other columns, each to the bit as it was."""
    directory, found = blocks.decode(data)
    by_axis: dict[int, list[tuple[str, blocks.Axis, np.ndarray]]] = {}
    for column, each in enumerate(found):
        if column not in dropped:
            by_axis.setdefault(id(each[1]), []).append(each)
    frames: list[Dense | Sparse] = []
    loose = []
    for mine in by_axis.values():
        if len(mine) == 1:
            loose.append(mine[0])
            continue
        axis = mine[0][1]
        types = "".join("q" if values.dtype.kind == "i" else "d" for _, _, values in mine)
        matrix = np.stack([_as_bits(values) for _, _, values in mine])
        # Each axis under a name of its own: two of them may have the same keys left, and must not become one.
        frames.append(Dense(str(len(frames)), types, tuple(key for key, _, _ in mine), axis.records, axis.steps, axis.times, matrix, False))
    if loose:
        frames.append(_sparse(loose))
    return blocks.encode(directory.writer, block.first, block.last, frames)


def _as_bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view("<i8")


def _sparse(columns: list[tuple[str, blocks.Axis, np.ndarray]]) -> Sparse:
    """Columns that have an axis to themselves, as points one by one in order of records."""
    keys = tuple(dict.fromkeys(key for key, _, _ in columns))
    place = {key: at for at, key in enumerate(keys)}
    sizes = [len(values) for _, _, values in columns]
    records = np.concatenate([axis.records for _, axis, _ in columns])
    order = np.argsort(records, kind="stable")
    return Sparse(
        keys,
        records[order],
        np.repeat([place[key] for key, _, _ in columns], sizes)[order],
        np.repeat(np.array([values.dtype.kind == "i" for _, _, values in columns], "u1"), sizes)[order],
        np.concatenate([axis.steps for _, axis, _ in columns])[order],
        np.concatenate([axis.times for _, axis, _ in columns])[order],
        np.concatenate([_as_bits(values) for _, _, values in columns])[order],
    )


def logs(run: Run, *, dry_run: bool = False) -> Dropped:
    """Drop the console lines of a run that is over."""
    rows = LogChunk.objects.filter(run_id=run.id)
    if dry_run:
        return Dropped(0, log_bytes(run.id))
    found = Dropped()
    while ids := list(rows.order_by("id").values_list("id", flat=True)[:LINES_AT_ONCE]):
        with transaction.atomic():
            found.bytes += log_bytes(run.id, ids[-1])
            rows.filter(id__lte=ids[-1]).delete()
    if found.bytes:
        _note(run, {"action": "logs", "bytes": found.bytes})
    return found


def log_bytes(run_id: str, upto: int = 2**62) -> int:
    """UTF-8 bytes of a run's console lines."""
    size = "OCTET_LENGTH(text)" if connection.vendor == "postgresql" else "LENGTH(CAST(text AS BLOB))"
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT COALESCE(SUM({size}), 0) FROM tracker_logchunk WHERE run_id = %s AND id <= %s", [run_id, upto])  # noqa: S608
        return int(cursor.fetchone()[0])


def _note(run: Run, data: dict) -> None:
    Event.objects.create(run=run, name="retention", time_us=time.time_ns() // 1000, data=data)
