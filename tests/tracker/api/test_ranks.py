"""GET runs/{id}/ranks, GET and POST runs/{id}/stacks, and what heartbeats hand out."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from tests.tracker.wire import batch
from tracker.domain.ids import new_id
from tracker.models import Run, Writer
from tracker.services import asks, summaries

DUMP = 'Current thread 0x00 (most recent call first):\n  File "/data/train.py", line {line} in step\n'


@pytest.fixture
def launch(open_writer, alice):
    """Two ranks on two hosts that log, with a node's writer on each."""
    run_id = new_id()
    made = {}
    for rank in (0, 1):
        shared = {"host": f"node{rank}", "rank": rank, "world_size": 2}
        for kind in ("trainer", "node"):
            run, writer = open_writer(run_id, kind=kind, **shared, launch={"kind": "torchrun", "id": "l", "coordinates": {"node": rank}})
            made[kind, rank] = writer
    return run, made


def send(alice, writer: Writer, points=None, docs=(), first: int | None = None) -> None:
    writer.refresh_from_db()
    body = batch(writer.run_id, writer.id, points, docs, first=writer.next if first is None else first)
    answer = alice.post(f"ingest/writers/{writer.id}/batches", body, content_type="application/vnd.encore.batch")
    assert answer.status_code == 200, answer.content


def beat(alice, run: Run, host: str, **more) -> dict:
    writers = [{"id": writer.id, "alive": True, "unsent": 0} for writer in run.writers.filter(host=host)]
    answer = alice.post("ingest/heartbeats", {"run": run.id, "host": host, "writers": writers, **more})
    assert answer.status_code == 200, answer.content
    return answer.json()


def stacks_event(rank: int, line: int, why: str = "asked") -> dict:
    return {"type": "event", "name": "stacks", "data": {"rank": rank, "why": why, "text": DUMP.format(line=line), "state": "S"}}


def test_each_rank_stands_with_its_place_its_host_and_its_last_step(alice, launch):
    run, made = launch
    for rank in (0, 1):
        docs = [{"type": "event", "name": "coordinates", "data": {"dp": 0, "tp": rank}}]
        send(alice, made["trainer", rank], {"loss": [1.0, 0.5, 0.25][: 3 - rank], "lr": [0.1, 0.1, 0.1][: 3 - rank]}, docs)
    summaries.summarise_run(run.id)
    found = alice.get(f"runs/{run.id}/ranks").json()
    assert (found["axes"], found["front"], found["pace_key"], found["world_size"]) == (["tp", "node"], 2, "loss", 2) or found["axes"] == [
        "dp",
        "tp",
        "node",
    ]
    first, second = found["results"]
    assert (first["rank"], first["host"], first["coordinates"], first["behind"]) == (0, "node0", {"node": 0, "dp": 0, "tp": 0}, 0)
    assert (second["rank"], second["last_step"], second["behind"], second["coordinates"]["tp"]) == (1, 1, 1, 1)
    assert "heat" not in found
    heat = alice.get(f"runs/{run.id}/ranks?heat=1").json()["heat"]
    assert heat["ranks"] == [0, 1]
    assert heat["seconds"] == [[1e-06, 1e-06], [1e-06, None]]


def test_coordinates_of_a_later_start_stand_for_the_rank(alice, launch, open_writer):
    run, made = launch
    send(alice, made["trainer", 0], docs=[{"type": "event", "name": "coordinates", "data": {"dp": 1, "bad": -1, "x": "y"}}])
    send(alice, made["trainer", 0], docs=[{"type": "event", "name": "coordinates", "data": ["no", "object"]}])
    made["trainer", 0].refresh_from_db()
    assert made["trainer", 0].info["launch"]["coordinates"] == {"node": 0, "dp": 1}
    open_writer(run.id, rank=0, started_us=1_700_000_009_000_000, launch={"kind": "torchrun", "id": "again", "restart_count": 1})
    assert alice.get(f"runs/{run.id}/ranks").json()["results"][0]["attempt"] == 2


def test_lr_that_differs_between_ranks_is_found(alice, launch):
    run, made = launch
    for rank in (0, 1):
        send(alice, made["trainer", rank], {"loss": [1.0, 0.5], "lr": [0.1, 0.1 + rank / 10]})
    summaries.summarise_run(run.id)
    texts = [one["text"] for one in alice.get(f"runs/{run.id}/ranks").json()["findings"]]
    assert "lr should be the same on all ranks and differs at step 1: rank 0: 0.1; rank 1: 0.2" in texts


def test_stacks_are_asked_of_each_host_once_and_told_by_groups(alice, bob, launch):
    run, made = launch
    assert bob.post(f"runs/{run.id}/stacks").json()["waiting"] is True
    assert beat(alice, run, "node0")["ask"] == ["stacks"]
    assert "ask" not in beat(alice, run, "node0")
    assert beat(alice, run, "node1")["ask"] == ["stacks"]
    send(alice, made["node", 0], docs=[stacks_event(0, 88)])
    found = alice.get(f"runs/{run.id}/stacks").json()
    assert (found["waiting"], found["asked_by"], [one["rank"] for one in found["results"]]) == (True, "bob", [0])
    send(alice, made["node", 1], docs=[stacks_event(1, 12)])
    found = alice.get(f"runs/{run.id}/stacks").json()
    assert (found["waiting"], found["sentence"]) == (False, "rank 0: step at train.py:88; rank 1: step at train.py:12")
    assert [one["host"] for one in found["results"]] == ["node0", "node1"]
    # Asked again, the old dumps give way as new ones come.
    alice.post(f"runs/{run.id}/stacks")
    send(alice, made["node", 0], docs=[stacks_event(0, 90)])
    assert alice.get(f"runs/{run.id}/stacks").json()["sentence"] == "rank 0: step at train.py:90"


def test_a_sync_beside_the_sender_does_not_take_the_question_away(alice, launch):
    run, _ = launch
    alice.post(f"runs/{run.id}/stacks")
    assert "ask" not in beat(alice, run, "node0", can=[])
    assert beat(alice, run, "node0", can=["stacks"])["ask"] == ["stacks"]


def test_a_question_grows_old(alice, launch):
    run, _ = launch
    alice.post(f"runs/{run.id}/stacks")
    run.refresh_from_db()
    run.asks["stacks"]["at"] = (timezone.now() - asks.VALID - timedelta(seconds=1)).isoformat()
    run.save(update_fields=["asks"])
    assert "ask" not in beat(alice, run, "node0")
    assert alice.get(f"runs/{run.id}/stacks").json()["waiting"] is False


def test_when_one_host_saw_its_ranks_stand_the_others_are_asked_once(alice, launch):
    run, made = launch
    send(alice, made["node", 0], docs=[stacks_event(0, 88, "stalled for 312 s")])
    assert "ask" not in beat(alice, run, "node0")
    assert beat(alice, run, "node1")["ask"] == ["stacks"]
    send(alice, made["node", 1], docs=[stacks_event(1, 12, "stalled for 314 s")])
    assert "ask" not in beat(alice, run, "node0")


@pytest.mark.parametrize("name", ["victor", "charlie", "nobody"])
def test_only_editors_may_ask(request, name, launch):
    run, _ = launch
    expected = {"victor": 403, "charlie": 404, "nobody": 401}[name]
    assert request.getfixturevalue(name).post(f"runs/{run.id}/stacks").status_code == expected
    run.refresh_from_db()
    assert run.asks == {}


def test_a_run_that_is_over_has_no_stacks_to_give(alice, run):
    answer = alice.post(f"runs/{run.id}/stacks")
    assert (answer.status_code, answer.json()["code"]) == (409, "run_over")
    assert alice.get(f"runs/{run.id}/stacks").json()["results"] == []


def test_malformed_and_unknown_runs(alice):
    for path in ("ranks", "stacks"):
        assert alice.get(f"runs/{new_id()}/{path}").status_code == 404
        assert alice.get(f"runs/nonsense/{path}").status_code in (400, 404, 422)


@pytest.mark.parametrize("told", ["yesterday", None, True, 2**63, [1]])
def test_a_heartbeat_whose_time_is_none_is_taken_all_the_same(alice, launch, told):
    run, made = launch
    beat(alice, run, "node0", time_us=told)
    made["trainer", 0].refresh_from_db()
    assert made["trainer", 0].skew_us is None


def test_the_skew_of_a_hosts_clock_is_kept(alice, launch):
    run, made = launch
    beat(alice, run, "node1", time_us=int((timezone.now().timestamp() - 3600) * 1e6))
    made["trainer", 1].refresh_from_db()
    assert 3599e6 < made["trainer", 1].skew_us < 3700e6
    texts = [one["text"] for one in alice.get(f"runs/{run.id}/ranks").json()["findings"]]
    assert any(text.startswith("the clock of node1 is 1 h 00 min behind the tracker's") for text in texts)
