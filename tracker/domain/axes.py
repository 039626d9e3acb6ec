"""What a chart's x is: the step, a clock, or another metric of the run. Each is a function of (steps, times in µs) to float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Axis = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""NaN for points that have no x."""


def by_step(steps: np.ndarray, times: np.ndarray) -> np.ndarray:
    return steps.astype("f8")


def by_clock(zero_us: int) -> Axis:
    """Seconds since ``zero_us``."""
    return lambda steps, times: (times - zero_us) / 1e6


def by_metric(x_steps: np.ndarray, x_values: np.ndarray) -> Axis:
    """The value that the metric had at a point's step: the one logged at that step, else at the latest step before.

    ``x_steps`` rise strictly. Points before the first, and those where the value is not finite, have no x.
    """
    if not len(x_steps):
        return lambda steps, times: np.full(len(steps), np.nan)

    def axis(steps: np.ndarray, times: np.ndarray) -> np.ndarray:
        at = np.searchsorted(x_steps, steps, "right") - 1
        x = x_values[np.maximum(at, 0)].astype("f8")
        x[(at < 0) | ~np.isfinite(x)] = np.nan
        return x

    return axis
