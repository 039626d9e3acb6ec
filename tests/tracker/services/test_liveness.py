"""Silence, trash and one-time links: what time alone does."""

from datetime import timedelta

import pytest
from django.utils import timezone

from tracker.models import LoginLink, MetricBlock, MetricTrash, Run, Writer
from tracker.services import accounts, liveness, runs


@pytest.fixture
def old():
    return timezone.now() - timedelta(minutes=10)


def test_a_silent_run_is_crashed_and_a_heard_one_is_not(make_run, old):
    silent, heard = make_run(state="running", heartbeat_at=old), make_run(state="running", heartbeat_at=timezone.now())
    assert liveness.mark_silent() == 1
    assert liveness.mark_silent() == 0
    silent.refresh_from_db()
    heard.refresh_from_db()
    assert (silent.state, silent.finished_at, heard.state) == ("crashed", old, "running")


def test_a_run_that_never_was_heard_is_crashed_too(make_run, old):
    run = make_run(state="running", heartbeat_at=None)
    assert liveness.mark_silent() == 0
    Run.objects.filter(id=run.id).update(created_at=old)
    assert liveness.mark_silent() == 1


def test_waiting_and_ended_runs_are_left_alone(make_run, old):
    for state in ("queued", "finished", "failed", "killed"):
        make_run(state=state, heartbeat_at=old)
    assert liveness.mark_silent() == 0


def test_a_heartbeat_is_written_at_most_each_five_seconds(make_run, django_assert_num_queries):
    run = make_run(state="running", heartbeat_at=timezone.now())
    before = Run.objects.get(id=run.id).heartbeat_at
    liveness.heard(run.id)
    assert Run.objects.get(id=run.id).heartbeat_at == before


def test_a_vanished_run_is_crashed_within_90_seconds_by_the_defaults():
    """The sum of what is set: the limit, the question's own period, twice the period for a task that had to wait; with time to spare."""
    from django.conf import settings

    from sdk._sender import limits
    from tracker.celery import app

    asked = app.conf.beat_schedule["mark_silent_runs"]["schedule"]
    assert settings.ENCORE_SILENT_SECONDS + 2 * asked <= 90
    # Lifetime of a live run's silence: two heartbeats and one answer that never came, still below the limit.
    assert 2 * limits.HEARTBEAT_SECONDS + limits.ANSWER_SECONDS < settings.ENCORE_SILENT_SECONDS
    assert liveness.HEARTBEAT_EVERY.total_seconds() <= limits.HEARTBEAT_SECONDS


def test_a_run_taken_for_crashed_runs_again_when_it_is_heard(open_writer, people, old):
    """The node was cut off, not gone: its next heartbeat takes the crash back."""
    from tracker.services import writers

    run, writer = open_writer()
    Run.objects.filter(id=run.id).update(heartbeat_at=old)
    assert liveness.mark_silent() == 1
    said = writers.heartbeat(user=people.alice, token=None, doc={"run": run.id, "host": "h", "writers": [{"id": writer.id, "alive": True}]})
    run.refresh_from_db()
    assert (said["state"], run.state, run.finished_at) == ("running", "running", None)


def test_one_rank_on_two_hosts_at_once_is_an_event_said_once(open_writer, people):
    """Both are heard of well after the second came; a dead node's last word before it is no claim."""
    from tracker.services import writers

    run, first = open_writer()
    _, second = open_writer(run.id)
    Writer.objects.filter(id=first.id).update(host="a")
    Writer.objects.filter(id=second.id).update(host="b")

    def beat(*living):
        beats = [{"id": writer.id, "alive": True} for writer in living]
        writers.heartbeat(user=people.alice, token=None, doc={"run": run.id, "host": "h", "writers": beats})
        return [event.data for event in run.events.filter(name=liveness.CLAIM)]

    assert beat(first, second) == []  # the second has only just come
    Writer.objects.filter(id=second.id).update(opened_at=timezone.now() - timedelta(seconds=20))
    Writer.objects.filter(id=first.id).update(opened_at=timezone.now() - timedelta(seconds=60))
    Writer.objects.filter(id=first.id).update(heartbeat_at=timezone.now() - timedelta(seconds=10))
    assert beat(second) == []  # the first may have died as the second came
    for _ in range(2):
        (data,) = beat(first, second)
    assert data == {"rank": 0, "writers": [first.id, second.id], "hosts": ["a", "b"]}


def test_the_trash_is_emptied_after_its_days_and_leaves_a_tombstone(make_run, people, alice):
    run = make_run()
    writer = run.writers.get()
    MetricBlock.objects.create(
        run=run, writer=writer, first=0, last=1, points=1, lo_step=0, hi_step=1, bytes=1, directory_bytes=1, object_key="blocks/x"
    )
    runs.delete(user=people.alice, run=run)
    assert runs.purge_trash() == 0
    Run.objects.filter(id=run.id).update(deleted_at=timezone.now() - timedelta(days=8))
    assert runs.purge_trash() == 1
    assert runs.purge_trash() == 0
    assert not Writer.objects.filter(run=run).exists()
    assert MetricTrash.objects.get().object_key == "blocks/x"
    from tests.tracker.helpers import writer_json

    assert alice.post("ingest/writers", writer_json(run.id)).json()["code"] == "run_deleted"


def test_a_login_link_works_once(people):
    secret = accounts.login_link(people.alice)
    assert accounts.use_login_link(secret) == people.alice
    assert accounts.use_login_link(secret) is None
    assert accounts.use_login_link("guess") is None


def test_a_login_link_expires(people):
    secret = accounts.login_link(people.alice)
    LoginLink.objects.update(expires_at=timezone.now())
    assert accounts.use_login_link(secret) is None


def test_an_invitation_makes_the_user_once(db):
    user, secret = accounts.invite(username="erin")
    again, _ = accounts.invite(username="erin")
    assert user == again
    assert not user.has_usable_password()
    assert accounts.use_login_link(secret) == user


def test_the_embedded_owner_is_a_superuser_and_sees_everything(run):
    owner = accounts.ensure_owner("me")
    assert accounts.ensure_owner("me") == owner
    assert runs.get(user=owner, run_id=run.id) == run


def test_a_new_start_revokes_the_workers_old_token(db):
    first = accounts.ensure_worker_token()[1]
    second = accounts.ensure_worker_token()[1]
    assert accounts.authenticate_token(second)[1].scopes == ["worker"]
    from tracker.domain.errors import Unauthenticated

    with pytest.raises(Unauthenticated):
        accounts.authenticate_token(first)
