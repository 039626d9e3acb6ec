"""A line as it is answered: cut to the window, exact where it fits, else min, max, mean, first, last and count of buckets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tracker.domain import buckets as thinning
from tracker.domain import odd
from tracker.domain import smoothing as smoothings
from tracker.domain.buckets import Buckets
from tracker.domain.series_query import BUCKETS, DRAWN, MOST_DRAWN, Query
from tracker.services.series_lines import Line
from tracker.services.series_read import window_of
from tracker.store import reading

_ALIGNED = ("lo", "hi", "min", "max")
"""What keeps its extremes in a bucket; all else beside a line is told where ``last`` is."""
_F4 = frozenset(("y", "min", "max", "mean", "first", "last", "smooth", "lo", "hi", "spread"))


@dataclass(frozen=True)
class Room:
    """How many buckets a line gets, and up to how many points it comes exactly."""

    buckets: int
    points: int


def room_for(query: Query, lines: int) -> Room:
    """As asked, less where many lines would make the answer too long."""
    share = max(MOST_DRAWN // max(lines, 1), 1)
    wanted = query.buckets if query.buckets is not None else max(1, min(BUCKETS, DRAWN // max(lines, 1)))
    buckets = min(wanted, share)
    return Room(buckets, buckets if query.points is None else min(query.points, share))


def entry(query: Query, line: Line, room: Room, lowest: int | None) -> dict[str, Any] | None:
    """None where nothing lies in the window. ``lowest``: in a live tail the step from which on the client draws anew."""
    if query.smooth is not None and len(line.x):
        line.more["smooth"] = smoothings.smooth(query.smooth, line.x, line.y)
    n = _stored(query, line, reading.LO if lowest is None else lowest)
    x, y, steps, more = _within(query, line, lowest)
    if not len(x):
        return None
    told = {**line.told, "n": n}
    if lowest is not None:
        told["from"] = float(lowest) if query.x == "step" and not query.comes_whole else float(x.min())
        if query.comes_whole:
            told["whole"] = True
    marks = line.odd
    if marks is not None:
        inside = (marks[0] >= x[0]) & (marks[0] <= x[-1])
        marks = marks[0][inside], marks[1][inside]
    nan, inf = thinning.odd_counts(y) if marks is None else (int((marks[1] == odd.NAN).sum()), int((marks[1] != odd.NAN).sum()))
    told |= {"nan": nan, "inf": inf}
    if len(x) <= room.points or (line.run is None and not len(steps)):
        found = {"x": x, "y": y, **({"steps": steps} if len(steps) else {}), **more}
        if marks is not None:
            found |= odd.marks(*marks, x)
        return {**told, "drawn": len(x), "exact": bool(len(steps)), **chosen(query, found, ("x", "y"))}
    lo = float(x[0]) if query.lo is None else max(query.lo, float(x[0]))
    hi = float(x[-1]) if query.hi is None else min(query.hi, float(x[-1]))
    starts = thinning.cells(x, lo, hi, room.buckets)
    thin = thinning.thin(x, y, lo, hi, room.buckets, starts)
    found = {**arrays_of(thin), **_beside(more, starts, thin.count)}
    found |= odd.marks(*(odd.found(x, y) if marks is None else marks), thin.x)
    return {**told, "drawn": len(thin.x), "exact": False, **chosen(query, found, ("x",))}


def arrays_of(found: Buckets) -> dict[str, np.ndarray]:
    return {
        "x": found.x, "y": found.last, "min": found.min, "max": found.max, "mean": found.mean, "first": found.first,
        "last": found.last, "count": found.count,
    }  # fmt: skip


def _beside(more: dict[str, np.ndarray], starts: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    found = {}
    lasts = starts + counts.astype("i8") - 1
    for name, array in more.items():
        if name not in _ALIGNED:
            found[name] = array[lasts]
        else:
            found[name] = (np.fmax if name in ("hi", "max") else np.fmin).reduceat(array, starts)
    return found


def _within(query: Query, line: Line, lowest: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    x, y, steps, more = line.x, line.y, line.steps, line.more
    if query.x == "step":
        lo, hi = window_of(query)
        lo = lo if lowest is None else max(lo, lowest)
        part = slice(int(np.searchsorted(steps, lo, "left")), int(np.searchsorted(steps, hi, "right")))
    else:
        a = 0 if query.lo is None else int(np.searchsorted(x, query.lo, "left"))
        part = slice(a, len(x) if query.hi is None else int(np.searchsorted(x, query.hi, "right")))
    if part.start > 0 or part.stop < len(x):
        x, y, steps = x[part], y[part], steps[part]
        more = {name: array[part] for name, array in more.items()}
    if query.x != "step" and lowest is not None and lowest > reading.LO:
        keep = steps >= lowest
        x, y, steps = x[keep], y[keep], steps[keep]
        more = {name: array[keep] for name, array in more.items()}
    return x, y, steps, more


def _stored(query: Query, line: Line, lowest: int) -> int:
    """How many points are stored, winning or not, in the window and from this step on."""
    total = 0
    lo, hi = window_of(query)
    lo = max(lo, lowest)
    is_cut = query.x != "step" and (query.lo is not None or query.hi is not None)
    for column, axis in line.stored:
        if not is_cut and lo == reading.LO and hi == reading.HI:
            total += len(column.steps)
            continue
        inside = (column.steps >= lo) & (column.steps <= hi)
        if is_cut:
            x = axis(column.steps, column.times)
            inside &= (x >= (-np.inf if query.lo is None else query.lo)) & (x <= (np.inf if query.hi is None else query.hi))
        total += int(inside.sum())
    return total


def chosen(query: Query, found: dict[str, np.ndarray], always: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays that were asked for, as wide as asked."""
    if query.arrays is not None:
        found = {name: array for name, array in found.items() if name in always or name.partition("_")[0] in query.arrays}
    if query.floats == "f4":
        found = {name: _narrow(array) if name in _F4 else array for name, array in found.items()}
    return found


def _narrow(array: np.ndarray) -> np.ndarray:
    """float32, unless a finite value would become infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = array.astype("f4")
    return array if bool((np.isinf(found) & np.isfinite(array)).any()) else found
