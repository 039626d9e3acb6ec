"""What reading hands out: the points of a key as arrays, and the writers they come from. No database, no bytes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tracker.domain import lineage, repeated
from tracker.store.blocks import Axis

LO, HI = lineage.LO, lineage.HI
CURRENT, ALL = "current", "all"


@dataclass(slots=True, frozen=True)
class WriterInfo:
    id: str
    run: str
    rank: int
    attempt: int
    started_us: int
    next: int
    rewound_to: int | None = None
    """Of its attempt: what earlier attempts have beyond this step is an old branch."""
    kind: str = "trainer"
    last_step: int | None = None


@dataclass(slots=True)
class Piece:
    """Points of one key from one frame or block column, in order of records. ``values`` are float64 or int64.

    Keys that share an axis hold the very same object, so that what is made of it is made once.
    """

    axis: Axis
    values: np.ndarray


class Line:
    """Axes one after the other, as one. Arrays are put together when they are asked for, once for all keys that lie on them."""

    def __init__(self, axes: Sequence[Axis]) -> None:
        self.axes = axes
        self.count = sum(len(axis.steps) for axis in axes)

    @functools.cached_property
    def records(self) -> np.ndarray:
        return concatenate([axis.records for axis in self.axes])

    @functools.cached_property
    def steps(self) -> np.ndarray:
        return concatenate([axis.steps for axis in self.axes])

    @functools.cached_property
    def times(self) -> np.ndarray:
        return concatenate([axis.times for axis in self.axes])

    @functools.cached_property
    def order(self) -> np.ndarray | None:
        if all(axis.is_strict for axis in self.axes) and all(a.steps[-1] < b.steps[0] for a, b in itertools.pairwise(self.axes)):
            return None  # known without looking at every point again
        return repeated.winning_order(self.steps)


class Column:
    """The points of (run, key, rank) on one branch, in the order in which they win: ancestors, attempt, writer's start, record number.

    ``records``, ``steps``, ``times`` (µs UTC) and ``values`` are arrays of one length. ``values`` is int64 if every point is an
    integer, else float64; a key that logged both has ``bits`` and ``is_int``, which are exact also beyond 2**53.
    ``attempts``: (attempt number, points) in order; ``lineage.INHERITED`` for points of an ancestor.
    ``branch``: the attempt that left this old branch; None for the run's history.
    """

    def __init__(
        self,
        run: str,
        key: str,
        rank: int,
        records: np.ndarray,
        steps: np.ndarray,
        times: np.ndarray,
        values: np.ndarray,
        attempts: list[tuple[int, int]],
        bits: np.ndarray | None = None,
        is_int: np.ndarray | None = None,
        branch: int | None = None,
        *,
        line: Line | None = None,
    ) -> None:
        self.run, self.key, self.rank, self.branch = run, key, rank, branch
        self.values, self.attempts, self.bits, self.is_int = values, attempts, bits, is_int
        self.line = line or Line([Axis(records, steps, times)])

    @classmethod
    def on(cls, line: Line, run: str, key: str, rank: int, values: np.ndarray, attempts: list[tuple[int, int]], **more) -> Column:
        nothing = np.zeros(0, np.int64)
        return cls(run, key, rank, nothing, nothing, nothing, values, attempts, line=line, **more)

    @property
    def records(self) -> np.ndarray:
        return self.line.records

    @property
    def steps(self) -> np.ndarray:
        return self.line.steps

    @property
    def times(self) -> np.ndarray:
        return self.line.times

    @functools.cached_property
    def attempt(self) -> np.ndarray:
        """Attempt number of each point, int32."""
        return np.repeat(np.array([a for a, _ in self.attempts], "i4"), [n for _, n in self.attempts])

    @property
    def order(self) -> np.ndarray | None:
        """Positions of the winning points by rising step; None where that is all of them as they stand."""
        return self.line.order

    @functools.cached_property
    def winner(self) -> np.ndarray:
        """True where no later point has the same step."""
        mask = np.ones(len(self.steps), bool)
        if self.order is not None:
            mask[:] = False
            mask[self.order] = True
        return mask


Selector = slice | np.ndarray | None


def cut(axis: Axis, first: int, lo: int, hi: int) -> tuple[Axis, Selector]:
    """The points from record ``first`` on whose steps lie in lo … hi, and where they are; the axis itself and None where that is all."""
    steps, records = axis.steps, axis.records
    chosen: slice | np.ndarray
    if axis.is_rising:
        a = max(int(np.searchsorted(steps, lo, "left")), int(np.searchsorted(records, first, "left")))
        b = int(np.searchsorted(steps, hi, "right"))
        if a == 0 and b == len(steps):
            return axis, None
        chosen = slice(a, max(a, b))
    else:
        if records[0] >= first and (lo == LO or steps.min() >= lo) and (hi == HI or steps.max() <= hi):
            return axis, None
        chosen = np.flatnonzero((records >= first) & (steps >= lo) & (steps <= hi))
    found = Axis(records[chosen], steps[chosen], axis.times[chosen])
    if isinstance(chosen, slice):  # what holds for all holds for a part
        found.is_rising, found.is_strict = True, axis.is_strict
    return found, chosen


def concatenate(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
