"""Reading and charting: the winner of repeated steps, windows, buckets that keep extremes, ranks reduced, live tails."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from django.test import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracker.helpers import make_user
from tests.tracker.store import wire_writer as write
from tracker.domain import buckets, series_answer
from tracker.domain.errors import Invalid
from tracker.domain.ids import new_id
from tracker.models import KeyDefinition
from tracker.services import compaction, series, summaries
from tracker.store import reading

GOLDEN = Path(__file__).parents[2] / "contract" / "golden"


def ask(room, runs, keys=("loss",), **more) -> dict:
    query = {"runs": [getattr(run, "id", run) for run in runs], "keys": list(keys), **more}
    return series_answer.decode(series.answer(user=room.user, query=query))


# -- repeated steps ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compact", [False, True])
def test_the_later_attempt_then_start_then_record_wins_a_step(room, compact):
    """Of points of one step the later attempt's wins, within it the later start's, within that the later record; all are readable."""
    run = room.run()
    old = room.writer(run, attempt=1, started_us=50)
    new = room.writer(run, attempt=2, started_us=10)
    later = room.writer(run, attempt=2, started_us=20)
    room.simple(later, 0, [30.0], step=2)
    room.simple(new, 0, [20.0, 21.0], step=2)
    room.simple(old, 0, [1.0, 1.5, 2.0, 3.0, 4.0], step=0)
    room.simple(old, 5, [9.0], step=1, known=True)
    if compact:
        compaction.compact_run(run.id, force=True)
    column = room.column(run.id)
    assert len(column.steps) == 9
    winners = sorted(zip(column.steps[column.winner].tolist(), column.values[column.winner].tolist(), strict=True))
    assert winners == [(0, 1.0), (1, 9.0), (2, 30.0), (3, 21.0), (4, 4.0)]
    assert column.attempt.tolist() == [1] * 6 + [2] * 3
    entry = ask(room, [run])["series"][0]
    assert (entry["n"], entry["drawn"], entry["exact"], entry["attempts"]) == (9, 5, True, [1, 2])
    assert entry["steps"].tolist() == [0, 1, 2, 3, 4]
    assert entry["y"].tolist() == [1.0, 9.0, 30.0, 21.0, 4.0]


def test_a_key_that_changes_its_type_stays_exact(room):
    """Integers and floats under one key: floats to read, and the bits of each beside them."""
    writer = room.writer()
    room.simple(writer, 0, [2**53 + 1, 7], kind="q")
    room.simple(writer, 2, [0.5])
    column = room.column(writer.run_id)
    assert column.values.tolist() == [float(2**53), 7.0, 0.5]
    assert column.is_int.tolist() == [True, True, False]
    assert column.bits[0] == 2**53 + 1


def test_frames_of_one_batch_that_interleave_are_read_in_order_of_records(room):
    writer = room.writer()
    frames = [
        write.dense(0, ["loss"], "d", [(0, 0, 0, [0.0]), (2, 0, 0, [2.0])]),
        write.dense(0, ["loss", "lr"], "qd", [(1, 0, 0, [1, 0.1]), (3, 0, 0, [3, 0.1])]),
        write.sparse(0, [(4, "loss", "d", 0, 0, 4.0)]),
    ]
    room.post(writer, write.batch(writer.run_id, writer.id, 0, 4, frames))
    for _ in range(2):
        column = room.column(writer.run_id)
        assert column.records.tolist() == [0, 1, 2, 3, 4]
        assert column.values.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
        assert column.winner.tolist() == [False] * 4 + [True]
        compaction.compact_run(writer.run_id, force=True)


# -- buckets ---------------------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-1e9, 1e9) | st.sampled_from([float("nan"), float("inf"), -0.0]), min_size=1, max_size=300),
    st.integers(1, 40),
    st.data(),
)
@settings(max_examples=80, deadline=None)
def test_buckets_equal_numpy_over_their_points(values, count, data):
    """Each bucket's min, max, mean, first, last and count are numpy's over the points in it; no point is in none or in two."""
    y = np.array(values)
    x = np.cumsum(data.draw(st.lists(st.integers(0, 9), min_size=len(y), max_size=len(y)))).astype(float)
    found = buckets.thin(x, y, x[0], x[-1], count)
    assert found.count.sum() == len(y)
    ends = np.cumsum(found.count)
    for at, (start, end) in enumerate(zip(np.r_[0, ends[:-1]], ends, strict=True)):
        part = y[start:end]
        assert found.x[at] == x[start]
        numbers = part[~np.isnan(part)]
        with np.errstate(invalid="ignore"):
            expected = [numbers.min(), numbers.max(), numbers.mean()] if len(numbers) else [np.nan] * 3
        np.testing.assert_allclose([found.min[at], found.max[at], found.mean[at]], expected, rtol=1e-9, atol=1e-6)
        np.testing.assert_array_equal([found.first[at], found.last[at]], [part[0], part[-1]])
    assert len(found.x) <= count


def test_a_spike_is_never_thinned_away(room):
    writer = room.writer()
    values = np.sin(np.arange(5000.0))
    values[[1234, 4321]] = [1e9, -1e9]
    for first in range(0, 5000, 1000):
        room.simple(writer, first, values[first : first + 1000], known=first > 0)
    entry = ask(room, [writer.run], buckets=50)["series"][0]
    assert (entry["n"], entry["exact"]) == (5000, False)
    assert entry["drawn"] <= 50
    assert (entry["max"].max(), entry["min"].min()) == (1e9, -1e9)
    assert int(entry["count"].sum()) == 5000


def test_a_window_that_fits_is_exact(room):
    """Zooming in brings the very points, NaN and infinities among them, with their steps; both ends belong to the window."""
    writer = room.writer()
    values = np.arange(2000.0)
    values[150], values[151] = np.nan, np.inf
    room.simple(writer, 0, values)
    for _ in range(2):
        entry = ask(room, [writer.run], **{"from": 100, "to": 199, "buckets": 100})["series"][0]
        assert entry["exact"] is True
        assert (entry["n"], entry["nan"], entry["inf"]) == (100, 1, 1)
        assert entry["steps"].tolist() == list(range(100, 200))
        np.testing.assert_array_equal(entry["y"], values[100:200])
        compaction.compact_run(writer.run_id, force=True)


def test_x_can_be_the_clock(room):
    """Relative time counts seconds from the run's first writer, wall time from 1970; windows are in the same unit."""
    writer = room.writer(started_us=1_700_000_000_000_000)
    rows = [(n, n, 1_700_000_000_000_000 + n * 500_000, [float(n)]) for n in range(10)]
    room.post(writer, write.batch(writer.run_id, writer.id, 0, 9, [write.dense(0, ["loss"], "d", rows)]))
    entry = ask(room, [writer.run], x="relative", **{"from": 1, "to": 2})["series"][0]
    assert entry["x"].tolist() == [1.0, 1.5, 2.0]
    assert entry["n"] == 3
    assert ask(room, [writer.run], x="wall")["series"][0]["x"][3] == 1_700_000_001.5


# -- ranks -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["mean", "sum", "max", "min", "last"])
def test_ranks_are_reduced_at_equal_steps_as_numpy_does(room, how):
    """Ranks with other steps, some missing, give numpy's result over those that have the step; NaN stays visible."""
    run = room.run()
    draw = np.random.default_rng(5)
    points: dict[int, list[float]] = {}
    for rank in range(3):
        writer = room.writer(run, rank=rank)
        steps = sorted(draw.choice(40, 30, replace=False).tolist())
        values = draw.standard_normal(30)
        values[3] = np.nan if rank == 1 else values[3]
        rows = [(n, step, 1000 + rank, [value]) for n, (step, value) in enumerate(zip(steps, values, strict=True))]
        room.post(writer, write.batch(run.id, writer.id, 0, 29, [write.dense(0, ["loss"], "d", rows)]))
        for step, value in zip(steps, values, strict=True):
            points.setdefault(step, []).append(value)
    KeyDefinition.objects.create(run=run, pattern="lo*", fields={"reduce": how})
    entry = ask(room, [run])["series"][0]
    assert (entry["rank"], entry["ranks"]) == (None, [0, 1, 2])
    assert entry["steps"].tolist() == sorted(points)
    reduce = (lambda v: v[-1]) if how == "last" else getattr(np, how)
    np.testing.assert_array_equal(entry["y"], [reduce(np.array(points[step])) for step in sorted(points)])
    every = ask(room, [run], ranks="all")["series"]
    assert [line["rank"] for line in every] == [0, 1, 2]
    assert [line["rank"] for line in ask(room, [run], ranks=[2])["series"]] == [2]


# -- live --------------------------------------------------------------------------------------------------------------------------------


def test_a_cursor_brings_what_came_since(room):
    """A client that drops its points from ``from`` on and appends the answer has all, also after compaction and rewritten steps."""
    writer = room.writer()
    have: dict[float, float] = {}
    cursor, first = None, 0
    for turn, (values, step) in enumerate([([1.0, 2.0], 0), ([3.0], 2), ([9.0, 8.0], 1), ([4.0], 3)]):
        room.simple(writer, first, values, step=step, known=turn > 0)
        first += len(values)
        if turn == 1:
            compaction.compact_run(writer.run_id, force=True)
        answer = ask(room, [writer.run], since=cursor) if cursor else ask(room, [writer.run])
        cursor = answer["cursor"]
        for entry in answer["series"]:
            have = {x: y for x, y in have.items() if "from" not in entry or x < entry["from"]}
            have.update(zip(entry["x"].tolist(), entry["y"].tolist(), strict=True))
        assert ask(room, [writer.run], since=cursor)["series"] == []
    whole = ask(room, [writer.run])["series"][0]
    assert have == dict(zip(whole["x"].tolist(), whole["y"].tolist(), strict=True))


def test_nothing_new_costs_one_look(room, django_assert_max_num_queries):
    """A poll to which nothing came reads who may see and where the writers stand, no segment and no block."""
    writer = room.writer()
    room.simple(writer, 0, [1.0])
    cursor = ask(room, [writer.run])["cursor"]
    with django_assert_max_num_queries(2):
        assert ask(room, [writer.run], since=cursor)["series"] == []


# -- doors -------------------------------------------------------------------------------------------------------------------------------


def test_globs_name_keys(room):
    writer = room.writer()
    room.post(
        writer,
        write.batch(
            writer.run_id, writer.id, 0, 0, [write.dense(0, ["train/loss", "val/loss", "lr"], "ddd", [(0, 0, 0, [1.0, 2.0, 3.0])])]
        ),
    )
    summaries.summarise_due()
    assert [entry["key"] for entry in ask(room, [writer.run], ["*/loss"])["series"]] == ["train/loss", "val/loss"]


def test_runs_of_others_are_as_if_not_there(room):
    """Of runs that the user may not see nothing is answered, not even that they exist."""
    writer = room.writer()
    room.simple(writer, 0, [1.0])
    stranger = make_user("charlie-store")
    answer = series.answer(user=stranger, query={"runs": [writer.run_id, new_id()], "keys": ["loss"]}, as_json=True)
    assert answer["series"] == []


def test_the_view_answers_binary_and_json_and_304(room):
    writer = room.writer()
    room.simple(writer, 0, [1.0, float("nan"), float("inf")])
    client, headers = Client(), {"authorization": f"Bearer {room.secret}"}
    query = json.dumps({"runs": [writer.run_id], "keys": ["loss"]})
    binary = client.post("/api/v1/series", query, content_type="application/json", headers=headers)
    assert binary["Content-Type"] == "application/vnd.encore.series"
    np.testing.assert_array_equal(series_answer.decode(binary.content)["series"][0]["y"], [1.0, np.nan, np.inf])
    again = client.post("/api/v1/series", query, content_type="application/json", headers={**headers, "if-none-match": binary["ETag"]})
    assert again.status_code == 304
    plain = client.post("/api/v1/series", query, content_type="application/json", headers={**headers, "accept": "application/json"})
    assert plain.json()["series"][0]["y"] == [1.0, "NaN", "Infinity"]
    assert client.post("/api/v1/series", query, content_type="application/json").status_code == 401


@pytest.mark.parametrize(
    "change",
    [
        {"runs": "x"}, {"runs": [1]}, {"keys": None}, {"keys": ["a\0"]}, {"x": "time"}, {"from": "a"}, {"to": float("nan")}, {"buckets": 0},
        {"buckets": 10**9}, {"buckets": True}, {"ranks": "some"}, {"ranks": [-1]}, {"since": 7}, {"since": "%%"}, {"since": "e30x"},
        {"runs": ["a"] * 1001},
    ],
)  # fmt: skip
def test_a_wrong_query_is_named(room, change):
    with pytest.raises(Invalid):
        series.answer(user=room.user, query={"runs": [], "keys": [], **change})


def test_the_golden_series_answer_is_still_read():
    """An answer of the first version decodes to the same arrays for ever."""
    answer = series_answer.decode((GOLDEN / "series-v1.bin").read_bytes())
    assert series_answer.as_json(answer.pop("series"), **answer) == json.loads((GOLDEN / "series-v1.json").read_text())


def golden_answer() -> bytes:
    x = np.arange(5.0)
    exact = {"run": "a" * 26, "key": "größe", "rank": 1, "attempts": [1, 2], "n": 6, "drawn": 5, "exact": True, "nan": 1, "inf": 1, "x": x,
             "y": np.array([1.5, np.nan, -np.inf, -0.0, 2.0]), "steps": np.arange(5)}  # fmt: skip
    found = buckets.thin(np.arange(100.0), np.arange(100.0) ** 2, 0, 99, 3)
    thin = {"run": "a" * 26, "key": "loss", "rank": None, "ranks": [0, 1], "attempts": [1], "n": 200, "drawn": 3, "exact": False,
            "nan": 0, "inf": 0,
            "x": found.x, "y": found.last, "min": found.min, "max": found.max, "mean": found.mean, "first": found.first, "last": found.last,
            "count": found.count}  # fmt: skip
    return series_answer.encode([exact, thin], cursor="e30", x="step")


def test_a_history_of_many_runs_keeps_their_order(room):
    writers = [room.writer() for _ in range(3)]
    for at, writer in enumerate(writers):
        room.simple(writer, 0, [float(at)])
    ids = [writer.run_id for writer in writers][::-1]
    assert [(c.run, c.values.tolist()) for c in reading.history(ids, ["loss"])] == [(ids[0], [2.0]), (ids[1], [1.0]), (ids[2], [0.0])]
