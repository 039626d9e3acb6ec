"""Ranks put together: the same numbers as numpy over all points, whichever ranks have a step, over all ranks or some axes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracker.domain import compare, coordinates
from tracker.domain.buckets import band, reduce_ranks
from tracker.domain.keys import KeyMeaning, meaning

NUMPY = {
    "mean": np.mean, "sum": np.sum, "max": np.max, "min": np.min, "median": np.median,
    "norm": lambda values: np.linalg.norm(values.reshape(1, -1), axis=1)[0],
}  # fmt: skip


def part(steps, values, times=None):
    steps = np.asarray(steps, "i8")
    return steps, np.asarray(times if times is not None else steps * 10, "i8"), np.asarray(values, "f8")


points = st.dictionaries(st.integers(0, 12), st.floats(-1e6, 1e6, width=32), min_size=1, max_size=12)
lines = st.lists(points.map(lambda found: part(sorted(found), [found[step] for step in sorted(found)])), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(lines, st.sampled_from(sorted(NUMPY)))
def test_each_step_is_numpys_over_the_ranks_that_have_it(parts, how):
    steps, _, values = reduce_ranks(parts, how)
    assert steps.tolist() == sorted({s for p in parts for s in p[0].tolist()})
    for step, value in zip(steps, values, strict=True):
        there = np.array([p[2][p[0] == step][0] for p in parts if step in p[0]])
        assert value == NUMPY[how](there)


@settings(max_examples=100, deadline=None)
@given(lines, st.data(), st.sampled_from(["norm", "sum", "max"]))
def test_over_some_axes_is_numpys_within_each_group_then_the_mean(parts, data, how):
    groups = data.draw(st.lists(st.integers(0, 2), min_size=len(parts), max_size=len(parts)))
    steps, _, values = reduce_ranks(parts, how, groups)
    for step, value in zip(steps, values, strict=True):
        inner = []
        for name in dict.fromkeys(groups):
            there = [p[2][p[0] == step][0] for p, g in zip(parts, groups, strict=True) if g == name and step in p[0]]
            if there:
                inner.append(NUMPY[how](np.array(there)))
        assert value == pytest.approx(np.mean(inner), rel=1e-12)


def test_a_gradient_norm_of_shards_is_the_root_of_the_sum_of_squares_and_its_copies_count_once():
    """Two data-parallel replicas, each split over two tensor ranks that hold 3 and 4: the norm is 5, not 7.07, not 3.5."""
    where = {rank: {"dp": rank // 2, "tp": rank % 2, "node": 0, "local": rank} for rank in range(4)}
    parts = [part([0, 1], [3.0, 6.0]) if rank % 2 == 0 else part([0, 1], [4.0, 8.0]) for rank in range(4)]
    meant = meaning("grad_norm", [("grad_norm", {"reduce": "norm", "over": ["tp", "pp"]})])
    assert (meant.reduce, meant.over) == ("norm", ("tp", "pp"))
    assert reduce_ranks(parts, meant.reduce, coordinates.groups(list(where), where, meant.over))[2].tolist() == [5.0, 10.0]
    assert reduce_ranks(parts, "norm")[2][0] == pytest.approx(50**0.5)
    assert reduce_ranks(parts, meaning("grad_norm").reduce)[2].tolist() == [3.5, 7.0]


def test_a_loss_that_only_the_last_stage_has_is_that_stages():
    parts = [part([0, 1], [2.0, 1.0]), part([0, 1], [4.0, 3.0])]  # the two replicas of the last of four stages; the others logged nothing
    assert reduce_ranks(parts, meaning("train/loss").reduce)[2].tolist() == [3.0, 2.0]


def test_an_axis_that_nobody_has_is_of_size_one():
    where = {0: {"dp": 0}, 1: {"dp": 1}}
    assert len(set(coordinates.groups([0, 1], where, ["tp"]))) == 2
    assert len(set(coordinates.groups([0, 1], where, ["tp", "dp"]))) == 1
    assert len(set(coordinates.groups([0, 1], {}, ["tp"]))) == 2


def test_the_axes_of_machines_count_only_when_they_are_named():
    where = {rank: {"tp": rank % 2, "node": rank // 2, "local": rank % 2} for rank in range(4)}
    assert coordinates.groups(list(where), where, ["tp"]) == [()] * 4
    assert coordinates.groups(list(where), where, ["local"]) == [(0,), (0,), (1,), (1,)]


def test_the_band_passes_over_nan_and_the_line_shows_it():
    parts = [part([0, 1], [1.0, np.nan]), part([0, 1], [3.0, 5.0])]
    assert np.isnan(reduce_ranks(parts, "mean")[2][1])
    assert [line.tolist() for line in band(parts)] == [[1.0, 5.0], [3.0, 5.0]]
    assert parts[0][2][0] == 1.0
    uneven = [part([0, 2], [1.0, np.nan]), part([0, 1, 2], [3.0, 5.0, 7.0])]
    assert [line.tolist() for line in band(uneven)] == [[1.0, 5.0, 7.0], [3.0, 5.0, 7.0]]


@pytest.mark.parametrize("how", sorted(NUMPY))
def test_a_verdict_puts_ranks_together_as_the_charts_do(how):
    """A rerun on another number of ranks is compared after reduction; steps that some ranks lack are of those that have them."""
    lines = {0: part([0, 1, 2], [3.0, 1.0, 2.0]), 1: part([0, 2], [4.0, 5.0]), 2: part([0, 2, 3], [12.0, 7.0, 9.0])}
    series = [compare.Series.of("k", rank, steps, values) for rank, (steps, _, values) in lines.items()]
    found = compare.reduce_ranks("k", series, how)
    assert found.steps.tolist() == [0, 1, 2, 3]
    assert found.floats().tolist() == pytest.approx(reduce_ranks(list(lines.values()), how)[2].tolist(), rel=1e-15)


def test_words_that_this_version_does_not_know_are_passed_over():
    found = meaning("x", [("x", {"reduce": "geometric", "over": 7, "same": "yes", "later": 1})])
    assert found == KeyMeaning()


def test_what_the_program_sets_is_the_same_on_all_ranks_and_what_it_counts_is_not():
    assert [meaning(key).same for key in ("lr", "epoch", "tokens_seen", "loss", "grad_norm")] == [True, True, False, False, False]
    assert meaning("lr", [("lr", {"same": False})]).same is False
    assert meaning("weights/digest", [("weights/*", {"same": True})]).same is True
