"""The whole loop over HTTP, without a runner: train, ask, claim, play again, finish, verdict."""

from __future__ import annotations

import pytest

from tests.tracker.helpers import Api, writer_json
from tests.tracker.wire import batch
from tracker.models import Reproduction
from tracker.services import jobs, summaries

RECIPE = {"command": {"argv": ["train.py"]}, "source": {"manifest": "blake3:" + "0" * 64}, "environment": {"python": {"version": "3.11"}}}
FINISH = {"type": "event", "name": "finish", "data": {"state": "finished", "exit_code": 0, "signal": None, "error": None, "dropped": {}}}
LOSS = [1 / n for n in range(1, 13)]


@pytest.fixture(autouse=True)
def _forget():
    """What the fast path remembers of rights for seconds must not reach from one test into the next."""
    from tracker.api import ingest_batches
    from tracker.services import ingest

    ingest.forget()
    ingest_batches.forget()


def train(api: Api, run_id: str | None = None, loss=LOSS) -> str:
    """One writer from its opening to its finish; the run's id."""
    doc = writer_json(run_id)
    assert api.post("ingest/writers", doc).status_code == 200
    docs = [
        {"type": "config", "value": {"lr": 1}},
        *({"type": "recipe", "section": name, "value": v} for name, v in RECIPE.items()),
        FINISH,
    ]
    body = batch(doc["run"]["id"], doc["writer"], {"train/loss": list(loss)}, docs)
    answer = api.post(f"ingest/writers/{doc['writer']}/batches", body, content_type="application/vnd.encore.batch")
    assert answer.status_code == 200, answer.content
    return doc["run"]["id"]


@pytest.fixture
def reproduce(alice, bob, worker, here, monkeypatch):
    def reproduced(loss):
        monkeypatch.setattr("tracker.services.reproductions.preflight", lambda run: {"score": 100, "runnable": True, "items": []})
        original = train(alice)
        assert alice.get(f"runs/{original}").json()["state"] == "finished"
        made = bob.post(f"runs/{original}/reproductions").json()
        order = worker.post(f"jobs/{made['job']}/claim", {"worker": here.id}).json()
        key = Api(order["key"])
        train(key, order["run"], loss)
        evidence = {"format": 1, "exit_code": 0, "source": {"equal": True}, "environment": {"equal": True}}
        finished = key.post(f"jobs/{made['job']}/finish", {"fence": 1, "state": "finished", "evidence": evidence})
        assert finished.status_code == 200, finished.content
        assert jobs.sweep()["judged"] == 1
        assert jobs.sweep()["judged"] == 0
        return bob.get(f"reproductions/{made['id']}").json()

    return reproduced


@pytest.mark.django_db(transaction=True)
def test_an_equal_rerun_is_bit_exact(reproduce):
    found = reproduce(LOSS)
    assert (found["state"], found["run_state"]) == ("finished", "finished")
    assert found["verdict"]["execution"] == "completed"
    assert found["verdict"]["agreement"] == "bit_exact", found["verdict"]
    assert found["verdict"]["compared"]["points"] == 12


@pytest.mark.django_db(transaction=True)
def test_a_different_value_diverges_at_its_step(reproduce):
    found = reproduce([*LOSS[:2], 0.5, *LOSS[3:]])
    verdict = found["verdict"]
    assert (verdict["agreement"], verdict["step"], verdict["metric"], verdict["rank"]) == ("diverged", 2, "train/loss", 0)


@pytest.mark.django_db(transaction=True)
def test_points_come_out_as_they_went_in(alice, people):
    """history and keys give every point of a key, NaN and infinities as text."""
    run = train(alice, loss=[1.5, float("nan"), float("-inf"), -0.0])
    summaries.summarise_due()
    points = alice.get(f"runs/{run}/history?key=train/loss").json()["points"]
    assert [[step, value] for step, _, value in points] == [[0, 1.5], [1, "NaN"], [2, "-Infinity"], [3, -0.0]]
    found = alice.get(f"runs/{run}/keys").json()["results"][0]
    assert (found["key"], found["ranks"], found["count"]) == ("train/loss", [0], 4)
    assert found["definition"]["goal"] == "min"
    assert alice.get(f"runs/{run}/history?key=nothing").json()["points"] == []
    assert alice.get(f"runs/{run}/history").status_code == 400
    assert alice.get(f"runs/{run}/history?key=a&rank=x").status_code == 400
    assert alice.get(f"runs/{run}").json()["metrics"]["train/loss"]["nan_count"] == 1


@pytest.mark.django_db(transaction=True)
def test_a_run_without_a_recipe_is_not_runnable_and_says_so_at_once(bob, make_run):
    """No worker is troubled: the reproduction has already failed, with what is missing and a verdict."""
    run = make_run(recipe={})
    answer = bob.post(f"runs/{run.id}/reproductions")
    assert answer.status_code == 201, answer.content
    found = answer.json()
    assert (found["state"], found["run"]) == ("failed", None)
    assert found["failure"]["missing"]
    assert found["verdict"]["execution"] == "not_runnable"
    assert Reproduction.objects.get().judged_at
