"""Ranks judged together: the slowest, who waits for whom, desyncs, silence; by the times of each host's own clock."""

from __future__ import annotations

import numpy as np
import pytest

from tracker.domain import ranks
from tracker.domain.spans import spans

T0 = 1_700_000_000_000_000
SECOND = 1_000_000


def rank(number: int, steps=50, pace=1.0, late=0.0, **more) -> ranks.Rank:
    at = np.arange(steps)
    fields = {"host": f"node{number // 8}", "heard_seconds": 3.0, **more}
    return ranks.Rank(number, steps=at, times=(T0 + (at * pace + late) * SECOND).astype("i8"), **fields)


def judge(found, seconds=50.5, live=True, **more) -> ranks.Judged:
    return ranks.judge(found, now_us=int(T0 + seconds * SECOND), live=live, pace_key="loss", **more)


def kinds(judged: ranks.Judged) -> list[str]:
    return [one.kind for one in judged.findings]


def test_ranks_that_keep_pace_are_not_spoken_of():
    judged = judge([rank(n) for n in range(8)], world_size=8)
    assert kinds(judged) == []
    assert (judged.front, judged.step_seconds) == (49, 1.0)
    assert [row.behind for row in judged.rows] == [0] * 8


def test_in_a_hang_the_rank_that_has_not_come_is_named_with_its_place():
    found = [rank(n) for n in range(63)] + [rank(63, steps=49, coordinates={"dp": 15, "tp": 3, "node": 7})]
    judged = judge(found, seconds=49 + 312)
    assert judged.findings[0].text == (
        "ranks 0-62 wait after step 49 for 5 min 12 s; rank 63 has not come that far (last step 48) (dp=15 tp=3, node7)"
    )
    assert judged.findings[0].ranks == [63]
    assert judged.rows[63].odd == ["awaited"]


def test_when_all_stand_at_one_step_the_run_is_said_to_stand():
    judged = judge([rank(0), rank(1)], seconds=49 + 120)
    assert [(one.kind, one.text) for one in judged.findings] == [("stalled", "every rank has stood at step 49 for 2 min 00 s")]
    assert kinds(judge([rank(0), rank(1)], seconds=49 + 120, live=False)) == []


def test_the_slowest_is_found_by_the_time_that_ranks_measure_themselves():
    found = [rank(n, values=np.full(50, 0.93 if n != 5 else 1.31)) for n in range(8)]
    judged = judge(found, own_key="forward_seconds")
    assert judged.findings[0].text == "rank 5 is the slowest (node0): its forward_seconds is 1.31 s, the median of all ranks 930 ms"


def test_without_one_it_is_found_by_who_comes_late_to_each_step():
    judged = judge([rank(n, late=0.4 if n == 3 else 0.0) for n in range(8)])
    assert judged.findings[0].ranks == [3]
    assert "it logs each step 400 ms after the others" in judged.findings[0].text
    assert "clocks" not in judged.findings[0].text
    assert judged.rows[3].late_seconds == pytest.approx(0.4)


def test_when_half_of_the_ranks_are_slow_it_is_not_they_who_are_odd():
    assert kinds(judge([rank(n, late=0.4 if n < 4 else 0.0) for n in range(8)])) == []


def test_ranks_that_go_on_by_themselves_and_fall_back_are_behind():
    judged = judge([rank(0), rank(1), rank(2, steps=25, pace=2.0)], seconds=49.5)
    behind = next(one for one in judged.findings if one.kind == "behind")
    assert behind.text == "rank 2 is behind step 49 by 25 steps (25 s) (node0)"
    assert judged.rows[2].behind_seconds == pytest.approx(25.0)


def test_a_rank_far_behind_the_window_still_has_its_last_step():
    judged = judge([rank(0), ranks.Rank(1, host="node0", last_step=3, heard_seconds=1.0)], seconds=49.5)
    assert (judged.rows[1].last_step, judged.rows[1].behind, judged.rows[1].behind_seconds) == (3, 46, pytest.approx(46.0))


def test_values_that_should_be_equal_and_are_not_are_named_at_their_first_step():
    steps = np.arange(10)
    values = np.full(10, 1e-4)
    other = np.where(steps >= 7, 3e-4, values)
    same = {"lr": {0: (steps, values), 1: (steps, values), 2: (steps[3:], other[3:])}, "epoch": {0: (steps, values), 1: (steps, values)}}
    judged = judge([rank(n) for n in range(3)], same=same)
    assert [one.text for one in judged.findings] == [
        "lr should be the same on all ranks and differs at step 7: ranks 0, 1: 0.0001; rank 2: 0.0003"
    ]


@pytest.mark.parametrize(("a", "b", "step"), [([1, np.nan], [1, np.nan], None), ([1, np.nan], [1, 2], 1), ([0.0, 1], [-0.0, 1], None)])
def test_nan_equals_nan_and_nothing_else(a, b, step):
    from tracker.domain.oddities import first_difference

    steps = np.arange(2)
    assert first_difference({0: (steps, np.array(a)), 1: (steps, np.array(b))}) == step


def test_steps_that_one_rank_left_out_or_alone_logged_are_named():
    most = [rank(n) for n in range(4)]
    hole = rank(4)
    keep = np.delete(np.arange(50), [20, 21])
    hole.steps, hole.times = hole.steps[keep], hole.times[keep]
    judged = judge([*most, hole])
    assert [one.text for one in judged.findings] == ["rank 4 did not log loss at 2 steps: 20, 21"]
    even = [rank(n) for n in range(4)]
    for one in even:
        one.steps, one.times = one.steps[::2], one.times[::2]
    odd = rank(4)
    odd.steps, odd.times = np.r_[odd.steps[::2], 31], np.r_[odd.times[::2], odd.times[31]]
    order = np.argsort(odd.steps)
    odd.steps, odd.times = odd.steps[order], odd.times[order]
    assert any(one.text == "rank 4 alone logged loss at step 31" for one in judge([*even, odd]).findings)


def test_silence_and_early_ends_are_told_while_others_go_on():
    judged = judge([rank(0), rank(1, heard_seconds=75.0), rank(2, ended="failed")])
    texts = {one.kind: one.text for one in judged.findings}
    assert texts["silent"] == "rank 1 gave no sign of life for 1 min 15 s (node0)"
    assert texts["ended"] == "rank 2 ended (failed) while others go on (node0)"


def test_clocks_that_differ_are_noted_and_taken_out_of_what_is_quiet():
    judged = judge([rank(0), rank(8, skew_seconds=-7.0, late=7.0)], seconds=60)
    assert "the clock of node1 is 7 s ahead of the tracker's" in [one.text for one in judged.findings]
    assert judged.rows[1].quiet_seconds == pytest.approx(11.0)


def test_ranks_that_log_nothing_are_noted_and_no_alarm():
    judged = judge([rank(0)], world_size=4)
    assert [(one.level, one.text) for one in judged.findings] == [
        ("info", "3 of 4 ranks log nothing here (1-3): call sdk.init on every rank to see them")
    ]


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_any_number_of_ranks_with_or_without_points(count):
    assert len(judge([rank(n) for n in range(count)]).rows) == count
    bare = judge([ranks.Rank(n) for n in range(count)])
    assert [row.step_seconds for row in bare.rows] == [None] * count


def test_numbers_as_people_write_them():
    assert spans([5, 1, 2, 3, 9, 10]) == "1-3, 5, 9, 10"
    assert spans(range(0, 100, 2), most=3) == "0, 2, 4 and 47 more"
