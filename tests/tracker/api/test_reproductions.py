"""POST runs/{id}/reproductions; GET reproductions, reproductions/{id}; cancel and judge."""

import pytest

from tracker.domain.ids import new_id
from tracker.models import Job, Reproduction, Run


@pytest.fixture
def runnable(monkeypatch):
    monkeypatch.setattr("tracker.services.reproductions.preflight", lambda run: {"score": 90, "runnable": True, "items": []})


def test_asking_makes_a_waiting_run_and_a_job(runnable, bob, run):
    answer = bob.post(f"runs/{run.id}/reproductions", {"queue": "gpu", "scope": {"steps": 5}})
    assert answer.status_code == 201, answer.content
    found = answer.json()
    assert (found["state"], found["queue"], found["original"], found["scope"]) == ("queued", "gpu", run.id, {"steps": 5})
    assert found["preflight"]["score"] == 90
    assert found["requested_by"] == "bob"
    rerun = Run.objects.get(id=found["run"])
    assert (rerun.state, rerun.name) == ("queued", "a run (rerun)")
    assert bob.get(f"runs/{rerun.id}").json()["reproduction_of"] == run.id


def test_twice_is_two_reproductions(runnable, bob, run):
    first, second = (bob.post(f"runs/{run.id}/reproductions").json() for _ in range(2))
    assert first["id"] != second["id"]
    listed = bob.get(f"reproductions?run={run.id}").json()["results"]
    assert [found["id"] for found in listed] == [second["id"], first["id"]]


def test_it_needs_the_editors_role(runnable, alice, victor, charlie, nobody, run):
    assert victor.post(f"runs/{run.id}/reproductions").status_code == 403
    assert charlie.post(f"runs/{run.id}/reproductions").status_code == 404
    assert nobody.post(f"runs/{run.id}/reproductions").status_code == 401
    assert alice.post(f"runs/{run.id}/reproductions").status_code == 201


def test_a_run_that_goes_on_cannot_be_reproduced_yet(runnable, bob, make_run):
    answer = bob.post(f"runs/{make_run(state='running').id}/reproductions")
    assert (answer.status_code, answer.json()["code"]) == (409, "run_not_finished")


@pytest.mark.parametrize(
    "body",
    [
        {"overrides": {"colour": 1}},
        {"overrides": {"config": [1]}},
        {"overrides": {"argv": [1]}},
        {"overrides": {"env": {"A": 1}}},
        {"overrides": {"files": {"../x": "a"}}},
        {"overrides": {"files": {"/etc/x": "a"}}},
        {"overrides": {"files": {"a//b": "a"}}},
        {"overrides": {"files": {"a": "x" * (5 * 2**20)}}},
        {"overrides": 3},
        {"scope": {"steps": 0}},
        {"scope": {"steps": "all"}},
        {"queue": ""},
        {"queue": "q" * 101},
    ],
)
def test_nonsense_is_400_and_makes_nothing(runnable, bob, run, body):
    answer = bob.post(f"runs/{run.id}/reproductions", body)
    assert answer.status_code == 400, answer.content
    assert not Reproduction.objects.exists()
    assert not Job.objects.exists()
    assert Run.objects.count() == 1


def test_malformed_and_unknown_ids(alice):
    for path in ("reproductions/{}", "reproductions/{}/cancel", "reproductions/{}/judge", "runs/{}/reproductions"):
        method = alice.get if path == "reproductions/{}" else alice.post
        assert method(path.format("x")).status_code == 400
        assert method(path.format(new_id())).status_code == 404
    assert alice.get("reproductions?run=x").status_code == 400
    assert alice.get("reproductions?cursor=WyJhIiwiYiJd").status_code == 400


def test_strangers_see_none(runnable, bob, charlie, victor, run):
    made = bob.post(f"runs/{run.id}/reproductions").json()
    assert charlie.get("reproductions").json()["results"] == []
    assert charlie.get(f"reproductions/{made['id']}").status_code == 404
    assert victor.get(f"reproductions/{made['id']}").status_code == 200
    assert victor.post(f"reproductions/{made['id']}/judge").status_code == 403


def test_judging_waits_for_the_end(runnable, bob, run):
    made = bob.post(f"runs/{run.id}/reproductions").json()
    answer = bob.post(f"reproductions/{made['id']}/judge")
    assert (answer.status_code, answer.json()["code"]) == (409, "reproduction_not_over")


def test_wrong_method(alice, run):
    assert alice.get(f"runs/{run.id}/reproductions").status_code == 405
    assert alice.post("reproductions", {}).status_code == 405
