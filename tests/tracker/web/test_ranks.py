"""The Ranks tab: what is odd stands above, the table sorts and filters, stacks come by a button; band and single ranks in charts."""

from __future__ import annotations

import time

import numpy as np
import pytest
from playwright.sync_api import expect

from tests.tracker.web import fill
from tracker.models import Run, Writer
from tracker.services import summaries

SECOND = 1_000_000
STACK = (
    'Current thread 0x00 (most recent call first):\n  File "{file}", line {line} in {name}\n  File "/data/train.py", line 88 in <module>\n'
)
HOSTILE = "<b onclick=alert(1)>"


def launch(user, ranks: int, steps: int = 60) -> tuple[Run, list[fill.Trainer]]:
    """A running launch in which rank 1 is late by 0.4 s of each second, and the last rank stands one step behind since a minute."""
    run_id, trainers = None, []
    start = time.time() - 60 - steps
    for rank in range(ranks):
        trainer = fill.Trainer(user, "gpt", "a launch", run=run_id, rank=rank, world=ranks, ago=60 + steps)
        run_id = trainer.run_id
        at = np.arange(steps - (rank == ranks - 1))
        times = ((start + at + (0.4 if rank == 1 else 0.0)) * SECOND).astype("i8")
        docs = [{"type": "event", "name": "coordinates", "data": {"dp": rank // 2, "tp": rank % 2}}]
        trainer.batch({"train/loss": 1 / (at + 1.0 + rank), "lr": np.full(len(at), 0.1)}, at, times, docs)
        trainers.append(trainer)
    Writer.objects.filter(run=run_id).update(host=HOSTILE)
    summaries.summarise_run(run_id)
    return Run.objects.get(id=run_id), trainers


def test_a_tab_of_one_rank_of_none_and_of_many(alice, people):
    run = fill.run_of(people["alice"], "gpt", "alone", steps=5, log=False, with_recipe=False)
    assert alice.get(f"/runs/{run.id}/ranks").status_code == 200
    empty = fill.run_of(people["alice"], "gpt", "empty", steps=0, log=False, with_recipe=False)
    Writer.objects.filter(run=empty).delete()
    assert "No rank has opened its journal yet" in alice.get(f"/runs/{empty.id}/ranks").content.decode()
    many, _ = launch(people["alice"], 12)
    page = alice.get(f"/runs/{many.id}/ranks").content.decode()
    assert "ranks 0-10 wait after step 59" in page
    assert "rank 11 has not come that far (last step 58)" in page
    assert HOSTILE not in page


def test_the_table_sorts_and_filters_by_what_is_asked(alice, people):
    run, _ = launch(people["alice"], 12)

    def ranks_of(query: str) -> list[int]:
        return [one["row"].rank for one in alice.get(f"/runs/{run.id}/ranks{query}").context["rows"]]

    assert ranks_of("")[:3] == [1, 11, 0]  # what is odd stands first
    assert ranks_of("?sort=rank") == list(range(12))
    assert ranks_of("?sort=-late_seconds")[0] == 1
    assert ranks_of("?sort=-tp")[:6] == [1, 3, 5, 7, 9, 11]
    assert ranks_of("?q=tp%3D1+dp%3D2&sort=rank") == [5]
    assert ranks_of("?q=nothing") == []
    for nonsense in ("?sort=__class__", "?start=-1", "?start=99999999999", "?start=x", "?sort=-nope"):
        assert alice.get(f"/runs/{run.id}/ranks{nonsense}").status_code == 200


def test_viewers_see_stacks_and_get_no_button(bob, alice, people):
    run, _ = launch(people["alice"], 2)
    assert "dump-stacks" in alice.get(f"/runs/{run.id}/ranks").content.decode()
    assert "dump-stacks" not in bob.get(f"/runs/{run.id}/ranks").content.decode()
    assert bob.post(f"/runs/{run.id}/ranks/stacks").status_code == 403


@pytest.mark.slow
def test_one_asks_for_stacks_and_sees_them_come_by_groups(tab, people):
    run, _ = launch(people["alice"], 4)
    tab.goto(f"/runs/{run.id}/ranks")
    expect(tab.get_by_test_id("findings")).to_contain_text("rank 3 has not come that far")
    tab.get_by_test_id("dump-stacks").click()
    expect(tab.get_by_test_id("dump-stacks")).to_be_disabled()
    assert Run.objects.get(id=run.id).asks["stacks"]["by"] == "alice"
    node = fill.Trainer(people["alice"], "gpt", "a launch", run=run.id, kind="node", ago=1)
    for rank in range(4):
        text = STACK.format(
            file="/data/loader.py" if rank == 3 else "/venv/lib/python3.11/x.py", line=12, name="load" if rank == 3 else "all_reduce"
        )
        data = {"rank": rank, "why": "asked", "text": text + HOSTILE, "state": "S"}
        node.batch(docs=[{"type": "event", "name": "stacks", "data": data}])
    expect(tab.get_by_test_id("stack-sentence")).to_have_text("ranks 0-2: all_reduce in train.py:88; rank 3: load at loader.py:12")
    expect(tab.get_by_test_id("dump-stacks")).to_be_enabled()
    tab.get_by_role("columnheader", name="Rank").get_by_role("link").click()
    tab.wait_for_url("**/ranks?sort=rank")
    expect(tab.locator("table.ranks tbody th").first).to_have_text("0")
    expect(tab.locator(".heat canvas[data-painted]")).to_be_visible()


@pytest.mark.slow
def test_charts_offer_the_band_and_single_ranks(tab, people):
    """The band brings least and greatest of each step; single ranks come as typed, and what is no rank asks for nothing."""
    run, _ = launch(people["alice"], 4)
    asked = []
    tab.on("request", lambda request: asked.append(request.post_data_json) if request.url.endswith("/api/v1/series") else None)
    tab.goto(f"/runs/{run.id}/charts")
    panel = tab.locator('[data-chart="train/loss"]')
    expect(panel.locator(".drawn")).to_have_text("239 points")
    tab.click('[data-ranks-mode="band"]')
    tab.wait_for_url("**ranks=band*")
    panel.locator(".u-over").hover()
    expect(panel.locator("output")).to_contain_text("[")
    tab.fill("[data-ranks-some]", "0, 2-3")
    tab.press("[data-ranks-some]", "Enter")
    tab.wait_for_url("**ranks=0%2C2%2C3*")
    expect(panel.locator(".drawn")).to_have_text("179 points")
    assert asked[-1]["ranks"] == [0, 2, 3]
    before = len([one for one in asked if one["since"] is None])
    tab.fill("[data-ranks-some]", "first")
    tab.press("[data-ranks-some]", "Enter")
    expect(tab.locator("[data-ranks-some]")).to_have_attribute("aria-invalid", "true")
    assert len([one for one in asked if one["since"] is None]) == before


def test_system_metrics_of_several_nodes_can_be_seen_by_node(alice, people):
    run, _ = launch(people["alice"], 2)
    for rank, host in ((0, "node-a"), (1, "node-b")):
        node = fill.Trainer(people["alice"], "gpt", "a launch", run=run.id, rank=rank, kind="node", ago=50)
        Writer.objects.filter(id=node.id).update(host=host)
        node.batch({"system/cpu_percent": np.full(5, 10.0 + rank)}, np.arange(5), node.start_us + np.arange(5) * SECOND)
    summaries.summarise_run(run.id)
    context = alice.get(f"/runs/{run.id}/system").context
    assert (context["ranks"], context["rank_names_json"]) == (2, '{"0": "node-a", "1": "node-b"}')
    assert "2 nodes" in alice.get(f"/runs/{run.id}/system").content.decode()
    assert alice.get(f"/runs/{run.id}/logs?rank=1").context["rank"] == 1
