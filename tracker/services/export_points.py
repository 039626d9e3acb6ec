"""All points of a run in the order of its Parquet file, a portion in memory at a time; and the mark that tells whether they changed."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from django.db.models import F

from tracker.domain.lineage import Fork
from tracker.models import MetricBlock, MetricSummary, Run, Writer
from tracker.services import summaries
from tracker.store import blocks, parquet, reading
from tracker.store.blobs import MissingObject, blob_store
from tracker.store.reading import Column

POINTS_AT_ONCE = 500_000
KEYS_AT_ONCE = 2_000
SAMPLE = 256
"""Of the steps of a series that is cut, one in so many is looked at."""


@dataclass
class Exported:
    """A run as it is exported: its file is the same as long as ``mark`` is."""

    run: Run
    mark: str
    forks: dict[str, tuple[Fork, ...]] = field(default_factory=dict)
    counts: dict[str, dict[int, int]] | None = None
    """Points by key and rank, where the summaries know them; None: the blocks' directories are asked."""

    @property
    def points(self) -> int | None:
        return None if self.counts is None else sum(n for ranks in self.counts.values() for n in ranks.values())


def matcher(patterns: Sequence[str]) -> re.Pattern[str] | None:
    """Of names and globs (a name stands for itself, whatever it looks like); None matches every key."""
    if not patterns or "*" in patterns:
        return None
    each = [f"(?:{re.escape(p)}\\Z)|(?:{fnmatch.translate(p)})" for p in patterns]
    return re.compile("|".join(each))


def planned(found: list[Run], forks: Mapping[str, tuple[Fork, ...]], patterns: Sequence[str]) -> list[Exported]:
    """These runs with their marks. Three questions to the database, however many runs."""
    ids = [run.id for run in found]
    writers = reading.writers_of(reading.with_ancestors(ids, forks))
    of_run: dict[str, list[tuple]] = defaultdict(list)
    for info in writers.values():
        # What a writer's records below ``next`` say never changes; so the file is a function of these, the forks and the keys.
        of_run[info.run].append((info.id, info.next, info.attempt, info.rewound_to, info.rank, info.started_us, info.kind))
    counts = _counts(found)
    asked = sorted(set(patterns))
    planned = []
    for run in found:
        chain = forks.get(run.id, ())
        told = [parquet.FORMAT, asked, [(fork.run, fork.step) for fork in chain]]
        told += [sorted(of_run[name]) for name in (run.id, *(fork.run for fork in chain))]
        mark = hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()
        planned.append(Exported(run, mark, {run.id: chain} if chain else {}, counts.get(run.id)))
    return planned


def _counts(found: list[Run]) -> dict[str, dict[str, dict[int, int]]]:
    """Points by key and rank of those runs whose summaries count every point: not stitched, all summarised, not of very many keys."""
    plain = {run.id for run in found if not run.is_stitched}
    waiting = Writer.objects.filter(run_id__in=plain, summarised__lt=F("next")).values_list("run_id", flat=True)
    plain -= set(waiting)
    by_run: dict[str, dict[str, dict[int, int]]] = {run: {} for run in plain}
    for run, key, rank, count in MetricSummary.objects.filter(run_id__in=plain).values_list("run_id", "key", "rank", "count"):
        by_run[run].setdefault(key, {})[rank] = count
    return {run: keys for run, keys in by_run.items() if len(keys) < summaries.MOST_KEYS}


def columns(exported: Exported, wanted: re.Pattern[str] | None) -> Iterator[Column]:
    """Every point of the run, by key, rank, branch (the history first) and step; a fork's with what it inherited."""
    run = exported.run.id
    counts = exported.counts if exported.counts is not None else _all_counts(exported)
    keys = sorted(key for key in counts if wanted is None or wanted.match(key))
    for portion in _portions(keys, counts):
        if len(portion) > 1 or sum(counts[portion[0]].values()) <= POINTS_AT_ONCE:
            yield from _sorted(reading.history([run], portion, forks=exported.forks, branch=reading.ALL))
            continue
        for rank, count in sorted(counts[portion[0]].items()):
            yield from _long(exported, portion[0], rank, count)


def columns_of_many(runs: list[Exported], keys: Sequence[str]) -> dict[str, list[Column]]:
    """The same for several small runs that have the same keys, in one question."""
    found: dict[str, list[Column]] = {each.run.id: [] for each in runs}
    for column in reading.history([each.run.id for each in runs], keys, branch=reading.ALL):
        found[column.run].append(column)
    return {run: list(_sorted(mine)) for run, mine in found.items()}


def _sorted(found: list[Column]) -> list[Column]:
    # By code points, as Parquet's own statistics compare the UTF-8 of names.
    return sorted(found, key=lambda column: (column.key, column.rank, -1 if column.branch is None else column.branch))


def _all_counts(exported: Exported) -> dict[str, dict[int, int]]:
    """At least as many points of each key and rank as there are: a fork may inherit a part of its ancestors' only."""
    counts: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for name in (exported.run.id, *(fork.run for fork in exported.forks.get(exported.run.id, ()))):
        for key, ranks in reading.keys_of(name).items():
            for rank, count in ranks.items():
                counts[key][rank] += count
    return counts


def _portions(keys: list[str], counts: Mapping[str, Mapping[int, int]]) -> Iterator[list[str]]:
    portion: list[str] = []
    points = 0
    for key in keys:
        mine = sum(counts[key].values())
        if portion and (points + mine > POINTS_AT_ONCE or len(portion) >= KEYS_AT_ONCE):
            yield portion
            portion, points = [], 0
        portion.append(key)
        points += mine
    if portion:
        yield portion


def _long(exported: Exported, key: str, rank: int, count: int) -> Iterator[Column]:
    """One rank's points of a key, window after window of steps. Old branches come after the history, each with the same windows."""
    run = exported.run.id
    if count <= POINTS_AT_ONCE:
        yield from _sorted(reading.history([run], [key], [rank], forks=exported.forks, branch=reading.ALL))
        return
    windows = list(_windows(exported, key, rank))
    branches: dict[int, None] = {}
    for lo, hi in windows:
        for column in reading.history([run], [key], [rank], lo_step=lo, hi_step=hi, forks=exported.forks, branch=reading.ALL):
            if column.branch is None:
                yield column
            else:
                branches[column.branch] = None
    for branch in sorted(branches):
        for lo, hi in windows:
            found = reading.history([run], [key], [rank], lo_step=lo, hi_step=hi, forks=exported.forks, branch=reading.ALL)
            yield from (column for column in found if column.branch == branch)


def _windows(exported: Exported, key: str, rank: int) -> Iterator[tuple[int, int]]:
    """Windows of steps with about POINTS_AT_ONCE points each, by a sample of the steps that lie in blocks (what is hot is bounded)."""
    names = [exported.run.id, *(fork.run for fork in exported.forks.get(exported.run.id, ()))]
    samples = []
    rows = MetricBlock.objects.filter(run_id__in=names, writer__rank=rank).values_list("object_key", "directory_bytes")
    for object_key, size in rows.order_by("run_id", "writer_id", "first").iterator():
        with contextlib.suppress(MissingObject):  # merged and swept meanwhile: the cuts are a little less even
            directory = blocks.Directory(blob_store().read(object_key, 0, blocks.HEAD.size + size))
            for column in directory.find(key):
                entry = directory.axes[int(directory.columns[column]["axis"])]
                axis = blocks.decode_axis(directory, entry, blob_store().ranges(object_key, blocks.axis_spans(entry)))
                samples.append(axis.steps[::SAMPLE].copy())
    steps = np.sort(np.concatenate(samples)) if samples else np.zeros(0, "i8")
    edges = sorted({int(step) for step in steps[:: max(POINTS_AT_ONCE // SAMPLE, 1)][1:]})
    lows = [reading.LO, *(edge for edge in edges if edge > reading.LO)]
    for lo, following in itertools.zip_longest(lows, lows[1:]):
        yield lo, reading.HI if following is None else following - 1
