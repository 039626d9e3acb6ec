"""A database that many threads may use (SQLite in a file), and writers ready to take batches."""

from __future__ import annotations

import uuid
from types import SimpleNamespace

import pytest
from django.conf import settings
from django.utils import timezone

from tests.tracker.helpers import make_user
from tests.tracker.store import wire_writer as wire
from tracker.api import ingest_batches
from tracker.domain.ids import new_id
from tracker.models import Attempt, Membership, Project, Run, Writer
from tracker.services import accounts, ingest
from tracker.store import reading
from tracker.store.blobs import blob_store


@pytest.fixture(autouse=True)
def _remember_nothing():
    """What a process remembers for seconds does not pass from test to test."""
    for forget in (ingest.forget, ingest_batches.forget, reading.forget):
        forget()
    yield
    for forget in (ingest.forget, ingest_batches.forget, reading.forget):
        forget()


class Room:
    """A project, its owner and as many runs and writers as asked; posts batches through the service."""

    def __init__(self) -> None:
        self.user = make_user("alice-" + uuid.uuid4().hex[:8])
        self.project = Project.objects.create(slug="store-" + uuid.uuid4().hex[:8], name="Store")
        Membership.objects.create(project=self.project, user=self.user, role="owner")
        self.token, self.secret = accounts.create_token(user=self.user, name="t", scopes=["api"])

    def run(self, **fields) -> Run:
        return Run.objects.create(project=self.project, user=self.user, name="r", started_at=timezone.now(), **fields)

    def writer(self, run: Run | None = None, rank: int = 0, attempt: int = 1, started_us: int = 1_700_000_000_000_000, **more) -> Writer:
        run = run or self.run()
        made, _ = Attempt.objects.get_or_create(run=run, number=attempt)
        # As the SDK has it: its clock's zero is the machine's start, long before the writer's.
        anchored = started_us - 3_600_000_000
        return Writer.objects.create(id=new_id(), run=run, attempt=made, rank=rank, started_us=started_us, anchor_wall_us=anchored, **more)

    def post(self, writer: Writer, body: bytes, encoding: str = "") -> dict:
        return ingest.append_batch(writer_id=writer.id, user=self.user, token=self.token, body=body, encoding=encoding)

    def simple(self, writer: Writer, first: int, values, **more) -> dict:
        return self.post(writer, wire.simple(writer.run_id, writer.id, first, values, **more))

    def column(self, run_id: str, key: str = "loss", rank: int = 0):
        found = [c for c in reading.history([run_id], [key]) if c.rank == rank]
        return found[0] if found else None


@pytest.fixture
def room(db):
    return Room()


@pytest.fixture
def store_root():
    return SimpleNamespace(path=settings.ENCORE_STORE, store=blob_store())
