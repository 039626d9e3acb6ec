"""Two series of one key and rank, compared point by point, bit by bit.

NaN equals NaN at the same step, whatever its payload; -0.0 is not 0.0; an integer is not a float; a step that one side lacks is
a difference. Everything is vectorised: a pair of a million points takes some ten milliseconds.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
_EMPTY = np.empty(0, np.int64)
_FLOAT_MAX = 2.0**53


@dataclass(frozen=True, eq=False)
class Series:
    """Winning points of one key and rank, steps strictly ascending. ``bits`` are the values' 64 bits, ``integer`` tells i64 from f64.
    ``rank`` is None for a series reduced over ranks. ``times`` (µs UTC) only orders metrics that differ at the same step."""

    key: str
    rank: int | None
    steps: I64
    bits: npt.NDArray[np.uint64]
    integer: npt.NDArray[np.bool_]
    times: I64 | None = None

    @classmethod
    def of(cls, key: str, rank: int | None, steps: Any, values: Any, times: Any = None, winner: Any = None, integer: Any = None) -> Series:
        """From columns as the store gives them. ``integer`` (a mask) says which of mixed values are i64 bits in an f64 column."""
        steps = np.asarray(steps, np.int64)
        values = np.asarray(values)
        if values.dtype.kind in "iub":
            bits, mask = values.astype(np.int64).view(np.uint64), np.ones(len(values), bool)
        else:
            bits, mask = np.ascontiguousarray(values, np.float64).view(np.uint64), np.zeros(len(values), bool)
        if integer is not None:
            mask = np.asarray(integer, bool)
        when = None if times is None else np.asarray(times, np.int64)
        if winner is not None:
            keep = np.asarray(winner, bool)
            steps, bits, mask, when = steps[keep], bits[keep], mask[keep], None if when is None else when[keep]
        if len(steps) > 1 and not bool(np.all(steps[1:] > steps[:-1])):
            order = np.argsort(steps, kind="stable")
            steps = steps[order]
            order = order[np.append(steps[1:] != steps[:-1], True)]  # of equal steps the last given stays
            steps = np.unique(steps)
            bits, mask, when = bits[order], mask[order], None if when is None else when[order]
        return cls(key, rank, steps, bits, mask, when)

    def __len__(self) -> int:
        return len(self.steps)

    def upto(self, last: int | None) -> Series:
        if last is None or not len(self) or self.steps[-1] <= last:
            return self
        n = int(np.searchsorted(self.steps, last, "right"))
        return Series(self.key, self.rank, self.steps[:n], self.bits[:n], self.integer[:n], None if self.times is None else self.times[:n])

    def floats(self) -> npt.NDArray[np.float64]:
        if not self.integer.any():
            return self.bits.view(np.float64)
        return np.where(self.integer, self.bits.view(np.int64).astype(np.float64), self.bits.view(np.float64))

    def value(self, index: int) -> int | float:
        return int(self.bits[index].view(np.int64)) if self.integer[index] else float(self.bits[index].view(np.float64))

    def at(self, step: int) -> int | float | None:
        index = int(np.searchsorted(self.steps, step))
        return self.value(index) if index < len(self) and self.steps[index] == step else None

    def time_at(self, step: int) -> int | None:
        index = int(np.searchsorted(self.steps, step))
        return int(self.times[index]) if self.times is not None and index < len(self) and self.steps[index] == step else None

    def constant(self) -> bool:
        """At least two points and all the same. One point is no constant: it may be the result."""
        return len(self) > 1 and bool(np.all(self.bits == self.bits[0]) and np.all(self.integer == self.integer[0]))


@dataclass(frozen=True)
class Gap:
    step: int
    expected: int | float | None
    found: int | float | None

    @property
    def relative(self) -> float | None:
        if self.expected is None or self.found is None:
            return None
        return relative_gap(self.expected, self.found)


@dataclass
class Pair:
    """What comparing one key and rank gave; the series themselves are let go, so that millions of points can pass through.

    ``missing``/``extra``: steps that only the original/only the rerun has. ``times``: when (µs) the points of the first differences
    were logged, to order metrics that differ at the same step."""

    key: str
    rank: int | None
    logged: int = 0
    rerun: int = 0
    compared: int = 0
    differing: int = 0
    first: Gap | None = None  # of the values that both sides have
    outside: Gap | None = None  # the first of them beyond the tolerance
    largest: Gap | None = None
    missing: I64 = field(default_factory=lambda: _EMPTY)
    extra: I64 = field(default_factory=lambda: _EMPTY)
    first_missing: Gap | None = None
    first_extra: Gap | None = None
    times: dict[int, int] = field(default_factory=dict)
    first_step: int | None = None
    last_logged: int | None = None
    last_found: int | None = None
    constant: bool = False  # the same one value throughout the original, and wherever the rerun has a point


def compare(
    key: str, rank: int | None, original: Series | None, rerun: Series | None, tolerance: tuple[float, float] | None = None
) -> Pair:
    """``tolerance``: (relative, absolute); a point is inside if its gap is at most ``absolute + relative * |expected|``."""
    a = original if original is not None else Series.of(key, rank, _EMPTY, np.empty(0))
    b = rerun if rerun is not None else Series.of(key, rank, _EMPTY, np.empty(0))
    pair = Pair(key, rank, logged=len(a), rerun=len(b))
    pair.first_step = int(a.steps[0]) if len(a) else None
    pair.last_logged = int(a.steps[-1]) if len(a) else None
    pair.last_found = int(b.steps[-1]) if len(b) else None
    _match(pair, a, b, tolerance)
    pair.constant = pair.compared > 0 and pair.differing == 0 and a.constant()
    for gap in (pair.first, pair.outside, pair.first_missing, pair.first_extra):
        if gap is not None:
            pair.times[gap.step] = a.time_at(gap.step) or b.time_at(gap.step) or 0
    return pair


def _match(pair: Pair, a: Series, b: Series, tolerance: tuple[float, float] | None) -> None:
    if len(a) == len(b) and np.array_equal(a.steps, b.steps):
        at_a = at_b = np.arange(len(a))
    else:
        _, at_a, at_b = np.intersect1d(a.steps, b.steps, assume_unique=True, return_indices=True)
        pair.missing = np.delete(a.steps, at_a)
        pair.extra = np.delete(b.steps, at_b)
        if len(pair.missing):
            pair.first_missing = Gap(int(pair.missing[0]), a.at(int(pair.missing[0])), None)
        if len(pair.extra):
            pair.first_extra = Gap(int(pair.extra[0]), None, b.at(int(pair.extra[0])))
    pair.compared = len(at_a)
    same = (a.bits[at_a] == b.bits[at_b]) & (a.integer[at_a] == b.integer[at_b])
    if bool(same.all()):
        return
    x, y = a.floats()[at_a], b.floats()[at_b]
    both_nan = np.isnan(x) & np.isnan(y)
    differs = np.flatnonzero(~(same | both_nan))
    pair.differing = len(differs)
    if not len(differs):
        return
    steps = a.steps[at_a[differs]]

    def gap(i: int) -> Gap:
        return Gap(int(steps[i]), a.value(int(at_a[differs[i]])), b.value(int(at_b[differs[i]])))

    pair.first = gap(0)
    with np.errstate(all="ignore"):
        x, y = x[differs], y[differs]
        distance = np.abs(x - y)
        relative = np.where(distance == 0, 0.0, distance / np.maximum(np.abs(x), np.abs(y)))
        relative = np.where(np.isnan(relative), np.inf, relative)
        pair.largest = gap(int(np.argmax(relative)))
        beyond = np.ones(len(x), bool)
        if tolerance is not None:
            beyond = ~(distance <= tolerance[1] + tolerance[0] * np.abs(x))
    if beyond.any():
        pair.outside = gap(int(np.flatnonzero(beyond)[0]))


def reduce_ranks(key: str, ranks: list[Series], how: str) -> Series:
    """One series over the ranks' steps: at each step the ``how`` (a reduction; last = highest rank) of those that have it."""
    ranks = sorted((s for s in ranks if len(s)), key=lambda s: s.rank or 0)
    if len(ranks) <= 1:
        only = ranks[0] if ranks else Series.of(key, None, _EMPTY, np.empty(0))
        return Series(key, None, only.steps, only.bits, only.integer, only.times)
    steps = np.unique(np.concatenate([s.steps for s in ranks]))
    table = np.full((len(ranks), len(steps)), np.nan)
    present = np.zeros(table.shape, bool)
    for row, series in enumerate(ranks):
        at = np.searchsorted(steps, series.steps)
        table[row, at], present[row, at] = series.floats(), True
    with np.errstate(all="ignore"):
        if how == "last":
            values = table[len(ranks) - 1 - np.argmax(present[::-1], axis=0), np.arange(len(steps))]
        elif how in ("max", "min"):
            fill = -np.inf if how == "max" else np.inf
            values = getattr(np, how)(np.where(present, table, fill), axis=0)
        elif how == "norm":
            values = np.linalg.norm(np.where(present, table, 0.0), axis=0)
        elif how == "median":
            values = np.ma.filled(np.ma.median(np.ma.array(table, mask=~present), axis=0), np.nan)
        else:
            values = np.where(present, table, 0.0).sum(axis=0)
            values = values if how == "sum" else values / present.sum(axis=0)
    return Series.of(key, None, steps, values)


def relative_gap(a: int | float, b: int | float) -> float:
    """|a - b| / max(|a|, |b|): 0 for equal, infinite where one is NaN or infinite and the other is not."""
    if isinstance(a, int) and isinstance(b, int):
        return 0.0 if a == b else abs(a - b) / max(abs(a), abs(b))
    x, y = float(a), float(b)
    if x == y or (math.isnan(x) and math.isnan(y)):
        return 0.0
    if not (math.isfinite(x) and math.isfinite(y)):
        return math.inf
    scale = max(abs(x), abs(y))
    return abs(x / scale - y / scale)


def ulps(a: int | float, b: int | float) -> tuple[int, str] | None:
    """How many floats lie between two floats, and of which type: float32 when both are float32 values (a torch loss), else float64."""
    if isinstance(a, int) or isinstance(b, int) or not (math.isfinite(a) and math.isfinite(b)):
        return None
    if _is_float32(a) and _is_float32(b):
        return abs(_ordered(a, "<f", "<i", 31) - _ordered(b, "<f", "<i", 31)), "float32"
    return abs(_ordered(a, "<d", "<q", 63) - _ordered(b, "<d", "<q", 63)), "float64"


def _is_float32(value: float) -> bool:
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0] == value
    except OverflowError:
        return False


def _ordered(value: float, as_float: str, as_int: str, sign: int) -> int:
    """The float's place on the line of all floats; -0.0 lies one below 0.0, as its bits do."""
    bits: int = struct.unpack(as_int, struct.pack(as_float, value))[0]
    return bits if bits >= 0 else -(bits + (1 << sign)) - 1


def exact_json(value: int | float | None) -> int | float | str | None:
    """A value that any JSON reader gives back bit by bit: NaN, infinities, -0.0 and integers beyond 2**53 become text."""
    if value is None:
        return None
    if isinstance(value, int):
        return value if abs(value) <= _FLOAT_MAX else str(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if value == 0.0 and math.copysign(1.0, value) < 0:
        return "-0.0"
    return value
