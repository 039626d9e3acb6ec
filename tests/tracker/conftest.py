"""People, rooms and helpers of the tracker's tests: Alice owns the project, Bob edits, Victor views, Charlie must see nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from django.utils import timezone

from tests.tracker.helpers import RECIPE, Api, api_of, make_user, writer_json
from tracker.domain.ids import new_id
from tracker.models import Attempt, Membership, Project, Run, Worker, Writer


@pytest.fixture(autouse=True)
def _fast_and_apart(settings, tmp_path):
    """No test reads another's store, sends to a real broker, or waits for a slow password hash."""
    settings.ENCORE_STORE = tmp_path / "store"
    settings.CELERY_BROKER_URL = ""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.STORAGES = {**settings.STORAGES, "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}}


@pytest.fixture
def people(db):
    """alice (owner), bob (editor), victor (viewer), charlie (a stranger), worker (the service account)."""
    found = {name: make_user(name) for name in ("alice", "bob", "victor", "charlie", "worker")}
    project = Project.objects.create(slug="vision", name="Vision")
    for name, role in (("alice", "owner"), ("bob", "editor"), ("victor", "viewer")):
        Membership.objects.create(project=project, user=found[name], role=role)
    return SimpleNamespace(project=project, **found)


@pytest.fixture
def alice(people):
    return api_of(people.alice)


@pytest.fixture
def bob(people):
    return api_of(people.bob)


@pytest.fixture
def victor(people):
    return api_of(people.victor)


@pytest.fixture
def charlie(people):
    return api_of(people.charlie)


@pytest.fixture
def worker(people):
    return api_of(people.worker, "worker")


@pytest.fixture
def nobody(db):
    return Api()


@pytest.fixture
def make_run(people):
    def make(**fields) -> Run:
        recipe = fields.pop("recipe", RECIPE)
        fields = {
            "project": people.project,
            "user": people.alice,
            "name": "a run",
            "state": "finished",
            "started_at": timezone.now(),
            **fields,
        }
        run = Run.objects.create(**fields)
        attempt = Attempt.objects.create(run=run, number=1, recipe=recipe)
        Writer.objects.create(
            id=new_id(), run=run, attempt=attempt, started_us=1, anchor_wall_us=1, finish={"state": fields["state"], "exit_code": 0}
        )
        return run

    return make


@pytest.fixture
def run(make_run):
    return make_run()


@pytest.fixture
def open_writer(alice):
    """Opens a writer over HTTP; answers (run, writer)."""

    def opened(run_id: str | None = None, by: Api | None = None, **more):
        doc = writer_json(run_id, **more)
        answer = (by or alice).post("ingest/writers", doc)
        assert answer.status_code == 200, answer.content
        return Run.objects.get(id=doc["run"]["id"]), Writer.objects.get(id=doc["writer"])

    return opened


@pytest.fixture
def here(people, worker):
    """The worker, registered for the default queue."""
    answer = worker.post("workers/hello", {"name": "box", "queues": ["default"], "info": {"gpus": []}})
    assert answer.status_code == 200, answer.content
    return Worker.objects.get(id=answer.json()["worker"])
