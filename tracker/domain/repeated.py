"""Repeated steps: all are kept, the later one wins."""

from __future__ import annotations

import numpy as np


def winning_order(steps: np.ndarray) -> np.ndarray | None:
    """Positions of the points that win their step, by rising step; the last of equal steps wins, so ``steps`` come in the order of
    (attempt, writer's start, record number). None where steps rise strictly: then it is all of them, as they stand."""
    if len(steps) < 2 or bool((steps[1:] > steps[:-1]).all()):
        return None
    order = np.argsort(steps, kind="stable")
    rising = steps[order]
    return order[np.r_[rising[1:] != rising[:-1], True]]
