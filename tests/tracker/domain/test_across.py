"""Groups of runs: mean, median, std, stderr and extremes at each step are numpy's over every run's point there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracker.domain import across
from tracker.domain.across import Across

STEPS = st.lists(st.integers(-5, 40), min_size=1, max_size=30, unique=True).map(sorted)
FLOATS = st.floats(-1e9, 1e9) | st.sampled_from([float("nan"), float("inf"), float("-inf"), -0.0])


@st.composite
def lines(draw):
    same = draw(st.none() | STEPS)
    found = []
    for _ in range(draw(st.integers(1, 12))):
        steps = same or draw(STEPS)
        found.append((np.array(steps), np.array(draw(st.lists(FLOATS, min_size=len(steps), max_size=len(steps))))))
    return found


@given(lines(), st.sampled_from(across.LINES), st.sampled_from(across.BANDS), st.integers(0, 1))
@settings(max_examples=150, deadline=None)
def test_every_step_equals_numpy_over_the_runs_that_have_a_number_there(found, line, band, ddof):
    """To the last bit, in the order of the runs."""
    together = across.at_steps(found, Across(line, band, ddof))
    assert together.x.tolist() == sorted({int(step) for steps, _ in found for step in steps})
    for at, step in enumerate(together.x):
        values = np.array([y[steps == step][0] for steps, y in found if step in steps])
        values = values[~np.isnan(values)]
        assert together.runs[at] == len(values)
        if not len(values):
            assert np.isnan([together.y[at], together.lo[at], together.hi[at], together.min[at], together.max[at]]).all()
            continue
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(together.y[at], getattr(np, line)(values))
            np.testing.assert_array_equal([together.min[at], together.max[at]], [values.min(), values.max()])
            if band == "minmax":
                np.testing.assert_array_equal([together.lo[at], together.hi[at]], [values.min(), values.max()])
                continue
            spread = np.std(values, ddof=ddof) if len(values) > ddof else np.nan
            spread = spread / np.sqrt(len(values)) if band == "stderr" else spread
            np.testing.assert_array_equal(together.spread[at], spread)
            np.testing.assert_array_equal([together.lo[at], together.hi[at]], [together.y[at] - spread, together.y[at] + spread])


def test_large_groups_go_in_portions_that_change_nothing(monkeypatch):
    draw = np.random.default_rng(0)
    found = [(np.arange(500), draw.standard_normal(500)) for _ in range(7)]
    whole = across.at_steps(found, Across())
    monkeypatch.setattr(across, "_AT_ONCE", 100)
    parts = across.at_steps(found, Across())
    assert np.array_equal(whole.y, parts.y)
    assert np.array_equal(whole.spread, parts.spread)


@pytest.mark.parametrize("line", across.LINES)
def test_on_a_grid_each_run_is_numpys_interp_between_its_own_ends(line):
    """And a spike between two places of the grid is in the extremes all the same."""
    draw = np.random.default_rng(1)
    found = []
    for size in (50, 80, 3):
        x = np.sort(draw.uniform(0, 100, size))
        found.append((x, draw.standard_normal(size)))
    found[0][1][20] = 1e6
    found[1][1][5] = np.nan
    together = across.on_grid(found, 0.0, 100.0, 11, Across(line, "std"))
    assert together.x.tolist() == np.linspace(0, 100, 11).tolist()
    for at, x in enumerate(together.x):
        values = []
        for own, y in found:
            finite = np.isfinite(y)
            if own[finite][0] <= x <= own[finite][-1]:
                values.append(np.interp(x, own[finite], y[finite]))
        assert together.runs[at] == len(values)
        if values:
            assert together.y[at] == getattr(np, line)(np.array(values))
            assert together.spread[at] == np.std(np.array(values))
    assert np.nanmax(together.max) == 1e6


def test_of_equal_x_the_last_is_drawn_through():
    together = across.on_grid([(np.array([0.0, 1.0, 1.0, 2.0]), np.array([0.0, 5.0, 1.0, 2.0]))], 0.0, 2.0, 3, Across())
    assert together.y.tolist() == [0.0, 1.0, 2.0]
    assert together.max[1] == 5.0
