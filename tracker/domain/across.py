"""Lines of several runs to one: at each step mean or median with a band, from every point, equal to numpy's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LINES = ("mean", "median")
BANDS = ("std", "stderr", "minmax")
_AT_ONCE = 4_000_000
_COLUMNS = ("x", "y", "lo", "hi", "min", "max", "runs")


@dataclass(frozen=True)
class Across:
    """``line``: mean or median; ``band``: std, stderr (std / √runs) or minmax; ``ddof`` as numpy's."""

    line: str = "mean"
    band: str = "std"
    ddof: int = 0


@dataclass
class Together:
    """At each x (rising): the line, the band around it, the least and greatest of the runs, and how many runs have a number there."""

    x: np.ndarray
    y: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    min: np.ndarray
    max: np.ndarray
    spread: np.ndarray | None
    runs: np.ndarray


def at_steps(lines: Sequence[tuple[np.ndarray, np.ndarray]], how: Across) -> Together:
    """Lines as (steps strictly rising, float64 values), at the union of their steps, each from those runs that have the step.

    NaN is passed over, as in numpy's nanmean; where all are NaN all is NaN, and ``runs`` 0.
    """
    first = lines[0][0]
    if all(len(steps) == len(first) and np.array_equal(steps, first) for steps, _ in lines[1:]):
        table = np.empty((len(first), len(lines)))
        for at, (_, y) in enumerate(lines):
            table[:, at] = y
        if not np.isnan(table).any():
            return _of_rows(first, table, how)
        steps, values = np.repeat(first, len(lines)), table.reshape(-1)
    else:
        steps, values = (np.concatenate([line[at] for line in lines]) for at in (0, 1))
        order = np.argsort(steps, kind="stable")
        steps, values = steps[order], values[order]
    union = steps[np.flatnonzero(np.r_[True, steps[1:] != steps[:-1]])]
    numbers = ~np.isnan(values)
    steps, values = steps[numbers], values[numbers]
    starts = np.searchsorted(steps, union, "left")
    counts = np.searchsorted(steps, union, "right") - starts
    found = _empty(union)
    for count in np.unique(counts[counts > 0]):
        mine = np.flatnonzero(counts == count)
        part = _of_rows(union[mine], values[starts[mine][:, None] + np.arange(count)], how)
        for name in ("y", "lo", "hi", "min", "max", "spread", "runs"):
            theirs = getattr(part, name)
            if theirs is not None:
                getattr(found, name)[mine] = theirs
    if how.band == "minmax":
        found.spread = None
    return found


def on_grid(lines: Sequence[tuple[np.ndarray, np.ndarray]], lo: float, hi: float, count: int, how: Across) -> Together:
    """Lines as (x not falling, values) where steps say nothing, at ``count`` x from lo to hi: each line as numpy.interp draws it between
    its finite points (of equal x the last), within its own first and last x. ``min`` and ``max`` are of all points nearer to that x
    than to the next."""
    grid = np.linspace(lo, hi, count) if hi > lo else np.array([lo])
    values = np.full((len(grid), len(lines)), np.nan)
    low, high = np.full(len(grid), np.nan), np.full(len(grid), np.nan)
    edges = (grid[1:] + grid[:-1]) / 2
    for at, (x, y) in enumerate(lines):
        keep = np.isfinite(y)
        keep[:-1] &= ~((x[1:] == x[:-1]) & keep[1:])
        own, theirs = x[keep], y[keep]
        if len(own):
            inside = (grid >= own[0]) & (grid <= own[-1])
            values[inside, at] = np.interp(grid[inside], own, theirs)
        within = (x >= lo) & (x <= hi)
        cell = np.searchsorted(edges, x[within], "right")
        np.fmin.at(low, cell, y[within])
        np.fmax.at(high, cell, y[within])
    found = at_steps([(grid, values[:, at]) for at in range(len(lines))], how)
    found.min, found.max = np.fmin(low, found.min), np.fmax(high, found.max)
    if how.band == "minmax":
        found.lo, found.hi = found.min, found.max
    return found


def _empty(x: np.ndarray) -> Together:
    y, lo, hi, low, high, spread = (np.full(len(x), np.nan) for _ in range(6))
    return Together(x, y, lo, hi, low, high, spread, np.zeros(len(x), "u4"))


def _of_rows(x: np.ndarray, values: np.ndarray, how: Across) -> Together:
    """``values``: a row for each x, none NaN. Rows lie in one piece, so that numpy adds them as it adds one alone."""
    if len(values) * values.shape[1] > _AT_ONCE and len(values) > 1:
        half = len(values) // 2
        return _joined(_of_rows(x[:half], values[:half], how), _of_rows(x[half:], values[half:], how))
    runs = np.full(len(x), values.shape[1], "u4")
    low, high = values.min(axis=1), values.max(axis=1)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        y = values.mean(axis=1) if how.line == "mean" else np.median(values, axis=1)
        if how.band == "minmax":
            return Together(x, y, low, high, low, high, None, runs)
        spread = _std(values, how.ddof)
        if how.band == "stderr":
            spread = spread / np.sqrt(values.shape[1])
        return Together(x, y, y - spread, y + spread, low, high, spread, runs)


def _std(values: np.ndarray, ddof: int) -> np.ndarray:
    if values.shape[1] <= ddof:
        return np.full(len(values), np.nan)
    return values.std(axis=1, ddof=ddof)


def _joined(a: Together, b: Together) -> Together:
    spread = None if a.spread is None or b.spread is None else np.concatenate([a.spread, b.spread])
    x, y, lo, hi, low, high, runs = (np.concatenate([getattr(part, name) for part in (a, b)]) for name in _COLUMNS)
    return Together(x, y, lo, hi, low, high, spread, runs)
