"""Batches that come faster than they are compacted wait, whichever process took them; and compaction always gets out of it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tracker.store import wire_writer as wire
from tracker.domain.errors import Busy
from tracker.models import Writer
from tracker.services import backpressure, compaction
from tracker.services.backpressure import HotParts

NOISE = np.random.default_rng(1).standard_normal(20_000)


@pytest.fixture
def small(monkeypatch):
    """A limit that one batch of NOISE (560 kB) passes."""
    monkeypatch.setattr(backpressure, "RUN_BYTES", 100_000)
    monkeypatch.setattr(backpressure, "LOOK_AGAIN_SECONDS", 0)
    monkeypatch.setattr(backpressure, "LOOK_SECONDS", 0)


def test_the_batches_that_another_process_took_count_too(room, small):
    """A process that took none of a run's batches knows of them all the same, from the database, and frees them once they are compacted."""
    writer, other = room.writer(), room.writer()
    room.simple(writer, 0, NOISE)
    elsewhere = HotParts()
    with pytest.raises(Busy) as caught:
        elsewhere.check(writer.run_id)
    assert (caught.value.status, caught.value.retry_after) == (429, 2)
    elsewhere.check(other.run_id)
    assert compaction.compact_run(writer.run_id, force=True) == 1
    elsewhere.check(writer.run_id)


def test_the_whole_instance_has_a_limit_of_its_own(room, small, monkeypatch):
    """However many runs share it, the instance's hot part is bounded: then every run waits, longer than for its own limit."""
    monkeypatch.setattr(backpressure, "RUN_BYTES", 10**9)
    monkeypatch.setattr(backpressure, "INSTANCE_BYTES", 800_000)
    writers = [room.writer() for _ in range(3)]
    room.simple(writers[0], 0, NOISE)
    room.simple(writers[1], 0, NOISE)
    with pytest.raises(Busy) as caught:
        room.simple(writers[2], 0, [1.0])
    assert caught.value.retry_after == 5
    for writer in writers[:2]:
        compaction.compact_run(writer.run_id, force=True)
    assert room.simple(writers[2], 0, [1.0])["next"] == 1


def test_what_is_never_compacted_never_makes_anybody_wait(room, small):
    """Writers that are too small for a block stay segments for good; a thousand of them hold nobody up."""
    run = room.run()
    for rank in range(5):
        room.simple(room.writer(run, rank=rank), 0, NOISE[:2000])  # 56 kB each, 280 kB together
    elsewhere = HotParts()
    elsewhere.check(run.id)
    assert compaction.compact_run(run.id) == 0
    assert sum(Writer.objects.filter(run=run).values_list("hot_bytes", flat=True)) > backpressure.RUN_BYTES


def test_a_run_at_its_limit_is_compacted_however_young_and_small_its_batches_are(room, small):
    """Many ranks with a little each reach the run's limit before one of them is due by itself; then all are, and the run goes on."""
    run = room.run()
    writers = [room.writer(run, rank=rank) for rank in range(3)]
    for writer in writers[:2]:
        room.simple(writer, 0, NOISE[:2400])  # 67 kB
    with pytest.raises(Busy):
        room.simple(writers[2], 0, [1.0])
    assert compaction.run_due(seconds=5) >= 1
    assert room.simple(writers[2], 0, [1.0])["next"] == 1


def test_waiting_writers_far_below_the_limit_are_left_to_grow(room):
    """Without pressure a young writer is not compacted: few long blocks read better than many short ones."""
    writer = room.writer()
    room.simple(writer, 0, NOISE)
    assert compaction.run_due(seconds=5) == 0


def test_a_repeated_batch_waits_as_well(room, small):
    """429 comes before the body is looked at, so that a server in need does little work for each; the sender sends it again later."""
    writer = room.writer()
    body = wire.simple(writer.run_id, writer.id, 0, NOISE)
    room.post(writer, body)
    with pytest.raises(Busy):
        room.post(writer, body)
    compaction.compact_run(writer.run_id, force=True)
    assert room.post(writer, body)["next"] == len(NOISE)
