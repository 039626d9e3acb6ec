"""Smoothing, exactly as docs/series.md defines it, over all points of a line; what is not finite moves nothing and stays a gap.

* ``ema``: s = Σ w^(i-k) y_k / Σ w^(i-k) over the points k ≤ i: an exponential mean by point whose start is corrected (TensorBoard's).
* ``time_ema``: the same with exp(-(x_i - x_k) / scale) for w^(i-k): by distance in x, so that gaps count (as in W&B and Neptune).
* ``gaussian``: the mean weighted by exp(-(i - k)² / 2 sigma²) over the points with |i - k| ≤ ceil(4 sigma).
* ``mean``: the plain mean over the ``window`` points around it, fewer at the ends.

i and k number the finite points by rising x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

KINDS = {"ema": "weight", "time_ema": "scale", "gaussian": "sigma", "mean": "window"}
"""Each kind's one parameter."""
MOST_SIGMA, MOST_WINDOW = 2000.0, 1_000_001
_DIRECT = 48  # kernels up to so many points are cheaper without Fourier


@dataclass(frozen=True)
class Smoothing:
    kind: str
    amount: float

    @property
    def looks_ahead(self) -> bool:
        """Whether points to the right change a value: then a new point changes some that were drawn."""
        return self.kind in ("gaussian", "mean")


def smooth(how: Smoothing, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``y`` smoothed, float64 of the same length, NaN where ``y`` is not finite. ``x`` does not fall."""
    finite = np.isfinite(y)
    is_whole = bool(finite.all())
    values = y if is_whole else y[finite]
    if len(values):
        if how.kind == "ema":
            values = _exponential(how.amount, values)
        elif how.kind == "time_ema":
            own = x if is_whole else x[finite]
            with np.errstate(over="ignore", under="ignore"):
                factors = np.exp(-np.diff(own, prepend=own[:1]) / how.amount)
            values = _exponential(factors, values)
        elif how.kind == "gaussian":
            values = _gaussian(how.amount, values)
        else:
            values = _mean(int(how.amount), values)
    if is_whole:
        return values
    out = np.full(len(y), np.nan)
    out[finite] = values
    return out


def _exponential(factors: float | np.ndarray, y: np.ndarray) -> np.ndarray:
    """Σ_k f_(k+1)…f_i y_k / Σ_k f_(k+1)…f_i. ``factors``: f of each point, or one for all.

    The recurrence s_i = f_i s_(i-1) + y_i in about √n turns: all rows of a square at once, column by column, then what each row hands on to
    the next. Nothing is divided by a power, so nothing overflows that would not overflow point by point.
    """
    n = len(y)
    rows = max(1, math.isqrt(n))
    columns = -(-n // rows)
    if isinstance(factors, np.ndarray):
        sums = np.stack([_square(y, rows, columns, 0.0), _square(np.ones(n), rows, columns, 0.0)], axis=1)
        _run_on(sums, _square(factors, rows, columns, 1.0))
        weights = np.ascontiguousarray(sums[:, 1].T).reshape(-1)[:n]
    elif factors == 0:
        return y.copy()
    else:
        sums = _square(y, rows, columns, 0.0)[:, None]
        _run_on(sums, np.full((columns, rows), float(factors)))
        weights = np.expm1(np.arange(1.0, n + 1) * math.log(factors)) / (factors - 1)  # of a geometric series
    found = np.ascontiguousarray(sums[:, 0].T).reshape(-1)[:n]
    with np.errstate(over="ignore", invalid="ignore"):
        return np.divide(found, weights, out=found)


def _run_on(sums: np.ndarray, factors: np.ndarray) -> None:
    """In place: of each column's (value, row) what has come up to it. ``factors``: (column, row)."""
    spare = np.empty(sums.shape[1:])
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for at in range(1, len(sums)):
            np.multiply(sums[at - 1], factors[at], out=spare)
            sums[at] += spare
        reach = np.multiply.accumulate(factors, axis=0)
        carried = [(0.0,) * sums.shape[1]]
        for row, factor in zip(sums[-1].T.tolist()[:-1], reach[-1].tolist(), strict=False):
            carried.append(tuple(own + factor * before for own, before in zip(row, carried[-1], strict=True)))
        for at, starts in enumerate(np.array(carried).T):
            sums[:, at] += reach * starts


def _square(values: np.ndarray, rows: int, columns: int, fill: float) -> np.ndarray:
    """Points row by row, told column by column."""
    padded = np.full(rows * columns, fill)
    padded[: len(values)] = values
    return np.ascontiguousarray(padded.reshape(rows, columns).T)


def _gaussian(sigma: float, y: np.ndarray) -> np.ndarray:
    reach = min(math.ceil(4 * sigma), len(y) - 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    total = _convolved(y, kernel)
    # The weights of the points that are there: less than the whole kernel near the ends alone.
    half = np.cumsum(kernel)
    at = np.arange(len(y))
    left, right = np.minimum(at, reach), np.minimum(len(y) - 1 - at, reach)
    return total / (half[reach + right] - half[reach - left] + kernel[reach - left])


def _convolved(y: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """As ``np.convolve(y, kernel, "same")`` for a kernel of odd length that is its own mirror image."""
    reach = len(kernel) // 2
    if len(kernel) <= _DIRECT or len(y) <= 2 * len(kernel):
        return np.convolve(y, kernel, "full")[reach : reach + len(y)]
    # Piece by piece by Fourier: an outlier blurs what is near it alone.
    size = 1 << max(13, (4 * len(kernel)).bit_length())
    step = size - len(kernel) + 1
    pieces = -(-len(y) // step)
    padded = np.zeros(pieces * step + len(kernel) - 1)
    padded[reach : reach + len(y)] = y
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)[::step] if pieces > 1 else None
    if windows is None:
        windows = np.zeros((1, size))
        windows[0, : min(size, len(padded))] = padded[:size]
    found = np.fft.irfft(np.fft.rfft(windows, axis=1) * np.fft.rfft(kernel, size), size, axis=1)
    return found[:, len(kernel) - 1 :].reshape(-1)[: len(y)]


def _mean(window: int, y: np.ndarray) -> np.ndarray:
    """Windows as the tail of one block and the head of the next: sums of ``window`` numbers and never differences of long sums."""
    n = len(y)
    reach = min(window // 2, n)
    width = 2 * reach + 1
    blocks = -(-(n + 2 * reach) // width) + 1
    padded = np.zeros(blocks * width)
    padded[reach : reach + n] = y
    square = padded.reshape(blocks, width)
    with np.errstate(over="ignore", invalid="ignore"):
        heads = np.cumsum(square, axis=1).reshape(-1)
        tails = np.cumsum(square[:, ::-1], axis=1)[:, ::-1].reshape(-1)
        at = np.arange(n)
        total = np.where(at % width == 0, 0.0, tails[:n]) + heads[width - 1 : width - 1 + n]
    return total / (np.minimum(at, reach) + np.minimum(n - 1 - at, reach) + 1)
