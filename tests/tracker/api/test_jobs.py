"""Jobs over HTTP: claim, heartbeat, steps, logs, finish; leases, fences and keys."""

from datetime import timedelta

import pytest
from django.utils import timezone

from tests.tracker.helpers import Api, api_of, make_user, writer_json
from tracker.domain.ids import new_id
from tracker.models import Job, JobLog, Reproduction, Run, Token, Worker
from tracker.services import jobs


@pytest.fixture
def asked(bob, run, monkeypatch):
    """A reproduction that waits for a worker."""
    monkeypatch.setattr("tracker.services.reproductions.preflight", lambda run: {"score": 100, "runnable": True, "items": []})
    answer = bob.post(f"runs/{run.id}/reproductions", {"overrides": {"config": {"lr": 2}}})
    assert answer.status_code == 201, answer.content
    return Reproduction.objects.get(id=answer.json()["id"])


@pytest.fixture
def claimed(asked, here, worker):
    """(job, order, the job's own key as an Api)."""
    answer = worker.post(f"jobs/{asked.job_id}/claim", {"worker": here.id})
    assert answer.status_code == 200, answer.content
    order = answer.json()
    return asked.job, order, Api(order["key"])


def expire(job: Job) -> None:
    Job.objects.filter(id=job.id).update(lease_until=timezone.now() - timedelta(seconds=1))


class TestClaim:
    def test_the_order_says_all_that_a_worker_needs(self, claimed, asked, run):
        _, order, _ = claimed
        assert (order["format"], order["kind"], order["fence"], order["lease_seconds"]) == (1, "reproduce", 1, 30)
        assert (order["original"], order["run"], order["project"]) == (run.id, asked.rerun_id, "vision")
        assert order["recipe"]["command"]["argv"] == ["train.py"]
        assert order["overrides"] == {"config": {"lr": 2}, "argv": None, "env": {}, "files": {}}
        assert order["scope"] == {"steps": None}

    def test_of_two_claims_one_gets_the_job(self, claimed, here, worker):
        job, _, _ = claimed
        answer = worker.post(f"jobs/{job.id}/claim", {"worker": here.id})
        assert (answer.status_code, answer.json()["code"]) == (409, "job_taken")

    def test_only_a_registered_worker_of_the_queue_claims(self, asked, worker, people):
        assert worker.post(f"jobs/{asked.job_id}/claim", {"worker": new_id()}).status_code == 404
        assert worker.post(f"jobs/{asked.job_id}/claim", {"worker": "x"}).status_code == 400
        assert worker.post(f"jobs/{asked.job_id}/claim", {}).status_code == 400
        other = worker.post("workers/hello", {"name": "other", "queues": ["gpu"]}).json()["worker"]
        assert worker.post(f"jobs/{asked.job_id}/claim", {"worker": other}).status_code == 403
        foreign = api_of(people.charlie, "worker")
        assert foreign.post(f"jobs/{asked.job_id}/claim", {"worker": other}).status_code == 404

    def test_people_cannot_claim(self, asked, here, alice):
        assert alice.post(f"jobs/{asked.job_id}/claim", {"worker": here.id}).status_code == 403

    def test_unknown_job(self, here, worker):
        assert worker.post(f"jobs/{new_id()}/claim", {"worker": here.id}).status_code == 404

    def test_a_workers_name_belongs_to_its_account(self, here, people):
        foreign = api_of(people.charlie, "worker")
        assert foreign.post("workers/hello", {"name": "box", "queues": []}).status_code == 403

    def test_saying_hello_again_is_the_same_worker(self, here, worker):
        again = worker.post("workers/hello", {"name": "box", "queues": ["default", "gpu"]})
        assert again.json()["worker"] == here.id
        assert Worker.objects.get().queues == ["default", "gpu"]


class TestLease:
    def test_a_heartbeat_extends_it(self, claimed, worker):
        job, order, _ = claimed
        expire(job)
        answer = worker.post(f"jobs/{job.id}/heartbeat", {"fence": order["fence"]})
        assert answer.json()["cancel"] is False
        job.refresh_from_db()
        assert job.lease_until > timezone.now() + timedelta(seconds=20)

    def test_an_expired_lease_is_queued_again_and_then_lost(self, claimed, here, worker, asked):
        """At most max_attempts starts; then the job is said lost and its run crashed."""
        job, order, key = claimed
        key.post(f"jobs/{job.id}/steps", {"fence": 1, "name": "checkout", "state": "running"})
        expire(job)
        assert jobs.sweep()["expired"] == 1
        assert jobs.sweep()["expired"] == 0
        job.refresh_from_db()
        assert (job.state, job.worker) == ("queued", None)
        assert job.steps.get().state == "failed"
        assert worker.post(f"jobs/{job.id}/heartbeat", {"fence": order["fence"]}).status_code == 404
        assert worker.post(f"jobs/{job.id}/claim", {"worker": here.id}).json()["fence"] == 2
        expire(job)
        jobs.sweep()
        job.refresh_from_db()
        assert (job.state, job.failure["code"]) == ("lost", "lost")
        assert Run.objects.get(id=asked.rerun_id).state == "crashed"

    @pytest.mark.parametrize(
        ("route", "body"),
        [
            ("steps", {"name": "data", "state": "done"}),
            ("logs", {"number": 0, "step": "data", "text": "x"}),
            ("finish", {"state": "finished"}),
            ("heartbeat", {}),
        ],
    )
    def test_a_stale_fence_is_refused_on_every_write(self, claimed, here, worker, route, body):
        """A worker that was frozen and comes back cannot write over the one that took its place."""
        job, _order, old_key = claimed
        expire(job)
        assert old_key.post(f"jobs/{job.id}/{route}", {"fence": 1, **body}).status_code == 409
        jobs.sweep()
        new = worker.post(f"jobs/{job.id}/claim", {"worker": here.id}).json()
        answer = old_key.post(f"jobs/{job.id}/{route}", {"fence": 1, **body})
        assert (answer.status_code, answer.json()["code"]) == (409, "lease_lost")
        stale = Api(new["key"]).post(f"jobs/{job.id}/{route}", {"fence": 1, **body})
        assert (stale.status_code, stale.json()["code"]) == (409, "lease_lost")
        assert worker.post(f"jobs/{job.id}/heartbeat", {"fence": 1}).json()["code"] == "lease_lost"
        assert Api(new["key"]).post(f"jobs/{job.id}/{route}", {"fence": 2, **body}).status_code == 200

    def test_a_lost_wake_up_is_sent_again_once(self, asked):
        Job.objects.update(published_at=timezone.now() - timedelta(seconds=16), created_at=timezone.now() - timedelta(seconds=16))
        assert jobs.sweep()["published"] == 1
        assert jobs.sweep()["published"] == 0


class TestKey:
    def test_it_writes_its_own_run_and_nothing_else(self, claimed, asked, run, people):
        _, _order, key = claimed
        own = key.post("ingest/writers", writer_json(asked.rerun_id))
        assert own.status_code == 200, own.content
        assert own.json()["run"]["state"] == "running"
        for other in (run.id, new_id()):
            answer = key.post("ingest/writers", writer_json(other))
            assert (answer.status_code, answer.json()["code"]) == (409, "run_id_taken")
        assert key.post("ingest/blobs/missing", {"run": run.id, "blobs": []}).status_code == 404
        assert key.post("ingest/blobs/missing", {"run": asked.rerun_id, "blobs": []}).status_code == 200

    def test_it_reaches_no_other_route(self, claimed, run):
        _, _, key = claimed
        for path in ("runs", f"runs/{run.id}", "projects", "tokens", "jobs", "workers", "reproductions"):
            assert key.get(path).status_code == 403, path
        assert key.post("workers/hello", {"name": "x", "queues": []}).status_code == 403

    def test_it_writes_no_other_job(self, claimed, bob, run):
        other = Reproduction.objects.get(id=bob.post(f"runs/{run.id}/reproductions", {}).json()["id"])
        _, _, key = claimed
        assert key.post(f"jobs/{other.job_id}/heartbeat", {"fence": 0}).status_code == 404
        assert key.post(f"jobs/{other.job_id}/finish", {"fence": 1, "state": "finished"}).status_code == 404

    def test_it_reads_blobs_of_its_project_alone(self, claimed, alice, run, people):
        from tests.tracker.api.test_blobs import digest_of, put

        _, _, key = claimed
        put(alice, run, b"mine")
        assert key.get(f"blobs/{digest_of(b'mine')}?project=vision").status_code == 200
        assert key.get(f"blobs/{digest_of(b'mine')}?project=other").status_code == 404
        dora = api_of(make_user("dora"))
        opened = dora.post("ingest/writers", writer_json(run={"project": "doras"})).json()
        put(dora, Run.objects.get(id=opened["run"]["id"]), b"hers")
        assert key.get(f"blobs/{digest_of(b'hers')}").status_code == 404

    def test_it_dies_with_the_lease(self, claimed, asked):
        job, _order, key = claimed
        expire(job)
        answer = key.post("ingest/writers", writer_json(asked.rerun_id))
        assert (answer.status_code, answer.json()["code"]) == (409, "lease_lost")

    def test_it_dies_with_the_job(self, claimed, asked):
        job, _order, key = claimed
        assert key.post(f"jobs/{job.id}/finish", {"fence": 1, "state": "finished"}).status_code == 200
        assert key.post("ingest/writers", writer_json(asked.rerun_id)).json()["code"] == "lease_lost"
        assert Token.objects.filter(job=job, revoked_at=None).count() == 0

    def test_it_is_no_personal_token(self, claimed, bob):
        assert all("job" not in token["scopes"] for token in bob.get("tokens").json()["results"])


class TestWrites:
    def test_steps_are_kept_in_order_and_repeats_change_nothing(self, claimed, alice, asked):
        job, _, key = claimed
        for name, state in (("checkout", "running"), ("checkout", "done"), ("checkout", "done"), ("environment", "running")):
            answer = key.post(f"jobs/{job.id}/steps", {"fence": 1, "name": name, "state": state, "message": "m", "detail": {"n": 1}})
            assert answer.status_code == 200
        found = alice.get(f"reproductions/{asked.id}").json()["steps"]
        assert [(step["name"], step["state"]) for step in found] == [("checkout", "done"), ("environment", "running")]
        assert found[0]["finished_at"]

    def test_logs_are_kept_once_per_number_with_any_character(self, claimed, alice, asked):
        job, _, key = claimed
        body = {"fence": 1, "number": 0, "step": "environment", "text": "  a\x00\ud800\n"}
        assert key.post(f"jobs/{job.id}/logs", body).status_code == 200
        assert key.post(f"jobs/{job.id}/logs", {**body, "text": "again"}).status_code == 200
        assert JobLog.objects.get().text == "  a\u2400\ufffd\n"
        assert alice.get(f"reproductions/{asked.id}").json()["logs"][0]["text"] == "  a\u2400\ufffd\n"

    @pytest.mark.parametrize("route", ["steps", "logs", "finish", "heartbeat"])
    def test_nonsense_is_400(self, claimed, route):
        job, _, key = claimed
        for body in ({}, {"fence": "x"}, {"fence": 10**20}, {"fence": -1}, []):
            assert key.post(f"jobs/{job.id}/{route}", body).status_code == 400, body

    def test_a_failed_job_ends_its_waiting_run_with_the_reason(self, claimed, asked, alice):
        job, _, key = claimed
        failure = {"code": "data_missing", "message": "data.csv is gone", "missing": "data.csv"}
        assert key.post(f"jobs/{job.id}/finish", {"fence": 1, "state": "failed", "failure": failure}).status_code == 200
        rerun = Run.objects.get(id=asked.rerun_id)
        assert (rerun.state, rerun.error["type"]) == ("failed", "data_missing")
        found = alice.get(f"reproductions/{asked.id}").json()
        assert (found["state"], found["failure"]) == ("failed", failure)

    def test_wrong_method(self, claimed, worker):
        assert worker.get(f"jobs/{claimed[0].id}/claim").status_code == 405


class TestCancel:
    def test_a_waiting_job_ends_at_once(self, asked, bob, victor, charlie, here, worker):
        assert victor.post(f"reproductions/{asked.id}/cancel").status_code == 403
        assert charlie.post(f"reproductions/{asked.id}/cancel").status_code == 404
        assert bob.post(f"reproductions/{asked.id}/cancel").json()["state"] == "cancelled"
        assert bob.post(f"reproductions/{asked.id}/cancel").json()["state"] == "cancelled"
        assert Run.objects.get(id=asked.rerun_id).state == "killed"
        assert worker.post(f"jobs/{asked.job_id}/claim", {"worker": here.id}).status_code == 409

    def test_a_running_one_is_told_by_its_heartbeat(self, claimed, asked, bob, worker):
        job, _order, key = claimed
        assert bob.post(f"reproductions/{asked.id}/cancel").json()["state"] == "running"
        assert worker.post(f"jobs/{job.id}/heartbeat", {"fence": 1}).json()["cancel"] is True
        assert key.post(f"jobs/{job.id}/finish", {"fence": 1, "state": "cancelled"}).json()["state"] == "cancelled"
        assert Run.objects.get(id=asked.rerun_id).state == "killed"

    def test_it_is_swept_when_the_worker_is_gone(self, claimed, asked, bob):
        job, _, _ = claimed
        bob.post(f"reproductions/{asked.id}/cancel")
        expire(job)
        jobs.sweep()
        job.refresh_from_db()
        assert (job.state, job.failure["code"]) == ("cancelled", "cancelled")

    def test_deleting_the_run_cancels_what_plays_it_again(self, claimed, asked, alice, run, worker):
        job, _, _ = claimed
        alice("DELETE", f"runs/{run.id}")
        assert worker.post(f"jobs/{job.id}/heartbeat", {"fence": 1}).json()["cancel"] is True


class TestLists:
    def test_jobs_and_workers_of_what_one_sees(self, claimed, alice, charlie, asked):
        found = alice.get("jobs").json()["results"]
        assert [(job["id"], job["worker"], job["reproduction"]) for job in found] == [(asked.job_id, "box", asked.id)]
        assert alice.get("jobs?state=queued").json()["results"] == []
        assert charlie.get("jobs").json()["results"] == []
        assert alice.get("workers").json()["results"][0]["here"] is True

    def test_no_query_per_row(self, claimed, alice, bob, run, django_assert_max_num_queries):
        for _ in range(5):
            bob.post(f"runs/{run.id}/reproductions", {})
        with django_assert_max_num_queries(4):
            assert len(alice.get("jobs").json()["results"]) == 6
        with django_assert_max_num_queries(5):
            assert len(alice.get(f"reproductions?run={run.id}").json()["results"]) == 6
