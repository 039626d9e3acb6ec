"""What a chart can ask: runs by a question, keys by pattern, x by another metric, groups, smoothing, budgets, and wrong questions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tests.tracker.store import wire_writer as write
from tracker.domain import series_answer, series_query
from tracker.domain.errors import EncoreError, FilterMistake, Invalid
from tracker.domain.ids import new_id
from tracker.domain.smoothing import Smoothing, smooth
from tracker.models import KeyDefinition
from tracker.services import compaction, series, series_portions, summaries, values


def ask(room, runs=None, keys=("loss",), **more) -> dict:
    which = {} if runs is None else {"runs": [getattr(run, "id", run) for run in runs]}
    return series_answer.decode(series.answer(user=room.user, query={**which, "keys": list(keys), **more}))


def post_rows(room, writer, keys, rows, first=0):
    """``rows``: (step, [values]), a record and 0.1 s each."""
    started = writer.started_us
    told = [(first + n, step, started + step * 100_000, list(mine)) for n, (step, mine) in enumerate(rows)]
    frame = write.dense(first, list(keys), "d" * len(keys), told)
    room.post(writer, write.batch(writer.run_id, writer.id, first, first + len(rows) - 1, [frame]))


# -- which runs and keys -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(room):
    """Three runs of lr 0.1, 0.1, 0.2 with ten losses each: their number."""
    found = []
    for number, lr in enumerate((0.1, 0.1, 0.2)):
        run = room.run(config={"lr": lr}, group="warm" if number else "", tags=[f"t{number}", "all"])
        values.config_changed(run)
        values.tags_changed(run)
        writer = room.writer(run)
        post_rows(room, writer, ["loss", "val/loss", "val/acc"], [(step, (number + step, 1.0, 2.0)) for step in range(10)])
        found.append(run)
    summaries.summarise_due()
    return found


def test_runs_come_by_project_filter_sort_and_limit(room, three):
    """In the order of the sort; the answer says which they are, also when nothing new came."""
    query = {"project": room.project.slug, "filter": "config.lr = 0.1", "sort": "config.lr"}
    answer = ask(room, **query)
    assert sorted(answer["runs"]) == sorted(run.id for run in three[:2])
    assert {one["run"] for one in answer["series"]} == set(answer["runs"])
    assert len(ask(room, **query, limit=1)["runs"]) == 1
    again = ask(room, **query, since=answer["cursor"])
    assert (again["series"], again["runs"]) == ([], answer["runs"])
    with pytest.raises(FilterMistake):
        ask(room, project=room.project.slug, filter="config.lr >")
    with pytest.raises(EncoreError, match="project"):
        ask(room, project="nowhere-" + new_id())


def test_a_run_that_a_question_finds_later_comes_whole_in_the_next_poll(room, three):
    query = {"project": room.project.slug, "filter": "tags = all"}
    first = ask(room, **query)
    late = room.run(tags=["all"])
    values.tags_changed(late)
    post_rows(room, room.writer(late), ["loss"], [(step, (7.0,)) for step in range(3)])
    fresh = ask(room, **query, since=first["cursor"])
    assert "reset" not in fresh
    assert [(one["run"], one["y"].tolist()) for one in fresh["series"]] == [(late.id, [7.0] * 3)]
    assert set(fresh["runs"]) == {*(run.id for run in three), late.id}


def test_keys_come_by_regular_expression_and_glob(room, three):
    keys = ["re:^val/.*s$", "val/*", "loss", "re:nothing"]
    found = list(dict.fromkeys(one["key"] for one in ask(room, three[:1], keys)["series"]))
    assert found == ["val/loss", "val/acc", "loss"]


@pytest.mark.parametrize("key", ["re:(", "re:" + "a" * 400, "re:(x{999}){999}"])
def test_a_regular_expression_that_is_none_or_too_much_is_refused_by_name(room, three, key):
    with pytest.raises(Invalid) as caught:
        ask(room, three, [key])
    assert "keys" in caught.value.fields


def test_a_regular_expression_that_would_take_for_ever_elsewhere_is_answered(room):
    """RE2's time is linear; Python's own would not end within the test."""
    writer = room.writer()
    room.simple(writer, 0, [1.0], key="a" * 60 + "!")
    summaries.summarise_due()
    assert ask(room, [writer.run], ["re:^(a+)+$"])["series"] == []


# -- x is another metric ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compact", [False, True])
def test_loss_over_tokens_takes_the_tokens_of_the_step_or_of_the_latest_before(room, compact):
    """Points before the first tokens, or where tokens are no number, have no x; the answer counts them."""
    writer = room.writer()
    post_rows(room, writer, ["loss"], [(step, (float(step),)) for step in range(10)])
    post_rows(room, writer, ["tokens"], [(2, (100.0,)), (4, (200.0,)), (7, (math.nan,)), (8, (300.0,))], first=10)
    if compact:
        compaction.compact_run(writer.run_id, force=True)
    (entry,) = ask(room, [writer.run], x={"metric": "tokens"})["series"]
    assert entry["steps"].tolist() == [2, 3, 4, 5, 6, 8, 9]
    assert entry["x"].tolist() == [100, 100, 200, 200, 200, 300, 300]
    assert (entry["without_x"], entry["n"]) == (3, 10)
    (part,) = ask(room, [writer.run], x={"metric": "tokens"}, **{"from": 150, "to": 250})["series"]
    assert (part["steps"].tolist(), part["n"]) == ([4, 5, 6], 3)


def test_an_x_that_falls_is_put_in_order_and_equal_x_by_step(room):
    writer = room.writer()
    lrs = [0.0, 2.0, 4.0, 3.0, 2.0, 1.0]
    post_rows(room, writer, ["loss", "lr"], [(step, (float(step), lr)) for step, lr in enumerate(lrs)])
    (entry,) = ask(room, [writer.run], x={"metric": "lr"})["series"]
    assert list(zip(entry["x"].tolist(), entry["steps"].tolist(), strict=True)) == [(0, 0), (1, 5), (2, 1), (2, 4), (3, 3), (4, 2)]
    assert ask(room, [writer.run], ["loss", "lr"], x={"metric": "nothing"})["series"] == []


def test_x_of_several_ranks_goes_together_as_its_key_states(room):
    """A rank's own tokens for its own line; the sum of all for the line of all."""
    run = room.run()
    for rank in range(2):
        writer = room.writer(run, rank=rank)
        post_rows(room, writer, ["loss", "tokens"], [(step, (rank + 0.0, 10.0 * (step + 1))) for step in range(3)])
    KeyDefinition.objects.create(run=run, pattern="tokens", fields={"reduce": "sum"})
    assert ask(room, [run], x={"metric": "tokens"})["series"][0]["x"].tolist() == [20, 40, 60]
    for entry in ask(room, [run], x={"metric": "tokens"}, ranks="all")["series"]:
        assert entry["x"].tolist() == [10, 20, 30]
    (entry,) = ask(room, [run], x={"metric": "tokens"}, ranks=[1])["series"]
    assert (entry["rank"], entry["y"].tolist()) == (1, [1.0] * 3)


def test_ranks_without_an_x_of_their_own_take_the_lowest_ranks(room):
    run = room.run()
    post_rows(room, room.writer(run, rank=0), ["loss", "tokens"], [(step, (0.0, step * 5.0)) for step in range(3)])
    post_rows(room, room.writer(run, rank=1), ["loss"], [(step, (1.0,)) for step in range(3)])
    (entry,) = ask(room, [run], x={"metric": "tokens"}, ranks=[1])["series"]
    assert entry["x"].tolist() == [0, 5, 10]


# -- groups of runs -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"group_by": "config.lr"},
        {"x": {"metric": "val/acc"}},
        {"buckets": 3},
        {"ranks": "all"},
        {"smooth": {"kind": "ema", "weight": 0.5}},
    ],
    ids=str,
)
def test_an_answer_that_is_read_in_portions_is_the_same(room, three, monkeypatch, more):
    query = {"runs": [run.id for run in three], "keys": ["loss", "val/loss", "val/acc"], **more}
    whole = series.answer(user=room.user, query=query, as_json=True)
    monkeypatch.setattr(series_portions, "FEW", 1)
    for points in (1, 25, 65):
        monkeypatch.setattr(series_portions, "POINTS_AT_ONCE", points)
        parts = series.answer(user=room.user, query=query, as_json=True)
        in_order = sorted(parts["series"], key=lambda one: [[o["key"], o.get("run"), o.get("group")] for o in whole["series"]].index(
            [one["key"], one.get("run"), one.get("group")]))  # fmt: skip
        assert {**parts, "series": in_order} == whole
        assert series.answer(user=room.user, query={**query, "since": parts["cursor"]}, as_json=True)["series"] == []


def test_a_question_that_reads_for_too_long_is_refused_with_what_to_do(room, three, monkeypatch):
    monkeypatch.setattr(series_portions, "FEW", 0)
    monkeypatch.setattr(series_portions, "POINTS_AT_ONCE", 1)
    monkeypatch.setattr(series, "MOST_SECONDS", -1)
    with pytest.raises(Invalid, match="fewer runs or keys"):
        ask(room, three)


@pytest.mark.parametrize("buckets", [1000, 4])
def test_groups_by_config_equal_numpy_at_every_step(room, three, buckets):
    answer = ask(room, three, group_by="config.lr", buckets=buckets)
    assert [(one["group"], one["runs"]) for one in answer["series"]] == [
        (0.1, [three[0].id, three[1].id]), (0.2, [three[2].id]),
    ]  # fmt: skip
    entry = answer["series"][0]
    points = np.stack([np.arange(10.0), np.arange(10.0) + 1])
    assert entry["n"] == 20
    assert (entry["min"].min(), entry["max"].max()) == (0.0, 10.0)
    if entry["exact"]:
        assert entry["steps"].tolist() == list(range(10))
        np.testing.assert_array_equal(entry["y"], points.mean(axis=0))
        np.testing.assert_array_equal(entry["spread"], points.std(axis=0))
        np.testing.assert_array_equal(entry["hi"], points.mean(axis=0) + points.std(axis=0))
    else:
        ends = np.cumsum(entry["count"]) - 1
        np.testing.assert_array_equal(entry["last"], points.mean(axis=0)[ends])
        np.testing.assert_array_equal(entry["spread"], points.std(axis=0)[ends])
    assert entry["members"].tolist() == [2] * len(entry["x"])


def test_groups_by_column_tag_list_and_missing_value(room, three):
    names = {one["group"]: one["runs"] for one in ask(room, three, group_by="group")["series"]}
    assert names == {None: [three[0].id], "warm": [three[1].id, three[2].id]}
    tags = {one["group"]: len(one["runs"]) for one in ask(room, three, group_by="tags")["series"]}
    assert tags == {"all": 3, "t0": 1, "t1": 1, "t2": 1}
    told = [{"name": "a", "runs": [three[0].id, three[2].id]}, {"name": "none", "runs": [new_id()]}]
    (entry,) = ask(room, group_by=told, line="median", band="minmax")["series"]
    assert (entry["group"], entry["y"].tolist()) == ("a", [step + 1.0 for step in range(10)])
    assert entry["lo"].tolist() == entry["min"].tolist() == [float(step) for step in range(10)]


def test_groups_over_time_go_by_interpolation_on_a_grid_and_keep_extremes(room, three):
    (entry,) = ask(room, three, group_by=[{"name": "a", "runs": [run.id for run in three]}], x="relative", buckets=4)["series"]
    np.testing.assert_allclose(entry["x"], np.linspace(0, 0.9, 4))
    np.testing.assert_allclose(entry["y"], np.linspace(0, 9, 4) + 1)
    assert (entry["exact"], entry["min"].min(), entry["max"].max(), entry["n"]) == (False, 0.0, 11.0, 30)


def test_a_live_group_comes_whole_when_one_of_its_runs_has_news(room, three):
    query = {"group_by": "config.lr"}
    first = ask(room, three, **query)
    assert ask(room, three, **query, since=first["cursor"])["series"] == []
    writer = three[1].writers.get()
    room.simple(writer, 10, [100.0], step=10)
    fresh = ask(room, three, **query, since=first["cursor"])
    (entry,) = fresh["series"]
    assert (entry["group"], entry["whole"], entry["y"].tolist()[-1]) == (0.1, True, 100.0)
    whole = next(one for one in ask(room, three, **query)["series"] if one["group"] == 0.1)
    np.testing.assert_array_equal(entry["y"], whole["y"])


# -- smoothing ----------------------------------------------------------------------------------------------------------------------------

KINDS = [
    {"kind": "ema", "weight": 0.9}, {"kind": "time_ema", "scale": 20.0}, {"kind": "gaussian", "sigma": 4}, {"kind": "mean", "window": 21},
]  # fmt: skip


@pytest.mark.parametrize("how", KINDS, ids=lambda how: how["kind"])
def test_smoothing_is_of_all_points_whatever_is_shown(room, how):
    """Whole, zoomed and thinned show the same smoothed values, and the raw ones beside them."""
    writer = room.writer()
    raw = np.random.default_rng(2).standard_normal(500)
    raw[250] = np.nan
    room.simple(writer, 0, raw.tolist())
    kind, amount = how["kind"], float(next(value for name, value in how.items() if name != "kind"))
    expected = smooth(Smoothing(kind, amount), np.arange(500.0), raw)
    (whole,) = ask(room, [writer.run], smooth=how)["series"]
    np.testing.assert_array_equal(whole["y"], raw)
    np.testing.assert_allclose(whole["smooth"], expected)
    (zoom,) = ask(room, [writer.run], smooth=how, **{"from": 300, "to": 399})["series"]
    np.testing.assert_allclose(zoom["smooth"], expected[300:400])
    assert (zoom["n"], zoom["steps"].tolist()) == (100, list(range(300, 400)))
    (thin,) = ask(room, [writer.run], smooth=how, buckets=7)["series"]
    np.testing.assert_allclose(thin["smooth"], expected[np.cumsum(thin["count"]) - 1])
    assert thin["max"].max() == np.nanmax(raw)


@pytest.mark.parametrize("how", KINDS, ids=lambda how: how["kind"])
def test_a_smoothed_live_tail_ends_as_the_whole_line(room, how):
    writer = room.writer()
    raw = np.random.default_rng(3).standard_normal(60).tolist()
    room.simple(writer, 0, raw[:50])
    (have,) = (answer := ask(room, [writer.run], smooth=how))["series"]
    room.simple(writer, 50, raw[50:], known=True)
    (tail,) = ask(room, [writer.run], smooth=how, since=answer["cursor"])["series"]
    (whole,) = ask(room, [writer.run], smooth=how)["series"]
    keep = have["x"] < tail["from"]
    np.testing.assert_allclose(np.r_[have["smooth"][keep], tail["smooth"]], whole["smooth"])
    assert len(tail["x"]) == (60 if how["kind"] in ("gaussian", "mean") else 10)


# -- buckets, budgets, arrays -------------------------------------------------------------------------------------------------------------


def test_markers_say_where_nan_and_infinities_are(room):
    """Of each bucket and kind the first and last x, and how many."""
    writer = room.writer()
    raw = np.arange(1000.0)
    raw[[17, 40, 44]] = np.nan
    raw[[18, 900]] = np.inf
    raw[999] = -np.inf
    room.simple(writer, 0, raw.tolist())
    (entry,) = ask(room, [writer.run], buckets=10)["series"]
    told = zip(*(entry[f"odd_{name}"].tolist() for name in ("kind", "first", "last", "count")), strict=True)
    assert sorted(told) == [(1, 17, 44, 3), (2, 18, 18, 1), (2, 900, 900, 1), (3, 999, 999, 1)]
    assert (entry["nan"], entry["inf"]) == (3, 3)
    assert entry["max"].max() == np.inf
    (exact,) = ask(room, [writer.run])["series"]
    assert "odd_kind" not in exact  # there every point is told


def test_points_say_how_many_come_exactly(room):
    writer = room.writer()
    room.simple(writer, 0, [float(n) for n in range(100)])
    assert ask(room, [writer.run], buckets=10, points=100)["series"][0]["exact"] is True
    assert ask(room, [writer.run], buckets=10, points=99)["series"][0]["drawn"] <= 10
    assert ask(room, [writer.run], buckets=1000, points=0)["series"][0]["exact"] is False


def test_an_answer_is_bounded_and_says_so(room, monkeypatch):
    """Many lines share a bound: each gets fewer buckets, and extremes stay."""
    monkeypatch.setattr("tracker.services.series_shape.MOST_DRAWN", 40)
    run = room.run()
    for rank in range(4):
        room.simple(room.writer(run, rank=rank), 0, [float(n) for n in range(100)])
    answer = ask(room, [run], ranks="all", buckets=100)
    assert (answer["buckets"], answer["points"], answer["n"]) == (10, 10, 400)
    assert answer["drawn"] <= 40
    assert all((one["min"].min(), one["max"].max()) == (0.0, 99.0) for one in answer["series"])


def test_more_series_than_are_answered_is_a_mistake_that_says_how_many(room, monkeypatch):
    monkeypatch.setattr(series, "MOST_SERIES", 1)
    run = room.run()
    for rank in range(2):
        room.simple(room.writer(run, rank=rank), 0, [1.0])
    with pytest.raises(Invalid, match="2 series, at most 1"):
        ask(room, [run], ranks="all")


def test_four_byte_floats_and_chosen_arrays_come_when_asked_for(room):
    writer = room.writer()
    raw = [0.1, 1e300, math.nan]
    room.simple(writer, 0, raw)
    room.simple(writer, 3, [0.1, 0.2], key="small")
    first, second = ask(room, [writer.run], ["loss", "small"], floats="f4")["series"]
    assert (second["y"].dtype, second["x"].dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(first["y"], raw)  # too large for four bytes
    (few,) = ask(room, [writer.run], arrays=["max", "odd"], buckets=1, points=0)["series"]
    assert {name for name, value in few.items() if isinstance(value, np.ndarray)} == {
        "x",
        "max",
        "odd_kind",
        "odd_first",
        "odd_last",
        "odd_count",
    }


def test_equal_arrays_lie_in_the_answer_once(room):
    run = room.run()
    post_rows(room, room.writer(run), ["a", "b", "c"], [(step, (step + 0.5, step * 2.0, 1.0)) for step in range(1000)])
    one, three = (len(series.answer(user=room.user, query={"runs": [run.id], "keys": keys})) for keys in (["a"], ["a", "b", "c"]))
    assert three < one + 2 * 8000 + 1500  # two arrays of values more, no further x and no further steps


def test_json_says_the_same_as_the_binary_answer(room, three):
    query = {"runs": [run.id for run in three], "keys": ["loss"], "group_by": "tags", "buckets": 3}
    binary = series_answer.decode(series.answer(user=room.user, query=query))
    plain = series.answer(user=room.user, query=query, as_json=True)
    assert json.loads(json.dumps(plain)) == series_answer.as_json(binary.pop("series"), **binary)


# -- wrong questions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("runz", {"runz": []}), ("runs", {"runs": None}), ("runs", {"runs": ["short"]}), ("runs", {"filter": "x = 1"}),
        ("keys", {"keys": ["a" * 501]}), ("x", {"x": {"metric": 7}}), ("x", {"x": {"metric": "a", "more": 1}}), ("x", {"x": ["step"]}),
        ("from", {"from": True}), ("to", {"to": float("inf")}), ("from", {"from": 10**400}), ("points", {"points": -1}),
        ("points", {"points": 10**9}), ("ranks", {"ranks": [True]}), ("ranks", {"ranks": {}}), ("branch", {"branch": ["all"]}),
        ("attempt", {"attempt": 0}), ("smooth", {"smooth": "ema"}), ("smooth", {"smooth": {"kind": "loess"}}),
        ("smooth.weight", {"smooth": {"kind": "ema", "weight": 1}}), ("smooth.weight", {"smooth": {"kind": "ema"}}),
        ("sigma", {"smooth": {"kind": "ema", "sigma": 1}}), ("smooth.window", {"smooth": {"kind": "mean", "window": 4}}),
        ("smooth.scale", {"smooth": {"kind": "time_ema", "scale": 0}}), ("group_by", {"group_by": "colour"}),
        ("group_by", {"group_by": [{"name": "a", "runs": ["x"]}]}), ("line", {"line": "mean"}),
        ("band", {"group_by": "tags", "band": "iqr"}),
        ("line", {"group_by": "tags", "line": "mode"}), ("ranks", {"group_by": "tags", "ranks": "band"}),
        ("branch", {"group_by": "tags", "branch": "all"}),
        ("smooth", {"group_by": "tags", "x": "wall", "smooth": {"kind": "ema", "weight": 0.5}}), ("floats", {"floats": "f2"}),
        ("arrays", {"arrays": ["maxx"]}), ("limit", {"runs": None, "project": "p", "limit": 5000}),
        ("archived", {"runs": None, "project": "p", "archived": "yes"}), ("project", {"runs": None, "project": 7}),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_what_is_allowed(room, field, change):
    with pytest.raises(Invalid) as caught:
        series.answer(user=room.user, query={"runs": [], "keys": [], **change})
    assert field in caught.value.fields
    assert len(caught.value.message) > 20


@pytest.mark.parametrize("query", [None, [], "x", 7, {"runs": []}, {"keys": []}])
def test_what_is_no_question_is_refused(room, query):
    with pytest.raises(Invalid):
        series.answer(user=room.user, query=query)


def test_every_field_that_is_read_is_known_and_every_known_one_is_documented():
    from pathlib import Path

    page = (Path(__file__).parents[3] / "docs" / "series.md").read_text()
    assert [name for name in (*series_query.FIELDS, *series_query.ARRAYS) if f"`{name}" not in page] == []
