"""Thinning a series for the screen and reducing ranks to one line, in numpy alone. Extremes never vanish."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

Part = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(steps, times, values) of a line, steps strictly rising."""
_FOLDS = {"min": np.minimum, "max": np.maximum, "fmin": np.fmin, "fmax": np.fmax}


@dataclass
class Buckets:
    """Of each non-empty bucket: its first x; min, max and mean over what is not NaN (NaN if that is nothing); first and last point
    as logged; points counted with NaN. float64, ``count`` uint32. Where the odd ones are: tracker/domain/odd.py."""

    x: np.ndarray
    min: np.ndarray
    max: np.ndarray
    mean: np.ndarray
    first: np.ndarray
    last: np.ndarray
    count: np.ndarray


def cells(x: np.ndarray, lo: float, hi: float, count: int) -> np.ndarray:
    """Where each non-empty one of ``count`` buckets of equal width over lo … hi begins in ``x``, which does not fall and lies within."""
    parts = np.arange(1, count, dtype="f8") / count
    width = hi - lo
    edges = lo + width * parts if np.isfinite(width) else lo * (1 - parts) + hi * parts
    starts = np.unique(np.r_[0, np.searchsorted(x, edges, "left")])
    return starts[starts < len(x)]


def thin(x: np.ndarray, y: np.ndarray, lo: float, hi: float, count: int, starts: np.ndarray | None = None) -> Buckets:
    """The ``cells`` of a line (``starts``, where they are known); ``y`` is float64."""
    if starts is None:
        starts = cells(x, lo, hi, count)
    counts = np.diff(np.r_[starts, len(x)])
    lasts = starts + counts - 1
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        total = np.add.reduceat(y, starts)
        mean = total / counts
        if np.isfinite(total).all():
            low, high = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
        else:
            low, high = np.fmin.reduceat(y, starts), np.fmax.reduceat(y, starts)
            nan = np.isnan(y)
            if nan.any():
                numbers = counts - np.add.reduceat(nan.astype(np.int64), starts)
                mean = np.where(numbers > 0, np.add.reduceat(np.where(nan, 0.0, y), starts) / np.maximum(numbers, 1), np.nan)
    return Buckets(x[starts], low, high, mean, y[starts], y[lasts], counts.astype("u4"))


def odd_counts(y: np.ndarray) -> tuple[int, int]:
    """(NaN, infinite) values."""
    if y.dtype.kind != "f":
        return 0, 0
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(y.sum()):
            return 0, 0
    return int(np.isnan(y).sum()), int(np.isinf(y).sum())


def reduce_ranks(parts: list[Part], how: str, groups: Sequence[Hashable] | None = None) -> Part:
    """The lines of the ranks to one: at equal steps, of the ranks that have the step.

    ``groups``: a name for each rank; ``how`` applies within those of one name, then the groups' lines go together by mean.
    NaN stays visible, as in numpy. ``last`` is the latest by time, then the highest rank; ``norm`` the root of the sum of squares;
    ``fmin`` and ``fmax`` pass over NaN. The time of a step is its latest.
    """
    if groups is not None:
        members: dict[Hashable, list[Part]] = {}
        for name, part in zip(groups, parts, strict=True):
            members.setdefault(name, []).append(part)
        if len(members) > 1:
            return reduce_ranks([reduce_ranks(mine, how) for mine in members.values()], "mean")
    if len(parts) == 1:
        steps, times, values = parts[0]
        return (steps, times, np.abs(values)) if how == "norm" else parts[0]
    first = parts[0][0]
    if all(len(steps) == len(first) and np.array_equal(steps, first) for steps, _, _ in parts[1:]):
        times, values = (np.stack([part[at] for part in parts], axis=1) for at in (1, 2))
        return first, times.max(axis=1), _across(times, values, how)
    steps, times, values = (np.concatenate([part[at] for part in parts]) for at in range(3))
    order = np.lexsort((times, steps)) if how == "last" else np.argsort(steps, kind="stable")
    steps, times, values = steps[order], times[order], values[order]
    starts = np.flatnonzero(np.r_[True, steps[1:] != steps[:-1]])
    counts = np.diff(np.r_[starts, len(steps)])
    with np.errstate(invalid="ignore", over="ignore"):
        if how == "last":
            found = values[starts + counts - 1]
        elif how in _FOLDS:
            found = _FOLDS[how].reduceat(values, starts)
        else:
            # By rows of equal length and not by reduceat, whose order of addition is another than numpy's own.
            found = np.empty(len(starts))
            for count in np.unique(counts):
                mine = np.flatnonzero(counts == count)
                found[mine] = _fold(values[starts[mine][:, None] + np.arange(count)], how)
    return steps[starts], np.maximum.reduceat(times, starts), found


def band(parts: list[Part]) -> tuple[np.ndarray, np.ndarray]:
    """The least and greatest of the ranks at each of ``reduce_ranks``'s steps, passing over NaN."""
    first = parts[0][0]
    if all(len(steps) == len(first) and np.array_equal(steps, first) for steps, _, _ in parts[1:]):
        low, high = parts[0][2].copy(), parts[0][2].copy()
        for _, _, values in parts[1:]:  # in place: a thousand ranks side by side would take a thousand times the room
            np.fmin(low, values, out=low)
            np.fmax(high, values, out=high)
        return low, high
    return reduce_ranks(parts, "fmin")[2], reduce_ranks(parts, "fmax")[2]


def _across(times: np.ndarray, values: np.ndarray, how: str) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        if how == "last":
            latest = values.shape[1] - 1 - times[:, ::-1].argmax(axis=1)
            return values[np.arange(len(values)), latest]
        return _fold(values, how)


def _fold(values: np.ndarray, how: str) -> np.ndarray:
    """Each row to one number."""
    if how in _FOLDS:
        return _FOLDS[how].reduce(values, axis=1)
    if how == "norm":
        return np.linalg.norm(values, axis=1)
    if how == "median":
        return np.median(values, axis=1)
    return getattr(values, how)(axis=1)
