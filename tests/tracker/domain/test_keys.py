"""What keys mean by name and by definition."""

import pytest

from tracker.domain.keys import KeyMeaning, meaning

_LOSSES_AND_ERRORS_SHOULD_FALL = """
    loss train/loss val_loss valLoss train_loss_epoch eval/perplexity test.mse losses/box epoch_loss val/rmse loss/total
    wer
""".split()  # noqa: SIM905


@pytest.mark.parametrize("key", _LOSSES_AND_ERRORS_SHOULD_FALL)
def test_losses_and_errors_should_fall(key):
    assert (meaning(key).kind, meaning(key).goal, meaning(key).evidence) == ("loss", "min", True)


_SCORES_SHOULD_RISE = """
    acc val/accuracy test/f1 f1_macro roc_auc metrics/mAP50 eval_bleu valAcc top5 reward r2 rollout/return
""".split()  # noqa: SIM905


@pytest.mark.parametrize("key", _SCORES_SHOULD_RISE)
def test_scores_should_rise(key):
    assert (meaning(key).kind, meaning(key).goal, meaning(key).evidence) == ("quality", "max", True)


_TIMES_PROVE_NOTHING = """
    step_seconds time/epoch train_runtime epoch_time data_time fwd_ms duration eta_s val/time_to_loss
""".split()  # noqa: SIM905


@pytest.mark.parametrize("key", _TIMES_PROVE_NOTHING)
def test_times_prove_nothing(key):
    assert (meaning(key).kind, meaning(key).evidence) == ("time", False)
    assert "time" in meaning(key).why_not


_RATES_AND_LOADS_PROVE_NOTHING = """
    tokens_per_s samples_per_sec throughput train_steps_per_second it/s time/fps system/cpu_percent gpu_memory mfu
""".split()  # noqa: SIM905


@pytest.mark.parametrize("key", _RATES_AND_LOADS_PROVE_NOTHING)
def test_rates_and_loads_prove_nothing(key):
    assert (meaning(key).kind, meaning(key).evidence) == ("rate", False)


_SCHEDULES_AND_COUNTERS_PROVE_NOTHING = """
    lr train/lr lr-AdamW/pg1 learning_rate optim/learningRate momentum epoch global_step temperature trainer/global_step
    tokens_seen total_timesteps
""".split()  # noqa: SIM905


@pytest.mark.parametrize("key", _SCHEDULES_AND_COUNTERS_PROVE_NOTHING)
def test_schedules_and_counters_prove_nothing(key):
    assert (meaning(key).kind, meaning(key).evidence) == ("schedule", False)


@pytest.mark.parametrize("key", ["grad_norm", "weights/l2", "something", "", "漢字"])
def test_what_no_rule_knows_is_evidence_without_a_direction(key):
    assert meaning(key) == KeyMeaning()


def test_later_definitions_win_field_by_field_over_earlier_ones_and_defaults():
    definitions = [("val/*", {"goal": "max", "reduce": "sum"}), ("val/loss", {"goal": "min"}), ("other", {"goal": "max"})]
    found = meaning("val/loss", definitions)
    assert (found.goal, found.reduce, found.kind) == ("min", "sum", "loss")


def test_definitions_may_come_as_pairs_mappings_or_rows():
    class Row:
        pattern, fields = "a*", {"kind": "time"}

    for definitions in ([("a*", {"kind": "time"})], {"a*": {"kind": "time"}}, [{"pattern": "a*", "kind": "time"}], [Row()]):
        assert meaning("abc", definitions).kind == "time"


def test_unknown_values_of_a_definition_are_passed_over():
    assert meaning("loss", [("*", {"goal": "up", "kind": 7, "reduce": None, "x": 3})]) == meaning("loss")


def test_a_declared_result_is_evidence_whatever_its_kind():
    assert meaning("train_seconds", [("train_seconds", {"result": True})]).evidence


def test_reductions_fit_the_kind():
    assert [meaning(key).reduce for key in ("loss", "step_seconds", "tokens_per_s", "lr", "gpu_memory")] == [
        "mean",
        "max",
        "sum",
        "last",
        "mean",
    ]
