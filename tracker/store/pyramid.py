"""Charts of series of many millions of points out of the blocks' pyramids: exact for what they cover, without reading the points.

A bucket is made of whole pyramid entries (256 points each), so its edges follow theirs. Where a window begins or ends within an entry,
the points of that entry are read, so that a bucket never counts a point outside the window.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tracker.domain import odd
from tracker.domain.buckets import Buckets
from tracker.domain.lineage import Fork
from tracker.store import blocks, pyramid_codec, reading, rows
from tracker.store.block_reads import BlockReader, BlockRow, column_part, piece_of
from tracker.store.blocks import Directory
from tracker.store.columns import HI, LO, Piece, WriterInfo, cut
from tracker.store.pyramid_codec import AXES, AxisEntries, ColumnEntries
from tracker.store.snapshot import RUNS_AT_ONCE, Asked, Snapshot, among

LEAST_POINTS = 2_000_000
"""A series of fewer points in the window is read in full, in some ten milliseconds, and its buckets have edges to the step."""
ENTRIES_A_BUCKET = 2
"""Where there are fewer entries, buckets would be coarser than what was asked for."""
MOST_ODD_COLUMNS = 64
"""Stretches with NaN or infinities whose points are read to say where those are; a series of more of them is read in full."""
MOST_LOOSE = 1_000_000
"""Points that lie in no pyramid (hot ones, short blocks) and are read for a series all the same."""


@dataclass
class Overview(Buckets):
    """The Buckets of one series over a window, with what a chart says of all its points."""

    n: int = 0
    nan: int = 0
    inf: int = 0
    odd: tuple[np.ndarray, np.ndarray] = field(default_factory=lambda: (np.zeros(0), np.zeros(0, "u4")))
    """(x, kind) of the points that are NaN or infinite, as ``domain.odd.found`` tells them."""
    attempts: tuple[int, ...] = ()


Name = tuple[str, str, int]
"""(run, key, rank)"""


def overviews(
    run_ids: Sequence[str],
    keys: Sequence[str],
    ranks: Iterable[int] | None = None,
    *,
    lo_step: int = LO,
    hi_step: int = HI,
    count: int = 1000,
    forks: Mapping[str, Sequence[Fork]] | None = None,
    least: int = LEAST_POINTS,
) -> dict[Name, Overview]:
    """At most ``count`` buckets over the steps lo_step … hi_step of those series that have more than ``least`` points there.

    Left out, to be read in full: series whose points repeat or fall back in step, runs that are rewound or forks, blocks written
    before there were pyramids, what is damaged. Of a (run, key) either all of its (asked) ranks are answered or none.
    """
    return look(run_ids, keys, ranks, lo_step=lo_step, hi_step=hi_step, count=count, forks=forks, least=least)[0]


def look(
    run_ids: Sequence[str],
    keys: Sequence[str],
    ranks: Iterable[int] | None = None,
    *,
    lo_step: int = LO,
    hi_step: int = HI,
    count: int = 1000,
    forks: Mapping[str, Sequence[Fork]] | None = None,
    least: int = LEAST_POINTS,
) -> tuple[dict[Name, Overview], dict[str, WriterInfo]]:
    """``overviews`` with the writers of the same snapshot (of the runs that came into question)."""
    if hi_step - lo_step < least:
        return {}, {}  # steps that rise strictly: there are no more points than steps
    chosen = None if ranks is None else frozenset(ranks)

    def once() -> tuple[dict[Name, Overview], dict[str, WriterInfo]]:
        runs = [run for run in _long_runs(run_ids, lo_step, hi_step, least) if not (forks or {}).get(run)]
        if not runs:
            return {}, {}
        snapshot = Snapshot(Asked(runs, tuple(dict.fromkeys(keys)), chosen, lo_step, hi_step)).take()
        return _Look(snapshot, count, least).answer(), snapshot.writers

    return reading.patiently(once)


def _long_runs(run_ids: Sequence[str], lo_step: int, hi_step: int, least: int) -> list[str]:
    """Those whose blocks may hold such a series, in one query: mostly none."""
    found = []
    with rows.cursor() as cursor:
        for start in range(0, len(run_ids), RUNS_AT_ONCE):
            some = run_ids[start : start + RUNS_AT_ONCE]
            cursor.execute(
                f"SELECT run_id FROM tracker_metricblock WHERE run_id IN {among(some)} AND hi_step >= %s AND lo_step <= %s "  # noqa: S608
                # Halves: the difference of two int64 may be none.
                "GROUP BY run_id HAVING SUM(points) > %s AND MAX(hi_step) / 2 - MIN(lo_step) / 2 >= %s",
                [*some, lo_step, hi_step, least, least // 2 - 1],
            )
            found += [row[0] for row in cursor.fetchall()]
    return found


class _Stretch(NamedTuple):
    """A part of a series between two steps: a column with its axis in a block, or a piece of a hot segment."""

    lo: int
    hi: int
    rows: int
    writer: str
    block: tuple[BlockRow, Directory, int, int] | None
    """With column and axis."""
    has_pyramid: bool = False
    piece: Piece | None = None


@dataclass
class _Entries:
    """Pyramid entries of several stretches, in order."""

    axes: list[AxisEntries] = field(default_factory=list)
    columns: list[ColumnEntries] = field(default_factory=list)

    def add(self, axis: AxisEntries, column: ColumnEntries, chosen: slice | None = None) -> None:
        if chosen is None:
            self.axes.append(axis)
            self.columns.append(column)
            return
        self.axes.append(AxisEntries(*(getattr(axis, name)[chosen] for name in AxisEntries.__dataclass_fields__)))
        self.columns.append(ColumnEntries(*(getattr(column, name)[chosen] for name in ColumnEntries.__dataclass_fields__)))

    def points(self, steps: np.ndarray, times: np.ndarray, values: np.ndarray) -> None:
        if len(steps):
            self.add(pyramid_codec.of_axis(steps, times), pyramid_codec.of_column(values))

    def of_axes(self, name: str) -> np.ndarray:
        return np.concatenate([getattr(axis, name) for axis in self.axes])

    def of_columns(self, name: str, dtype: str = "f8") -> np.ndarray:
        return np.concatenate([getattr(column, name) for column in self.columns], dtype=dtype, casting="unsafe")


class _Look:
    def __init__(self, snapshot: Snapshot, count: int, least: int) -> None:
        self.snapshot, self.asked, self.count, self.least = snapshot, snapshot.asked, count, least
        self.reader = BlockReader()

    def answer(self) -> dict[Name, Overview]:
        by_key: dict[tuple[str, str], dict[int, list[_Stretch]]] = defaultdict(lambda: defaultdict(list))
        for (run, key, rank), stretch in self._stretches():
            by_key[run, key][rank].append(stretch)
        hurt = {(problem.run, problem.key) for problem in self.reader.damaged}
        candidates: dict[Name, list[_Stretch]] = {}
        for (run, key), by_rank in by_key.items():
            in_order = {rank: sorted(mine, key=lambda each: (each.lo, each.hi)) for rank, mine in by_rank.items()}
            if (run, None) not in hurt and all(self._is_a_line(mine) for mine in in_order.values()):
                candidates |= {(run, key, rank): mine for rank, mine in in_order.items()}
        found = self._overviews(candidates)
        missing = {name[:2] for name in candidates if name not in found}
        return {name: found[name] for name in candidates if name in found and name[:2] not in missing}

    def _stretches(self) -> Iterable[tuple[Name, _Stretch]]:
        snapshot, asked = self.snapshot, self.asked
        keys = asked.keys or ()
        hashes = np.array([blocks.key_hash(key) for key in keys], np.uint64)
        for row, directory in self.reader.directories([row for row in snapshot.blocks if row.run not in snapshot.plans]):
            there = directory.find_all(keys, hashes)
            axes = directory.columns["axis"][[column for _, column in there]] if there else np.zeros(0, "<u4")
            its = directory.axes[axes]
            has_pyramid = np.isin(axes + np.uint32(AXES), directory.pyramids["what"]).tolist()
            rank = snapshot.writers[row.writer].rank
            bounds = zip(its["lo_step"].tolist(), its["hi_step"].tolist(), its["rows"].tolist(), axes.tolist(), has_pyramid, strict=True)
            for (key, column), (lo, hi, count, axis, has) in zip(there, bounds, strict=True):
                if hi >= asked.lo_step and lo <= asked.hi_step:
                    yield (row.run, key, rank), _Stretch(lo, hi, count, row.writer, (row, directory, column, axis), has)
        for batch in snapshot.hot:
            info = snapshot.writers[batch.writer]
            if info.run in snapshot.plans:
                continue
            for key, piece in batch.pieces(keys):
                steps = piece.axis.steps
                lo, hi = int(steps.min()), int(steps.max())
                if hi >= asked.lo_step and lo <= asked.hi_step:
                    yield (info.run, key, info.rank), _Stretch(lo, hi, len(steps), batch.writer, None, False, piece)

    def _is_a_line(self, mine: list[_Stretch]) -> bool:
        """Whether its stretches follow one another, none is known to fall back, and it is long enough."""
        rows = sum(each.rows for each in mine)
        loose = sum(each.rows for each in mine if not each.has_pyramid)
        if rows <= self.least or loose > min(MOST_LOOSE, rows // 2):
            return False
        if any(a.hi >= b.lo for a, b in itertools.pairwise(mine)):
            return False
        long_without = (e for e in mine if e.block is not None and e.rows >= pyramid_codec.LEAST_ROWS and not e.has_pyramid)
        return not any(long_without)  # its steps repeat or fall, or it was written before there were pyramids

    def _overviews(self, candidates: Mapping[Name, list[_Stretch]]) -> dict[Name, Overview]:
        wanted: dict[Any, tuple[BlockRow, Directory, str]] = {}
        for (_, key, _), mine in candidates.items():
            for each in mine:
                if each.block is None:
                    continue
                row, directory, column, axis = each.block
                is_cut = each.lo < self.asked.lo_step or each.hi > self.asked.hi_step
                names = [(row.object_key, "pyramid", AXES + axis), (row.object_key, "pyramid", column)] if each.has_pyramid else []
                if is_cut or not each.has_pyramid:
                    names += [(row.object_key, "axis", axis), column_part(row.object_key, directory, column)]
                for name in names:
                    wanted.setdefault(name, (row, directory, key))
        parts = self.reader.parts(wanted)
        found = {}
        for name, mine in candidates.items():
            entries = self._entries(mine, parts)
            if entries is None or (overview := self._buckets(entries, mine)) is None:
                continue
            if (overview.nan or overview.inf) and (where := self._odd_of(name[1], mine, parts)) is None:
                continue
            if overview.nan or overview.inf:
                assert where is not None
                overview.odd = where
            found[name] = overview
        return found

    def _odd_of(self, key: str, mine: list[_Stretch], parts: Mapping[Any, Any]) -> tuple[np.ndarray, np.ndarray] | None:
        """Where the NaN and infinities are, out of the points of those stretches that have any; None where these are too many."""
        wanted: dict[Any, tuple[BlockRow, Directory, str]] = {}
        some = []
        for each in mine:
            if each.block is not None and each.has_pyramid:
                row, directory, column, axis = each.block
                entry = directory.columns[column]
                if not entry["nan"] and not entry["inf"]:
                    continue
                for name in ((row.object_key, "axis", axis), column_part(row.object_key, directory, column)):
                    wanted[name] = (row, directory, key)
            some.append(each)
        if len(wanted) > 2 * MOST_ODD_COLUMNS:
            return None
        parts = {**parts, **self.reader.parts(wanted)}
        found = []
        for each in some:
            piece = each.piece if each.block is None else self._piece(each.block, parts)
            if piece is None:
                return None
            points, chosen = cut(piece.axis, 0, self.asked.lo_step, self.asked.hi_step)
            values = piece.values if chosen is None else piece.values[chosen]
            found.append(odd.found(points.steps.astype("f8"), values.astype("f8")))
        return np.concatenate([x for x, _ in found]), np.concatenate([kinds for _, kinds in found])

    @staticmethod
    def _piece(block: tuple[BlockRow, Directory, int, int], parts: Mapping[Any, Any]) -> Piece | None:
        row, directory, column, axis = block
        try:
            return piece_of(parts, row.object_key, directory, column, axis)
        except blocks.DamagedBlock:
            return None  # the full read says it

    def _entries(self, mine: list[_Stretch], parts: Mapping[Any, Any]) -> _Entries | None:
        """None where a part is damaged or a loose stretch turns out to fall back."""
        entries = _Entries()
        lo, hi = self.asked.lo_step, self.asked.hi_step
        for each in mine:
            piece = each.piece
            if each.block is not None and not (each.has_pyramid and lo <= each.lo and each.hi <= hi):
                piece = self._piece(each.block, parts)
            if each.has_pyramid:
                assert each.block is not None
                row, _, column, axis = each.block
                tops = parts.get((row.object_key, "pyramid", AXES + axis)), parts.get((row.object_key, "pyramid", column))
                if tops[0] is None or tops[1] is None:
                    return None
                if lo <= each.lo and each.hi <= hi:
                    entries.add(*tops)
                    continue
                if piece is None:
                    return None
                _cut_entries(entries, tops[0], tops[1], piece, lo, hi)
                continue
            if piece is None or not piece.axis.is_strict:
                return None
            points, chosen = cut(piece.axis, 0, lo, hi)
            entries.points(points.steps, points.times, piece.values if chosen is None else piece.values[chosen])
        return entries if entries.axes else None

    def _buckets(self, entries: _Entries, mine: list[_Stretch]) -> Overview | None:
        counts = entries.of_axes("count")
        n = int(counts.sum())
        if n <= self.least or len(counts) < self.count * ENTRIES_A_BUCKET:
            return None
        x = entries.of_axes("first_step").astype("f8")
        last_x = float(entries.axes[-1].last_step[-1])
        lo, hi = max(float(self.asked.lo_step), x[0]), min(float(self.asked.hi_step), last_x)
        edges = lo + (hi - lo) * (np.arange(1, self.count, dtype="f8") / self.count)
        starts = np.r_[0, np.searchsorted(x, edges, "left")]
        starts = starts[np.r_[True, starts[1:] > starts[:-1]] & (starts < len(x))]
        ends = np.r_[starts[1:], len(x)] - 1
        nan, inf = entries.of_columns("nan", "i8"), entries.of_columns("inf", "i8")
        totals = np.add.reduceat(counts, starts)
        numbers = totals - np.add.reduceat(nan, starts)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            mean = np.where(numbers > 0, np.add.reduceat(entries.of_columns("sum"), starts) / np.maximum(numbers, 1), np.nan)
            low, high = np.fmin.reduceat(entries.of_columns("min"), starts), np.fmax.reduceat(entries.of_columns("max"), starts)
        first, last = entries.of_columns("first")[starts], entries.of_columns("last")[ends]
        attempts = tuple(sorted({self.snapshot.writers[each.writer].attempt for each in mine}))
        return Overview(
            x[starts], low, high, mean, first, last, totals.astype("u4"), n=n, nan=int(nan.sum()), inf=int(inf.sum()), attempts=attempts
        )


def _cut_entries(entries: _Entries, axis: AxisEntries, column: ColumnEntries, piece: Piece, lo: int, hi: int) -> None:
    """The entries within lo … hi; of those that the window's ends cut, the points within."""
    a = int(np.searchsorted(axis.first_step, lo, "left"))  # the first entry that begins in the window
    b = int(np.searchsorted(axis.last_step, hi, "right"))  # behind the last entry that ends in it
    if a >= b:  # it lies within one entry or two
        _points(entries, piece, lo, hi)
        return
    if a and axis.last_step[a - 1] >= lo:
        _points(entries, piece, lo, int(axis.last_step[a - 1]))
    entries.add(axis, column, slice(a, b))
    if b < len(axis.count) and axis.first_step[b] <= hi:
        _points(entries, piece, int(axis.first_step[b]), hi)


def _points(entries: _Entries, piece: Piece, lo: int, hi: int) -> None:
    steps = piece.axis.steps
    at = slice(int(np.searchsorted(steps, lo, "left")), int(np.searchsorted(steps, hi, "right")))
    entries.points(steps[at], piece.axis.times[at], piece.values[at])
