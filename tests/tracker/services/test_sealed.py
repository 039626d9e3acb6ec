"""When a run's data is final, and a mark that changes with the data and with nothing else."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from tests.tracker.store.conftest import Room
from tracker.models import Attempt, MetricBlock, Writer
from tracker.services import compaction, merging
from tracker.services.sealed import is_sealed, sealed_mark


@pytest.fixture
def room(db):
    return Room()


def test_a_run_is_sealed_when_it_is_over_and_nothing_waits(room):
    """Not while it runs, not before its writers ended (or were silent for a day), not while segments wait for compaction."""
    run = room.run()
    writer = room.writer(run)
    room.simple(writer, 0, [1.0])
    assert not is_sealed(run)
    run.state, run.heartbeat_at = "crashed", timezone.now()
    assert not is_sealed(run)
    run.heartbeat_at = timezone.now() - timedelta(hours=25)
    assert is_sealed(run)
    run.state, run.heartbeat_at = "finished", timezone.now()
    Writer.objects.update(finish={"state": "finished"})
    assert is_sealed(run)
    Writer.objects.update(hot_bytes=65536)
    assert not is_sealed(run)


def test_the_mark_changes_with_the_data_alone(room):
    """Compaction and merging leave it; points, a rewind, a new attempt and deletion change it."""
    run = room.run()
    writer = room.writer(run)
    marks = []

    def changed() -> bool:
        run.refresh_from_db()
        marks.append(sealed_mark(run))
        return len(marks) < 2 or marks[-1] not in marks[:-1]

    assert changed()
    for n in range(2):
        room.simple(writer, n * 3, [1.0, 2.0, 3.0], known=n > 0)
        assert changed()
        compaction.compact_run(run.id, force=True)
        assert not changed()
    assert merging.finish_run(run.id) == 1
    assert not changed()
    Attempt.objects.filter(run=run).update(rewound_to=1)
    assert changed()
    room.writer(run, attempt=2)
    assert changed()
    assert compaction.discard_blocks(run.id)[0] == 1
    assert changed()
    assert not MetricBlock.objects.exists()


def test_the_mark_of_a_fork_changes_with_its_ancestors(room):
    parent = room.run()
    writer = room.writer(parent)
    room.simple(writer, 0, [1.0])
    fork = room.run(fork_run=parent.id, fork_step=0, is_stitched=True)
    before = sealed_mark(fork)
    room.simple(writer, 1, [2.0], known=True)
    assert sealed_mark(fork) != before
