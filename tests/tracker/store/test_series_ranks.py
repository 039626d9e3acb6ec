"""Ranks in charts: the reduction that a key states, over the axes that it states, and the band around it; full against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tracker.store import wire_writer as write
from tracker.domain import series_answer
from tracker.models import Attempt, KeyDefinition, RunValue
from tracker.services import compaction, metrics, ranks, series, summaries
from tracker.web.summaries import last_values, metric_rows


def ask(room, run, key, **more) -> dict:
    query = {"runs": [run.id], "keys": [key], **more}
    (entry,) = series_answer.decode(series.answer(user=room.user, query=query))["series"]
    return entry


@pytest.fixture
def mesh(room):
    """2 × 2 × 2: pp, dp, tp; every rank logs its gradient's norm, the last stage alone the loss. 500 steps."""
    run = room.run()
    rng = np.random.default_rng(3)
    steps = 500
    values = {}
    for rank in range(8):
        where = {"pp": rank // 4, "dp": rank // 2 % 2, "tp": rank % 2, "node": rank // 4, "local": rank % 4}
        writer = room.writer(run, rank=rank, world_size=8, info={"launch": {"coordinates": where}})
        keys = ["grad_norm", "loss"] if where["pp"] == 1 else ["grad_norm"]
        mine = rng.normal(5, 1, (len(keys), steps))
        for key, line in zip(keys, mine, strict=True):
            values[key, rank] = line
        rows = [(n, n, 1_700_000_000_000_000 + n, [float(line[n]) for line in mine]) for n in range(steps)]
        room.post(writer, write.batch(run.id, writer.id, 0, steps - 1, [write.dense(0, keys, "d" * len(keys), rows)]))
    return run, values


@pytest.mark.parametrize("compact", [False, True])
def test_a_norm_over_tensor_and_pipeline_ranks_is_numpys_at_every_point(room, mesh, compact):
    run, values = mesh
    KeyDefinition.objects.create(run=run, pattern="grad_*", fields={"reduce": "norm", "over": ["tp", "pp"]})
    if compact:
        compaction.compact_run(run.id, force=True)
    entry = ask(room, run, "grad_norm")
    line = np.stack([values["grad_norm", rank] for rank in range(8)])
    replica = [np.linalg.norm(line[[0 + dp * 2, 1 + dp * 2, 4 + dp * 2, 5 + dp * 2]].T, axis=1) for dp in (0, 1)]
    assert entry["exact"]
    assert entry["reduce"] == {"how": "norm", "over": ["tp", "pp"]}
    assert np.array_equal(entry["y"], np.stack(replica, axis=1).mean(axis=1))


def test_tables_and_filters_show_the_same_as_the_chart(room, mesh):
    """The last value by which runs are sorted, in lists and on the run's page is the reduced line's last."""
    run, _ = mesh
    KeyDefinition.objects.create(run=run, pattern="grad_norm", fields={"reduce": "norm", "over": ["tp", "pp"]})
    summaries.summarise_run(run.id)
    last = float(ask(room, run, "grad_norm")["y"][-1])
    assert RunValue.objects.get(run=run, path="grad_norm").number == last
    assert metrics.of_run(run)["grad_norm"]["last"] == last
    assert metrics.last_of_runs([run.id], ["grad_norm", "loss"])[run.id]["grad_norm"] == last
    assert next(row["last"] for row in metric_rows(run, limit=9) if row["key"] == "grad_norm") == last
    assert last_values([run.id])["grad_norm"][run.id] == last
    run.summary = {"grad_norm": 1.0}
    run.save(update_fields=["summary"])
    assert metrics.of_run(run)["grad_norm"]["last"] != 1.0


def test_a_loss_of_the_last_stage_is_the_mean_of_those_that_have_it(room, mesh):
    run, values = mesh
    entry = ask(room, run, "loss")
    assert entry["ranks"] == [4, 5, 6, 7]
    assert np.array_equal(entry["y"], np.stack([values["loss", rank] for rank in range(4, 8)], axis=1).mean(axis=1))


@pytest.mark.parametrize("buckets", [1000, 50])
def test_the_band_holds_the_least_and_greatest_of_the_ranks(room, mesh, buckets):
    """Where all points fit, at each step; in buckets, of each bucket."""
    run, values = mesh
    entry = ask(room, run, "loss", ranks="band", buckets=buckets)
    line = np.stack([values["loss", rank] for rank in range(4, 8)])
    low, high = line.min(axis=0), line.max(axis=0)
    if entry["exact"]:
        assert np.array_equal(entry["min"], low)
        assert np.array_equal(entry["max"], high)
    else:
        assert entry["min"].min() == low.min()
        assert entry["max"].max() == high.max()
        assert entry["count"].sum() == 500
    assert np.array_equal(ask(room, run, "loss", buckets=buckets)["y"], entry["y"])


def test_a_band_over_time_and_of_one_rank_and_in_a_live_tail(room, mesh):
    run, values = mesh
    entry = ask(room, run, "loss", ranks="band", x="relative", **{"from": 0.0001, "to": 0.0002})
    assert len(entry["x"]) == len(entry["min"]) == 101
    line = np.stack([values["loss", rank] for rank in range(4, 8)])
    assert np.array_equal(entry["max"], line.max(axis=0)[100:201])
    alone = room.writer(run, rank=9)
    room.simple(alone, 0, [1.0, 2.0], key="other")
    assert "min" not in ask(room, run, "other", ranks="band")
    cursor = series_answer.decode(series.answer(user=room.user, query={"runs": [run.id], "keys": ["loss"], "ranks": "band"}))["cursor"]
    more = room.writer(run, rank=4, attempt=1, started_us=1_700_000_000_000_001)
    room.simple(more, 0, [99.0], key="loss", step=499)
    tail = ask(room, run, "loss", ranks="band", since=cursor)
    assert (tail["from"], tail["max"].tolist()) == (499.0, [99.0])


def test_single_ranks_come_on_demand(room, mesh):
    run, values = mesh
    answer = series_answer.decode(series.answer(user=room.user, query={"runs": [run.id], "keys": ["grad_norm"], "ranks": [2, 7]}))
    assert [(one["rank"], one["y"].tolist() == values["grad_norm", one["rank"]].tolist()) for one in answer["series"]] == [
        (2, True),
        (7, True),
    ]


def test_after_a_restart_the_ranks_are_judged_by_their_latest_start(room):
    """Four ranks reached step 400; the restart is of two, from step 200 on: the front is where they are now, and nobody is missed."""
    run = room.run()
    for rank in range(4):
        old = room.writer(run, rank=rank, world_size=4, finish={"state": "crashed"})
        room.simple(old, 0, [0.5] * 400)
    for rank in range(2):
        fresh = room.writer(run, rank=rank, attempt=2, world_size=2, started_us=1_700_000_900_000_000)
        Attempt.objects.filter(run=run, number=2).update(world_size=2)
        room.simple(fresh, 0, [0.4] * (50 + rank), step=200)
    summaries.summarise_run(run.id)
    judged = ranks.view(run).judged
    assert [(row.rank, row.attempt, row.last_step, row.state) for row in judged.rows] == [(0, 2, 249, "running"), (1, 2, 250, "running")]
    assert judged.front == 250
    assert not {"ended", "missing"} & {one.kind for one in judged.findings}


def test_what_is_read_is_bounded_by_the_last_points_of_each_rank(room):
    """A run of 20,000 points a rank is judged by the last of them."""
    run = room.run()
    for rank in range(2):
        writer = room.writer(run, rank=rank, world_size=2)
        room.simple(writer, 0, [0.5] * 20_000)
    summaries.summarise_run(run.id)
    found = ranks.view(run)
    assert found.judged.front == 19_999
    assert found.judged.heat_steps == list(range(19_800, 20_000))
    assert len(ranks.heat(found)["steps"]) == ranks.MOST_COLUMNS
