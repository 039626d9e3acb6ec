"""The verdict's rules, a sentence each."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracker.domain.compare import Series
from tracker.domain.facts import Difference
from tracker.domain.verdict import End, Envelope, KeySeries, judge

FINISHED = End("finished", 0, world_size=1)
STOPPED = End("killed", world_size=1)
PROGRAM = {"code": "program_failed", "message": "exit 1"}
STEPS = list(range(20))
LOSS = [3.0 - 0.1 * step for step in STEPS]


def series(key, values, rank=0, steps=None, times=None):
    values = np.asarray(values)
    return Series.of(key, rank, np.arange(len(values)) if steps is None else steps, values, times)


def by_key(original, rerun):
    keys = sorted({s.key for s in (*original, *rerun)})
    return [KeySeries(k, [s for s in original if s.key == k], [s for s in rerun if s.key == k]) for k in keys]


def verdict(original, rerun, *, first=FINISHED, second=FINISHED, **more):
    return judge(by_key(original, rerun), original=first, rerun=second, **more)


def bumped(values, at, ulps=1):
    values = list(values)
    values[at] = float(np.float64(values[at]).view(np.int64).__add__(ulps).view(np.float64))
    return values


# Agreement --------------------------------------------------------------------------------------------------------------------


def test_two_equal_runs_are_bit_exact_and_say_how_much_was_compared():
    both = [series(key, LOSS, rank) for key in ("train/loss", "val/loss") for rank in (0, 1)]
    found = verdict(both, both)
    assert found["sentence"] == "Bit-exact: 80 of 80 points, 2 metrics, 2 ranks"
    assert (found["execution"], found["agreement"], found["like_for_like"]) == ("completed", "bit_exact", True)
    assert found["compared"] == {"points": 80, "logged": 80, "metrics": 2, "ranks": 2, "steps": 20}
    assert all(row["compared"] == row["logged"] == row["rerun"] == 20 for row in found["per_metric"])


def test_words_are_singular_for_one_and_thousands_are_separated():
    assert verdict([series("loss", LOSS)], [series("loss", LOSS)])["sentence"] == "Bit-exact: 20 of 20 points, 1 metric, 1 rank"
    long = [series("loss", np.linspace(1, 0, 1200))]
    assert verdict(long, long)["sentence"] == "Bit-exact: 1,200 of 1,200 points, 1 metric, 1 rank"


def test_one_ulp_on_one_rank_is_named_with_step_metric_and_rank():
    original = [series("train/loss", LOSS, rank) for rank in (0, 1)]
    rerun = [series("train/loss", LOSS, 0), series("train/loss", bumped(LOSS, 17), 1)]
    found = verdict(original, rerun)
    assert (found["agreement"], found["step"], found["metric"], found["rank"]) == ("diverged", 17, "train/loss", 1)
    assert found["sentence"].startswith("Diverged at step 17 of train/loss, rank 1: ")
    assert found["sentence"].endswith("(1 ULP)")
    assert [row["equal"] for row in found["per_metric"]] == [True, False]


def test_a_float32_loss_says_its_distance_in_float32():
    values = np.float32(LOSS).astype(float)
    other = values.copy()
    other[3] = np.nextafter(np.float32(other[3]), np.float32(10))
    assert verdict([series("loss", values)], [series("loss", other)])["sentence"].endswith("(1 ULP of float32)")


def test_far_values_are_said_short_with_their_relative_gap_and_the_largest_gap_is_named():
    other = [*LOSS[:5], 2.6, *LOSS[6:-1], 2.0]
    text = verdict([series("loss", LOSS)], [series("loss", other)])["sentence"]
    assert text == "Diverged at step 5 of loss, rank 0: 2.5 became 2.6 (3.8 %); largest gap 45 % at step 19 of loss"


def test_the_first_divergence_is_the_smallest_step_then_the_metric_logged_first():
    at = [1000 + step for step in STEPS]
    later = [time + 500 for time in at]
    original = [series("a/loss", LOSS, times=later), series("z/loss", LOSS, times=at), series("m/loss", LOSS, times=at)]
    rerun = [series("a/loss", bumped(LOSS, 4), times=later), series("z/loss", bumped(LOSS, 4), times=at), series("m/loss", bumped(LOSS, 9))]
    assert verdict(original, rerun)["metric"] == "z/loss"
    rerun[2] = series("m/loss", bumped(LOSS, 3), times=at)
    assert (verdict(original, rerun)["metric"], verdict(original, rerun)["step"]) == ("m/loss", 3)


def test_ranks_with_skewed_clocks_do_not_decide_which_rank_differs_first():
    original = [series("loss", LOSS, 0, times=[9000] * 20), series("loss", LOSS, 1, times=[1] * 20)]
    rerun = [series("loss", bumped(LOSS, 4), 0), series("loss", bumped(LOSS, 4), 1)]
    assert verdict(original, rerun)["rank"] == 0


def test_nan_equals_nan_whatever_its_bits():
    quiet, other = struct.unpack("<d", b"\x01\0\0\0\0\0\xf8\x7f")[0], struct.unpack("<d", b"\x02\0\0\0\0\0\xf8\xff")[0]
    original, rerun = [*LOSS, quiet], [*LOSS, other]
    assert verdict([series("loss", original)], [series("loss", rerun)])["agreement"] == "bit_exact"


def test_nan_against_a_number_is_a_difference_and_valid_json_says_so():
    found = verdict([series("loss", LOSS)], [series("loss", [*LOSS[:7], math.nan, *LOSS[8:]])])
    assert (found["step"], found["found"]) == (7, "NaN")
    assert "became NaN" in found["sentence"]


def test_minus_zero_is_not_zero():
    found = verdict([series("loss", [*LOSS, 0.0])], [series("loss", [*LOSS, -0.0])])
    assert (found["agreement"], found["expected"], found["found"]) == ("diverged", 0.0, "-0.0")
    assert found["sentence"] == "Diverged at step 20 of loss, rank 0: 0.0 became -0.0"


def test_an_integer_is_not_the_float_of_the_same_value():
    found = verdict([series("correct", np.arange(20))], [series("correct", np.arange(20.0))])
    assert found["agreement"] == "diverged"


def test_integers_beyond_two_to_the_53_are_compared_exactly():
    big = np.arange(2**60, 2**60 + 20)
    other = big.copy()
    other[19] += 1
    found = verdict([series("reward", big)], [series("reward", other)])
    assert (found["step"], found["expected"]) == (19, str(2**60 + 19))


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ([], "Diverged at step 0 of b/loss, rank 0: the rerun did not log this metric"),
        ([series("b/loss", np.delete(LOSS, 6), steps=np.delete(STEPS, 6))], "Diverged at step 6 of b/loss, rank 0: 2.4 was not logged"),
        ([series("b/loss", LOSS), series("c/loss", LOSS)], "Diverged at step 0 of c/loss, rank 0: the original did not log this metric"),
    ],
)
def test_a_missing_or_added_metric_or_step_is_a_difference(rest, words):
    found = verdict([series("a/loss", LOSS), series("b/loss", LOSS)], [series("a/loss", LOSS), *rest])
    assert found["agreement"] == "diverged"
    assert found["sentence"] == words


def test_a_missing_rank_is_a_difference():
    found = verdict([series("loss", LOSS, 0), series("loss", LOSS, 1)], [series("loss", LOSS, 0)])
    assert found["sentence"] == "Diverged at step 0 of loss, rank 1: rank 1 logged nothing in the rerun"


# Evidence ---------------------------------------------------------------------------------------------------------------------


def test_times_rates_schedules_and_constants_are_no_evidence_and_are_listed_with_why():
    shared = [series("loss", LOSS), series("lr", np.linspace(1, 0, 20)), series("epoch", STEPS), series("params", [7.0] * 20)]

    def noisy(offset):
        names = ("step_seconds", "tokens_per_s", "system/cpu_percent")
        return [series(name, np.linspace(1, 2, 20) + offset) for name in names]

    found = verdict([*shared, *noisy(0)], [*shared, *noisy(1)])
    assert found["sentence"] == "Bit-exact: 20 of 20 points, 1 metric, 1 rank"
    why = {item["key"]: item["why"] for item in found["not_compared"]}
    assert {"lr", "epoch", "params", "step_seconds", "tokens_per_s", "system/cpu_percent"} <= why.keys()
    assert "constant" in why["params"]
    assert {row["key"] for row in found["per_metric"] if row["evidence"]} == {"loss"}


def test_a_constant_that_changed_is_a_difference_all_the_same():
    found = verdict([series("loss", LOSS), series("acc", [1.0] * 20)], [series("loss", LOSS), series("acc", [1.0] * 19 + [0.5])])
    assert (found["agreement"], found["metric"], found["step"]) == ("diverged", "acc", 19)


def test_a_definition_can_make_a_schedule_evidence_and_a_loss_none():
    both = [series("lr", np.linspace(1, 0, 20))]
    assert verdict(both, both)["agreement"] == "not_comparable"
    assert verdict(both, both, definitions=[("lr", {"kind": "quality"})])["agreement"] == "bit_exact"


def test_without_a_data_dependent_metric_runs_are_not_comparable():
    found = verdict([series("lr", STEPS)], [series("lr", STEPS)])
    assert found["sentence"] == "Not comparable: no data-dependent metric was logged"
    assert (found["agreement"], found["reason"]["code"]) == ("not_comparable", "no_evidence")


def test_fewer_than_ten_points_are_not_comparable_even_when_they_are_equal():
    found = verdict([series("loss", LOSS[:9])], [series("loss", LOSS[:9])])
    assert found["sentence"] == "Not comparable: only 9 data-dependent points were logged, 10 are needed"
    assert verdict([series("loss", LOSS[:10])], [series("loss", LOSS[:10])])["agreement"] == "bit_exact"


def test_what_was_not_compared_is_always_named():
    keys = {item["key"] for item in verdict([series("loss", LOSS)], [series("loss", LOSS)])["not_compared"]}
    assert {"output files", "checkpoint tensors", "random state at the end", "order of samples"} <= keys


# Tolerance --------------------------------------------------------------------------------------------------------------------


def test_without_an_envelope_nothing_is_within_tolerance():
    assert verdict([series("loss", LOSS)], [series("loss", bumped(LOSS, 3))])["agreement"] == "diverged"


def test_an_envelope_says_its_source_and_the_first_step_outside_it_rules():
    envelope = Envelope("given", relative=0.01)
    near = [value * 1.001 for value in LOSS]
    inside = verdict([series("loss", LOSS)], [series("loss", near)], envelope=envelope)
    assert inside["agreement"] == "within_tolerance"
    assert inside["sentence"].startswith("Within tolerance: 20 of 20 points, 1 metric, 1 rank, largest gap 0.1 % at step ")
    assert "(tolerance given)" in inside["sentence"]
    near[12] *= 1.1
    outside = verdict([series("loss", LOSS)], [series("loss", near)], envelope=envelope)
    assert (outside["agreement"], outside["step"]) == ("diverged", 12)
    equal = verdict([series("loss", LOSS)], [series("loss", LOSS)], envelope=envelope)
    assert equal["agreement"] == "bit_exact"


# Execution --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        ({"code": "data_missing", "missing": "/x/y.csv", "message": "gone"}, "Not runnable: data file /x/y.csv is missing"),
        (
            {"code": "data_differs", "missing": "/x/y.csv", "expected": "blake3:" + "a" * 64, "found": "blake3:" + "b" * 64, "message": ""},
            "Not runnable: /x/y.csv has changed: blake3:aaaaaaaaaaaa… expected, blake3:bbbbbbbbbbbb… found",
        ),
        ({"code": "python_missing", "missing": "3.9.2", "message": ""}, "Not runnable: Python 3.9.2 is not there"),
        ({"code": "would_overwrite", "missing": "/out/model.pt", "message": ""}, "Not runnable: it would write over /out/model.pt"),
        (
            {"code": "environment_failed", "message": "no space left\nlong log"},
            "Not runnable: the environment could not be built: no space left",
        ),
        ({"code": "package_missing", "message": "torch 9 is on no index"}, "Not runnable: torch 9 is on no index"),
    ],
)
def test_what_cannot_run_names_the_missing_thing(failure, sentence):
    found = verdict([series("loss", LOSS)], [], second=None, failure=failure)
    assert found["sentence"] == sentence
    assert (found["execution"], found["agreement"]) == ("not_runnable", None)
    assert found["reason"] == failure


def test_a_rerun_that_fails_says_its_exception_and_how_far_it_was_equal():
    second = End("failed", 1, error={"type": "ValueError", "message": "bad batch\nmore"}, world_size=1)
    found = verdict([series("loss", LOSS)], [series("loss", LOSS[:12])], second=second, failure=PROGRAM)
    assert found["sentence"] == "Rerun failed: ValueError: bad batch; equal until then: 12 of 12 points"
    assert (found["execution"], found["agreement"], found["reason"]["code"]) == ("rerun_failed", None, "program_failed")


def test_a_rerun_killed_by_a_signal_of_its_own_failed():
    found = verdict([series("loss", LOSS)], [], second=End("crashed", world_size=1), evidence={"exit_code": None, "signal": 11})
    assert found["sentence"] == "Rerun failed: killed by SIGSEGV"


def test_a_program_that_dies_before_it_logs_anything_failed_and_its_last_exception_is_told():
    failure = {**PROGRAM, "output": "Traceback …\n  import x\nModuleNotFoundError: No module named 'x'\n"}
    found = verdict([series("loss", LOSS)], [], second=End("crashed"), failure=failure, evidence={"exit_code": 1})
    assert found["sentence"] == "Rerun failed: exit status 1 (ModuleNotFoundError: No module named 'x')"
    assert "all metrics" in {item["key"] for item in found["not_compared"]}
    assert found["compared"]["logged"] == 20


def test_a_failure_that_happens_again_is_reproduced():
    end = End("failed", 1, error={"type": "ValueError", "message": "bad batch 9"}, world_size=1)
    found = verdict([series("loss", LOSS)], [series("loss", LOSS)], first=end, second=end, failure=PROGRAM)
    assert found["sentence"] == (
        "Failure reproduced: ValueError: bad batch 9 after step 19, as in the original; bit-exact: 20 of 20 points, 1 metric, 1 rank"
    )
    assert (found["execution"], found["agreement"], found["reason"]["code"]) == ("completed", "bit_exact", "failure_reproduced")


def test_another_exception_than_the_original_is_no_reproduced_failure():
    first, second = (End("failed", 1, error={"type": kind, "message": "x"}, world_size=1) for kind in ("ValueError", "KeyError"))
    found = verdict([series("loss", LOSS)], [series("loss", LOSS)], first=first, second=second)
    assert found["execution"] == "rerun_failed"
    assert "the original failed with ValueError: x" in found["sentence"]


def test_a_failure_that_does_not_happen_again_is_a_difference():
    first = End("failed", 1, error={"type": "ValueError", "message": "x"}, world_size=1)
    found = verdict([series("loss", LOSS[:15])], [series("loss", LOSS)], first=first)
    assert (found["agreement"], found["step"], found["reason"]["code"]) == ("diverged", 14, "failure_not_reproduced")
    assert found["sentence"].startswith("Failure not reproduced: the original ended with ValueError: x after step 14, the rerun did not")


def test_a_rerun_that_is_stopped_is_stopped_early_and_never_bit_exact():
    found = verdict(
        [series("loss", LOSS)],
        [series("loss", LOSS[:13])],
        second=STOPPED,
        failure={"code": "limit", "message": "time limit of 60 s"},
    )
    assert found["sentence"] == "Stopped early at step 12 of 19: time limit of 60 s; equal until then: 13 of 13 points"
    assert (found["execution"], found["agreement"]) == ("stopped_early", None)


def test_a_rerun_that_ends_well_but_short_is_stopped_early():
    found = verdict([series("loss", LOSS), series("val/acc", [0.9], steps=[19])], [series("loss", LOSS[:13])])
    assert found["sentence"] == "Stopped early at step 12 of 19; equal until then: 13 of 13 points"
    assert found["execution"] == "stopped_early"


def test_a_rerun_that_differs_and_then_ends_short_diverged():
    found = verdict([series("loss", LOSS)], [series("loss", bumped(LOSS[:13], 5))])
    assert (found["execution"], found["agreement"], found["step"]) == ("completed", "diverged", 5)


@pytest.mark.parametrize(("code", "words"), [("cancelled", "it was cancelled"), ("lost", "the worker was lost")])
def test_infrastructure_that_fails_makes_it_inconclusive(code, words):
    found = verdict([series("loss", LOSS)], [series("loss", LOSS[:13])], second=STOPPED, failure={"code": code, "message": ""})
    assert found["execution"] == "inconclusive"
    assert found["sentence"] == f"Inconclusive: {words}; equal until then: 13 of 13 points"


def test_points_that_have_not_arrived_make_it_inconclusive_until_they_do():
    second = End("running", world_size=1)
    found = verdict([series("loss", LOSS)], [series("loss", LOSS[:13])], second=second, evidence={"exit_code": 0})
    assert found["execution"] == "inconclusive"
    assert verdict([series("loss", LOSS)], [series("loss", LOSS)], second=second, evidence={"exit_code": 0})["agreement"] == "bit_exact"


def test_points_that_the_sdk_dropped_forbid_bit_exact_and_blame_nobody():
    second = End("finished", 0, dropped={"journal full": 2}, world_size=1)
    found = verdict([series("loss", LOSS)], [series("loss", np.delete(LOSS, [3, 4]), steps=np.delete(STEPS, [3, 4]))], second=second)
    assert (found["execution"], found["agreement"]) == ("inconclusive", None)
    assert found["sentence"] == "Inconclusive: 2 points may have been lost on the way; equal until then: 18 of 18 points"


def test_a_killed_original_is_compared_as_far_as_it_went():
    found = verdict([series("loss", LOSS[:15])], [series("loss", LOSS)], first=End("killed", world_size=1))
    assert found["agreement"] == "bit_exact"
    assert found["sentence"] == "Bit-exact: 15 of 15 points, 1 metric, 1 rank; the original ended there (it was stopped)"
    assert "5 points of the rerun" in next(item["why"] for item in found["not_compared"] if item["key"] == "loss")


# Scope, world size, like for like ---------------------------------------------------------------------------------------------


def test_a_probe_is_bit_exact_over_its_steps_only():
    long = np.linspace(3, 1, 1000)
    found = verdict([series("loss", long)], [series("loss", long[:201])], second=STOPPED, scope={"steps": 200})
    assert found["sentence"] == "Bit-exact over steps 0 to 200: 201 of 201 points, 1 metric, 1 rank"
    assert (found["execution"], found["scope"]) == ("completed", {"kind": "probe", "from": 0, "to": 200})


def test_a_probe_stopped_inside_its_last_step_compares_what_both_have():
    long = np.linspace(3, 1, 1000)
    original = [series("a/loss", long), series("b/loss", long)]
    found = verdict(original, [series("a/loss", long[:201]), series("b/loss", long[:200])], scope={"steps": 200})
    assert (found["agreement"], found["scope"]["to"], found["compared"]["points"]) == ("bit_exact", 199, 401)


def test_a_probe_with_a_silent_rank_is_no_agreement():
    long = np.linspace(3, 1, 1000)
    found = verdict([series("loss", long, 0), series("loss", long, 1)], [series("loss", long[:201], 0)], scope={"steps": 200})
    assert (found["agreement"], found["rank"]) == ("diverged", 1)


def test_another_world_size_compares_only_what_is_reduced_over_ranks():
    original = [series("loss", [v - 1 for v in LOSS], 0), series("loss", [v + 1 for v in LOSS], 1)]
    rerun = [series("loss", np.add([v - 1 for v in LOSS], [v + 1 for v in LOSS]) / 2, 0)]
    found = verdict(original, rerun, first=End("finished", 0, world_size=2), second=FINISHED)
    assert found["sentence"] == "Bit-exact after reduction over ranks (2 against 1): 20 of 20 points, 1 metric"
    assert any(item["key"] == "single ranks" for item in found["not_compared"])
    assert all(row["rank"] is None for row in found["per_metric"])


def test_what_differed_is_said_and_ranked_with_overrides_first():
    differences = [
        Difference("config.seed", 0, 1, True, override=True),
        Difference("package.numpy", "2.0", "2.1", True),
        Difference("package.rich", "1", "2", False),
    ]
    found = verdict([series("loss", LOSS)], [series("loss", [v + 1 for v in LOSS])], differences=differences)
    assert not found["like_for_like"]
    assert found["sentence"].endswith("not like for like: config.seed and package.numpy")
    assert [suspect["fact"] for suspect in found["suspects"]] == ["config.seed", "package.numpy", "package.rich"]
    assert all(suspect["why"] for suspect in found["suspects"])


def test_harmless_differences_leave_it_like_for_like():
    found = verdict([series("loss", LOSS)], [series("loss", LOSS)], differences=[Difference("hardware.kernel", "5", "6", False)])
    assert found["like_for_like"]
    assert found["differences"] == [{"fact": "hardware.kernel", "was": "5", "is": "6", "numeric": False}]


def test_without_a_difference_the_recipe_s_own_weaknesses_are_suspected():
    recipe = {"numerics": {"seeds": {}, "rng": {}}, "command": {"env": {}}}
    found = verdict([series("loss", LOSS)], [series("loss", [v + 1 for v in LOSS])], recipe=recipe)
    assert found["suspects"][0]["fact"] == "seeds"


# Properties -------------------------------------------------------------------------------------------------------------------

bits = st.integers(0, 2**64 - 1)
columns = st.lists(bits, min_size=1, max_size=60)


def raw(key, values, rank=0, steps=None):
    return Series.of(key, rank, np.arange(len(values)) if steps is None else steps, np.array(values, np.uint64).view(np.float64))


@given(columns, st.integers(1, 4))
def test_a_run_equals_itself_whatever_its_values(values, ranks):
    both = [raw("loss", values, rank) for rank in range(ranks)]
    found = verdict(both, both)
    assert found["agreement"] == ("bit_exact" if found["compared"]["points"] >= 10 else "not_comparable")
    assert found["step"] is None
    assert found["compared"]["points"] == found["compared"]["logged"]


@given(st.lists(st.floats(), min_size=12, max_size=60), st.data())
def test_a_flipped_bit_is_found_at_its_step_metric_and_rank(values, data):
    at, bit = data.draw(st.integers(0, len(values) - 1)), data.draw(st.integers(0, 63))
    rank = data.draw(st.integers(0, 1))
    was = np.array(values, float)
    now = was.copy()
    now.view(np.uint64)[at] ^= np.uint64(1 << bit)
    if np.isnan(was[at]) and np.isnan(now[at]):
        return
    original = [series("a/loss", LOSS, r) for r in (0, 1)] + [series("b/loss", was, r) for r in (0, 1)]
    rerun = [series("a/loss", LOSS, r) for r in (0, 1)] + [series("b/loss", now if r == rank else was, r) for r in (0, 1)]
    found = verdict(original, rerun)
    assert (found["agreement"], found["step"], found["metric"], found["rank"]) == ("diverged", at, "b/loss", rank)
    back = verdict(rerun, original)
    assert (back["step"], back["metric"], back["rank"]) == (at, "b/loss", rank)
    assert (back["expected"], back["found"]) == (found["found"], found["expected"])


sparse = st.dictionaries(st.integers(-(2**63), 2**63 - 1), st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf]), min_size=0, max_size=40)
ends = st.sampled_from(["finished", "failed", "killed", "crashed", "running"])


@settings(max_examples=300)
@given(sparse, sparse, ends, ends, st.sampled_from([None, 0, 5, 2**40]))
def test_bit_exact_is_never_said_of_unequal_counts_or_values(a, b, first, second, steps):
    def make(points):
        at = sorted(points)
        return [series("loss", np.array([points[s] for s in at]), steps=np.array(at, np.int64))] if at else []

    found = verdict(make(a), make(b), first=End(first), second=End(second), scope={"steps": steps})
    assert found["sentence"]
    assert found["agreement"] != "within_tolerance"
    if found["agreement"] == "bit_exact":
        assert found["compared"]["points"] == found["compared"]["logged"] >= 10
        last = found["scope"]["to"]
        inside = {step: value for step, value in a.items() if step <= last and (steps is None or step <= steps)}
        assert all(step in b and (struct.pack("<d", b[step]) == struct.pack("<d", value)) for step, value in inside.items())
        if first == second == "finished" and steps is None:
            assert a.keys() == b.keys()
    if found["agreement"] == "diverged" and found["metric"]:
        assert found["step"] in a.keys() | b.keys()


def test_what_is_put_together_over_mesh_axes_is_no_evidence_when_the_ranks_are_another_number():
    """Copies along the other axes would count twice: the key is left out, with the reason, and the rest is judged."""
    original = [series(key, LOSS, rank) for key in ("grad_norm", "loss") for rank in (0, 1)]
    rerun = [series(key, LOSS, 0) for key in ("grad_norm", "loss")]
    ends = {"first": End("finished", 0, world_size=2), "second": End("finished", 0, world_size=1)}
    over = [("grad_norm", {"reduce": "norm", "over": ["tp"]})]
    assert verdict(original, rerun, **ends, definitions=[("grad_norm", {"reduce": "norm"})])["agreement"] == "diverged"
    found = verdict(original, rerun, **ends, definitions=over)
    assert found["agreement"] == "bit_exact"
    (left_out,) = [row for row in found["per_metric"] if row["key"] == "grad_norm"]
    assert left_out["why_not"] == "it is put together over tp, and the rerun had another number of ranks"
