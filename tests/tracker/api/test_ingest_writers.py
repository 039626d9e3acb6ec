"""POST ingest/writers: opening writers makes runs, projects and attempts."""

import pytest

from tests.tracker.helpers import api_of, make_user, writer_json
from tracker.domain.ids import new_id
from tracker.models import Membership, Project, Run, Writer


def test_opening_makes_run_and_writer_and_is_idempotent(alice, people):
    doc = writer_json(run={"tags": ["a", "b"], "name": "gpt", "group": "g"})
    answer = alice.post("ingest/writers", doc)
    assert answer.status_code == 200, answer.content
    found = answer.json()
    assert found["run"]["id"] == doc["run"]["id"]
    assert found["run"]["state"] == "running"
    assert found["run"]["url"].endswith(f"/runs/{doc['run']['id']}")
    assert (found["attempt"], found["next"], found["stop"]) == (1, 0, False)
    run = Run.objects.get(id=doc["run"]["id"])
    assert (run.name, run.tags, run.group, run.user.username) == ("gpt", ["a", "b"], "g", "alice")
    assert alice.post("ingest/writers", doc).json() == found
    assert Writer.objects.count() == 1


def test_the_first_write_makes_the_project(charlie):
    answer = charlie.post("ingest/writers", writer_json(run={"project": "new project!"}))
    assert answer.status_code == 200
    assert charlie.get("me").json()["projects"] == [{"slug": "new-project", "role": "owner"}]


def test_a_foreign_run_id_is_409_and_nothing_else(alice, charlie, victor, run):
    for other in (charlie, victor):
        answer = other.post("ingest/writers", writer_json(run.id, run={"project": "elsewhere"}))
        assert answer.status_code == 409
        assert answer.json()["code"] == "run_id_taken"
    assert not Project.objects.filter(slug="elsewhere").exists()


def test_a_foreign_project_is_409(charlie, people):
    answer = charlie.post("ingest/writers", writer_json())
    assert answer.status_code == 409
    assert answer.json()["code"] == "project_taken"


def test_a_writer_id_of_another_run_is_409(alice, people):
    doc = writer_json()
    alice.post("ingest/writers", doc)
    answer = alice.post("ingest/writers", {**writer_json(), "writer": doc["writer"]})
    assert answer.status_code == 409
    assert answer.json()["code"] == "writer_taken"


def test_a_deleted_run_is_410(alice, run):
    alice("DELETE", f"runs/{run.id}")
    answer = alice.post("ingest/writers", writer_json(run.id))
    assert answer.status_code == 410
    assert answer.json()["code"] == "run_deleted"


@pytest.mark.parametrize(
    "change",
    [
        {"writer": "x"},
        {"writer": None},
        {"run": {"id": "X" * 26}},
        {"run": {"project": ""}},
        {"run": {"project": "///"}},
        {"kind": "spy"},
        {"rank": 2**40},
        {"rank": "0"},
        {"started_us": 2**70},
        {"format": 2},
    ],
)
def test_a_malformed_writer_json_is_400(alice, people, change):
    answer = alice.post("ingest/writers", writer_json(**change))
    assert answer.status_code == 400, answer.content
    assert not Run.objects.exists()


def test_odd_but_honest_values_are_taken(alice, people):
    """Overlong names, odd characters and clocks out of all bounds never stop a run."""
    doc = writer_json(
        run={"name": "n\x00\ud800" + "x" * 400, "tags": [1, "", "t" * 300, "ok"], "created_us": 10**18}, host="h" * 400, pid=-1, launch=None
    )
    assert alice.post("ingest/writers", doc).status_code == 200
    run = Run.objects.get()
    assert run.name.startswith("n\u2400\ufffdx")
    assert run.tags[-1] == "ok"


def test_ranks_of_one_start_share_an_attempt(open_writer):
    run, first = open_writer()
    _, second = open_writer(run.id, rank=1)
    assert first.attempt_id == second.attempt_id


def test_a_later_start_of_each_rank_is_the_next_attempt(open_writer):
    """Without a launch id, the k-th writer of a rank in start order is attempt k."""
    run, _ = open_writer()
    open_writer(run.id, rank=1, started_us=1_700_000_000_000_001)
    _, third = open_writer(run.id, started_us=1_700_000_100_000_000)
    _, fourth = open_writer(run.id, rank=1, started_us=1_700_000_100_000_001)
    assert (third.attempt.number, fourth.attempt.number) == (2, 2)
    assert third.attempt_id == fourth.attempt_id


def test_restart_count_tells_attempts_apart_that_a_rank_missed(open_writer):
    """A rank that was away in the second start joins the third, as its restart count says."""
    launch = {"kind": "torchrun", "id": "job7", "restart_count": 0}
    run, _ = open_writer(launch=launch)
    _, other = open_writer(run.id, rank=1, launch=launch)
    _, second = open_writer(run.id, launch={**launch, "restart_count": 1}, started_us=1_700_000_100_000_000)
    _, third = open_writer(run.id, launch={**launch, "restart_count": 2}, started_us=1_700_000_200_000_000)
    _, back = open_writer(run.id, rank=1, launch={**launch, "restart_count": 2}, started_us=1_700_000_200_000_001)
    assert [w.attempt.number for w in (other, second, third, back)] == [1, 2, 3, 3]


def test_the_same_holds_without_a_launch_id(open_writer):
    launch = {"kind": "torchrun", "id": None, "restart_count": 0}
    run, _ = open_writer(launch=launch)
    open_writer(run.id, rank=1, launch=launch)
    open_writer(run.id, launch={**launch, "restart_count": 1}, started_us=1_700_000_100_000_000)
    open_writer(run.id, launch={**launch, "restart_count": 2}, started_us=1_700_000_200_000_000)
    _, back = open_writer(run.id, rank=1, launch={**launch, "restart_count": 2}, started_us=1_700_000_200_000_001)
    assert back.attempt.number == 3


def test_a_journal_that_arrives_late_takes_its_place_among_the_attempts(open_writer):
    """The winner of a repeated step is the later attempt: order of arrival must not decide it."""
    run, late = open_writer(started_us=1_700_000_500_000_000)
    _, early = open_writer(run.id, started_us=1_700_000_000_000_000)
    late.refresh_from_db()
    late.attempt.refresh_from_db()
    assert (early.attempt.number, late.attempt.number) == (1, 2)


def test_a_nodes_writer_joins_the_attempt_and_decides_nothing(open_writer, alice):
    run, trainer = open_writer()
    _, node = open_writer(run.id, kind="node")
    assert node.attempt_id == trainer.attempt_id


def test_a_resumed_run_goes_on_and_forgets_the_old_stop(open_writer, alice):
    run, _ = open_writer()
    alice.post(f"runs/{run.id}/stop")
    Run.objects.filter(id=run.id).update(state="killed")
    run, second = open_writer(run.id, started_us=1_700_000_900_000_000)
    assert (run.state, run.stop_requested_at, second.attempt.number) == ("running", None, 2)


def test_a_member_of_another_project_cannot_slip_into_this_one(people, run):
    """A run id under one's own project name does not move the run or open it."""
    dora = make_user("dora")
    own = Project.objects.create(slug="own", name="own")
    Membership.objects.create(project=own, user=dora, role="owner")
    assert api_of(dora).post("ingest/writers", writer_json(run.id, run={"project": "own"})).status_code == 409


def test_wrong_method_and_anonymous(alice, nobody):
    assert alice.get("ingest/writers").status_code == 405
    assert nobody.post("ingest/writers", writer_json()).status_code == 401


class TestHeartbeats:
    def test_tells_next_state_and_stop(self, open_writer, alice):
        run, writer = open_writer()
        body = {"run": run.id, "host": "node1", "writers": [{"id": writer.id, "alive": True, "unsent": 3}, {"id": new_id(), "alive": True}]}
        assert alice.post("ingest/heartbeats", body).json() == {"stop": False, "state": "running", "next": {writer.id: 0}}
        alice.post(f"runs/{run.id}/stop")
        assert alice.post("ingest/heartbeats", body).json()["stop"] is True

    def test_brings_back_a_run_that_silence_made_crashed(self, open_writer, alice):
        run, writer = open_writer()
        Run.objects.filter(id=run.id).update(state="crashed")
        dead = {"run": run.id, "writers": [{"id": writer.id, "alive": False}]}
        assert alice.post("ingest/heartbeats", dead).json()["state"] == "crashed"
        alive = {"run": run.id, "writers": [{"id": writer.id, "alive": True}]}
        assert alice.post("ingest/heartbeats", alive).json()["state"] == "running"

    def test_wrong_people_and_questions(self, open_writer, alice, charlie, victor):
        run, writer = open_writer()
        body = {"run": run.id, "writers": [{"id": writer.id}]}
        assert charlie.post("ingest/heartbeats", body).status_code == 404
        assert victor.post("ingest/heartbeats", body).status_code == 403
        for bad in ({"run": "x"}, {"run": run.id, "writers": 3}, {"run": run.id, "writers": [{}]}, [], {}):
            assert alice.post("ingest/heartbeats", bad).status_code == 400
        assert alice.post("ingest/heartbeats", {"run": new_id()}).json()["code"] == "writer_unknown"

    def test_a_deleted_run_is_410(self, open_writer, alice):
        run, _writer = open_writer()
        alice("DELETE", f"runs/{run.id}")
        assert alice.post("ingest/heartbeats", {"run": run.id, "writers": []}).status_code == 410


def test_what_the_sender_writes_for_a_trainer_stands_beside_it(alice, open_writer):
    """A writer that follows a trainer of the first attempt belongs to it, also when a second has begun meanwhile."""
    run, first = open_writer()
    alice.post("ingest/heartbeats", {"run": run.id, "writers": []})
    Writer.objects.filter(id=first.id).update(finish={"state": "failed"})
    _, second = open_writer(run.id, started_us=1_700_000_100_000_000)
    assert second.attempt.number == 2
    for trainer, number in ((first, 1), (second, 2)):
        _, follower = open_writer(run.id, kind="node", of=trainer.id, follows="tensorboard", rank=0)
        assert follower.attempt.number == number
