"""Where a line is not a number: the markers that a chart draws, so that a NaN among a million points is seen."""

from __future__ import annotations

import numpy as np

NAN, POSITIVE, NEGATIVE = 1, 2, 3


def found(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x, kind) of the points that are NaN or infinite."""
    with np.errstate(invalid="ignore", over="ignore"):
        if not len(y) or np.isfinite(y.sum()):
            return x[:0], np.zeros(0, "u4")
    at = np.flatnonzero(~np.isfinite(y))
    own = y[at]
    return x[at], np.where(np.isnan(own), NAN, np.where(own > 0, POSITIVE, NEGATIVE)).astype("u4")


def marks(x: np.ndarray, kinds: np.ndarray, edges: np.ndarray) -> dict[str, np.ndarray]:
    """Of each bucket (``edges``: the first x of each, rising) and kind that occurs: the first and last such x, and how many.

    Arrays of one length, by bucket and kind; none at all where nothing is odd.
    """
    if not len(x):
        return {}
    bucket = np.maximum(np.searchsorted(edges, x, "right") - 1, 0)
    order = np.lexsort((x, kinds, bucket))
    x, kinds, bucket = x[order], kinds[order], bucket[order]
    starts = np.flatnonzero(np.r_[True, (bucket[1:] != bucket[:-1]) | (kinds[1:] != kinds[:-1])])
    counts = np.diff(np.r_[starts, len(x)])
    return {
        "odd_kind": kinds[starts],
        "odd_first": x[starts],
        "odd_last": x[starts + counts - 1],
        "odd_count": counts.astype("u4"),
    }
