"""Smoothing equals its definition in docs/series.md, point by point; what is not finite moves nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tracker.domain.smoothing import Smoothing, smooth

VALUES = st.lists(st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf, -0.0]), min_size=1, max_size=200)
HOW = st.one_of(
    st.builds(Smoothing, st.just("ema"), st.floats(0, 0.9999)),
    st.builds(Smoothing, st.just("time_ema"), st.floats(1e-3, 1e4)),
    st.builds(Smoothing, st.just("gaussian"), st.floats(0.1, 60)),
    st.builds(Smoothing, st.just("mean"), st.integers(0, 60).map(lambda half: 2.0 * half + 1)),
)


def by_definition(how: Smoothing, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The formulas as they stand in the docs: a sum over all points for each point."""
    finite = np.flatnonzero(np.isfinite(y))
    out = np.full(len(y), np.nan)
    for i, at in enumerate(finite):
        k = np.arange(len(finite))
        far = np.abs(i - k)
        if how.kind == "ema":
            weights = np.where(k <= i, how.amount ** np.maximum(i - k, 0.0), 0.0)
        elif how.kind == "time_ema":
            weights = np.where(k <= i, np.exp(-np.maximum(x[at] - x[finite], 0) / how.amount), 0.0)
        elif how.kind == "gaussian":
            weights = np.where(far <= math.ceil(4 * how.amount), np.exp(-(far**2) / (2 * how.amount**2)), 0.0)
        else:
            weights = np.where(far <= how.amount // 2, 1.0, 0.0)
        out[at] = (weights * y[finite]).sum() / weights.sum()
    return out


@given(HOW, VALUES, st.data())
@example(Smoothing("ema", 0.0), [1.0, math.nan, 3.0], None)
@settings(max_examples=150, deadline=None)
def test_every_kind_equals_its_formula_at_every_point(how, values, data):
    y = np.array(values)
    gaps = [1.0] * len(y) if data is None else data.draw(st.lists(st.floats(0, 1e5), min_size=len(y), max_size=len(y)))
    x = np.cumsum(gaps)
    scale = np.abs(y[np.isfinite(y)]).max(initial=1.0)
    np.testing.assert_allclose(smooth(how, x, y), by_definition(how, x, y), rtol=1e-9, atol=1e-11 * scale)


@pytest.mark.parametrize("sigma", [15.0, 200.0])
def test_a_long_gaussian_equals_its_formula_also_where_it_goes_by_fourier(sigma):
    draw = np.random.default_rng(3)
    y = draw.standard_normal(20_000)
    y[777] = np.nan
    found = smooth(Smoothing("gaussian", sigma), np.arange(len(y), dtype="f8"), y)
    finite = y[np.isfinite(y)]
    reach = math.ceil(4 * sigma)
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    expected = np.convolve(finite, kernel, "same") / np.convolve(np.ones(len(finite)), kernel, "same")
    np.testing.assert_allclose(np.delete(found, 777), expected, rtol=0, atol=1e-12)


def test_a_huge_value_spoils_only_what_its_window_reaches():
    """Running sums over the whole line would leave their rounding behind for ever."""
    y = np.ones(10_000)
    y[100] = 1e30
    found = smooth(Smoothing("mean", 11.0), np.arange(10_000.0), y)
    assert found[200:].tolist() == [1.0] * 9800
    assert smooth(Smoothing("time_ema", 1.0), np.arange(10_000.0), y)[5000:].tolist() == pytest.approx([1.0] * 5000, abs=1e-12)


def test_a_line_of_nan_alone_stays_one_and_an_empty_one_is_empty():
    for how in (Smoothing("ema", 0.9), Smoothing("time_ema", 1.0), Smoothing("gaussian", 2.0), Smoothing("mean", 3.0)):
        assert np.isnan(smooth(how, np.arange(3.0), np.full(3, np.nan))).all()
        assert len(smooth(how, np.zeros(0), np.zeros(0))) == 0
