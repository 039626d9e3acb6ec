"""Pieces to columns: in the order in which points win, cut to the window and to what counts of each attempt.

What is the same for all keys on the same axes (cutting, putting steps together, finding who wins) is done once for them all.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from tracker.domain import lineage
from tracker.store.blocks import Axis
from tracker.store.columns import HI, LO, Column, Line, Piece, Selector, WriterInfo, concatenate, cut
from tracker.store.snapshot import Snapshot

Pieces = Mapping[str, Mapping[tuple[str, int], Mapping[str, list[Piece]]]]
"""By run, by (key, rank), by writer."""
Part = tuple[str, list[Piece], int, int]
"""Of a writer: its pieces and the steps that count."""


class Stitcher:
    def __init__(self, snapshot: Snapshot) -> None:
        self.asked, self.writers, self.plans = snapshot.asked, snapshot.writers, snapshot.plans
        self._cuts: dict[tuple[int, int, int, int], tuple[Axis, Selector, Axis]] = {}
        self._orders: dict[tuple[int, ...], tuple[list[Axis], list[int] | None]] = {}
        self._shifted: dict[tuple[int, int], tuple[Axis, Axis]] = {}
        self._lines: dict[tuple[int, ...], tuple[list[Axis], Line]] = {}

    def columns(self, runs: Iterable[str], pieces: Pieces) -> Iterator[Column]:
        for run in runs:
            for column in self._columns_of(run, pieces):
                if column is not None:
                    yield column

    def _columns_of(self, run: str, pieces: Pieces) -> Iterator[Column | None]:
        plan, branch = self.plans.get(run), self.asked.branch
        if plan is None:
            for (key, rank), by_writer in pieces.get(run, {}).items():
                if isinstance(branch, int):
                    by_writer = {w: mine for w, mine in by_writer.items() if self.writers[w].attempt == branch}
                yield self._join(run, key, rank, [(w, mine, LO, HI) for w, mine in self._in_order(by_writer)])
            return
        names = dict.fromkeys(name for each in dict.fromkeys([run, *(span.run for span in plan)]) for name in pieces.get(each, {}))
        for key, rank in names:
            if lineage.is_measured(key):  # by sample and not by step
                mine = self._in_order(pieces.get(run, {}).get((key, rank), {}))
                yield self._join(run, key, rank, [(w, its, LO, HI) for w, its in mine])
                continue
            parts: dict[int | None, list[Part]] = defaultdict(list)
            for span in plan:
                for writer, its in self._in_order(pieces.get(span.run, {}).get((key, rank), {})):
                    if self.writers[writer].attempt == span.attempt:
                        parts[span.branch].append((writer, its, span.lo, span.hi))
            for left, those in parts.items():
                yield self._join(run, key, rank, those, left)

    def _in_order(self, by_writer: Mapping[str, list[Piece]]) -> list[tuple[str, list[Piece]]]:
        return in_order(by_writer, self.writers)

    def _join(self, run: str, key: str, rank: int, parts: list[Part], branch: int | None = None) -> Column | None:
        pieces: list[Piece] = []
        attempts = []
        for writer, its, lo, hi in parts:
            info = self.writers[writer]
            mine = self._of_writer(writer, its, max(lo, self.asked.lo_step), min(hi, self.asked.hi_step))
            if shift := self.asked.shifts.get(run, {}).get(info.run, 0):
                mine = [Piece(self._shift(each.axis, shift), each.values) for each in mine]
            if count := sum(len(piece.values) for piece in mine):
                attempts.append((info.attempt if info.run == run else lineage.INHERITED, count))
                pieces += mine
        if not attempts:
            return None
        line = self._line([piece.axis for piece in pieces])
        ints = [piece.values.dtype.kind == "i" for piece in pieces]
        column = Column.on(line, run, key, rank, concatenate([p.values for p in pieces]), attempts, branch=branch)
        if any(ints) and not all(ints):
            column.bits = np.concatenate([p.values.view("<i8") for p in pieces])
            column.is_int = np.repeat(ints, [len(p.values) for p in pieces])
        return column

    def _line(self, axes: list[Axis]) -> Line:
        name = tuple(map(id, axes))
        found = self._lines.get(name)
        if found is None:
            found = self._lines[name] = axes, Line(axes)  # holds the axes, so that their ids stay theirs
        return found[1]

    def _shift(self, axis: Axis, shift: int) -> Axis:
        found = self._shifted.get((id(axis), shift))
        if found is None:
            moved = Axis(axis.records, axis.steps, axis.times + shift)
            found = self._shifted[id(axis), shift] = moved, axis
        return found[0]

    def _of_writer(self, writer: str, pieces: list[Piece], lo: int, hi: int) -> list[Piece]:
        """In order of records, within the window. Frames of one batch may interleave; those are cut record by record."""
        first = 0 if self.asked.since is None else self.asked.since.get(writer, 0)
        kept = [found for piece in pieces if (found := self._cut(piece, first, lo, hi)) is not None]
        order = self._order([piece.axis for piece in kept])
        if order is not None:
            return kept if len(kept) < 2 else [kept[at] for at in order]
        records, steps, times = (np.concatenate([getattr(p.axis, name) for p in kept]) for name in ("records", "steps", "times"))
        by_record = np.argsort(records, kind="stable")
        kinds = np.repeat([p.values.dtype.kind == "i" for p in kept], [len(p.values) for p in kept])[by_record]
        bits = np.concatenate([p.values.view("<i8") for p in kept])[by_record]
        edges = np.flatnonzero(kinds[1:] != kinds[:-1]) + 1
        found = []
        for at in np.split(np.arange(len(by_record)), edges):
            chosen = by_record[at]
            values = bits[at] if kinds[at[0]] else bits[at].view("<f8")
            found.append(Piece(Axis(records[chosen], steps[chosen], times[chosen]), values))
        return found

    def _cut(self, piece: Piece, first: int, lo: int, hi: int) -> Piece | None:
        name = id(piece.axis), first, lo, hi
        found = self._cuts.get(name)
        if found is None:
            found = self._cuts[name] = *cut(piece.axis, first, lo, hi), piece.axis
        axis, chosen, _ = found
        if chosen is None:
            return piece if len(axis.steps) else None
        return Piece(axis, piece.values[chosen]) if len(axis.steps) else None

    def _order(self, axes: list[Axis]) -> list[int] | None:
        """Their places by rising records; None where they interleave."""
        name = tuple(map(id, axes))
        found = self._orders.get(name)
        if found is None:
            order = sorted(range(len(axes)), key=lambda at: int(axes[at].records[0]))
            is_apart = all(axes[a].records[-1] < axes[b].records[0] for a, b in itertools.pairwise(order))
            found = self._orders[name] = axes, order if is_apart else None
        return found[1]


def in_order(by_writer: Mapping[str, list], writers: Mapping[str, WriterInfo]) -> list[tuple[str, list]]:
    """As they win: by attempt, then start."""
    return sorted(by_writer.items(), key=lambda item: (writers[item[0]].attempt, writers[item[0]].started_us, item[0]))
