"""Taking in batches: exactly once, durable, in order, and never half."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
from django.db import connections

from tests.tracker.store import wire_writer as wire
from tracker.domain.errors import Busy, EncoreError, KeylistUnknown, RangeConflict, Refused, RunDeleted, TooLarge, WriterUnknown
from tracker.domain.ids import new_id
from tracker.models import Event, MetricKeyset, MetricSegment, Run, Writer
from tracker.services import backpressure, documents, ingest
from tracker.store import reading


def test_a_batch_is_stored_and_answered_with_the_next_record(room):
    writer = room.writer()
    assert room.simple(writer, 0, [1.0, 2.0, 3.0]) == {"next": 3, "stop": False, "state": "running"}
    assert room.column(writer.run_id).values.tolist() == [1.0, 2.0, 3.0]


def test_a_repeated_batch_is_acknowledged_and_stored_once(room):
    writer = room.writer()
    for _ in range(3):
        assert room.simple(writer, 0, [1.0, 2.0])["next"] == 2
    assert MetricSegment.objects.filter(run=writer.run).count() == 1


@pytest.mark.parametrize("first", [1, 3, 100])
def test_a_range_that_does_not_start_at_next_is_told_where_to_cut(room, first):
    """Overlapping or leaping ranges get 409 with the next record, and nothing of them is stored."""
    writer = room.writer()
    room.simple(writer, 0, [1.0, 2.0])
    with pytest.raises(RangeConflict) as caught:
        room.simple(writer, first, [9.0] * 5)
    assert caught.value.fields == {"next": 2}
    assert len(room.column(writer.run_id).values) == 2


def test_a_batch_for_another_writer_or_run_is_refused(room):
    writer, other = room.writer(), room.writer()
    for run, name in ((other.run_id, writer.id), (writer.run_id, other.id)):
        with pytest.raises(Refused):
            room.post(writer, wire.simple(run, name, 0, [1.0]))


def test_an_unknown_writer_is_told_to_open(room):
    stranger = new_id()
    with pytest.raises(WriterUnknown):
        ingest.append_batch(
            writer_id=stranger, user=room.user, token=room.token, body=wire.simple(new_id(), stranger, 0, [1.0]), encoding=""
        )


def test_a_deleted_run_takes_nothing(room):
    from django.utils import timezone

    writer = room.writer()
    Run.objects.filter(id=writer.run_id).update(deleted_at=timezone.now())
    with pytest.raises(RunDeleted):
        room.simple(writer, 0, [1.0])


def test_keys_are_sent_once_for_all_writers_of_a_run(room):
    """After one batch with its keys, other writers of the run may leave them out; other runs may not."""
    writer = room.writer()
    second = room.writer(writer.run, rank=1)
    with pytest.raises(KeylistUnknown):
        room.simple(second, 0, [1.0], known=True)
    room.simple(writer, 0, [1.0])
    room.simple(second, 0, [2.0], known=True)
    ingest.forget()  # another process
    room.simple(second, 1, [3.0], known=True)
    assert room.column(writer.run_id, rank=1).values.tolist() == [2.0, 3.0]
    with pytest.raises(KeylistUnknown):
        room.simple(room.writer(), 0, [1.0], known=True)
    assert MetricKeyset.objects.filter(run=writer.run).count() == 1


def test_a_body_over_4_mib_is_refused(room):
    writer = room.writer()
    with pytest.raises(TooLarge):
        room.post(writer, bytes(4 * 2**20 + 1))


def test_documents_are_applied_in_the_batch_transaction(room):
    """A batch's documents and its points are there together; sent again, they are applied once."""
    writer = room.writer()
    docs = [
        {"n": 1, "step": None, "time": 5, "doc": {"type": "config", "value": {"lr": 1e-3}, "update": True}},
        {"n": 2, "step": None, "time": 6, "doc": {"type": "event", "name": "note", "data": {"a": 1}}},
    ]
    frames = [wire.dense(0, ["loss"], "d", [(0, 0, 1, [0.5])])]
    body = wire.batch(writer.run_id, writer.id, 0, 2, frames, docs)
    for _ in range(2):
        assert room.post(writer, body)["next"] == 3
    run = Run.objects.get(id=writer.run_id)
    assert run.config == {"lr": 1e-3}
    assert Event.objects.filter(run=run, name="note").count() == 1


def test_failing_documents_take_nothing_of_their_batch(room, monkeypatch):
    """If a document cannot be applied, neither points nor the writer's position move: the batch can come again."""
    writer = room.writer()
    docs = [{"n": 0, "step": None, "time": 5, "doc": {"type": "event", "name": "note", "data": {}}}]
    body = wire.batch(writer.run_id, writer.id, 0, 1, [wire.dense(0, ["loss"], "d", [(1, 0, 1, [0.5])])], docs)

    def fails(**_):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(documents, "apply", fails)
        with pytest.raises(ZeroDivisionError):
            room.post(writer, body)
    assert Writer.objects.get(id=writer.id).next == 0
    assert not MetricSegment.objects.filter(run=writer.run).exists()
    assert room.post(writer, body)["next"] == 2


def test_a_hole_is_covered_and_shown(room):
    """A refused range comes as a hole: the position moves on and the loss is an event."""
    writer = room.writer()
    room.post(writer, wire.batch(writer.run_id, writer.id, 0, 9, holes=[(0, 9)]))
    assert room.simple(writer, 10, [1.0])["next"] == 11
    event = Event.objects.get(run=writer.run, name="hole")
    assert event.data == {"first": 0, "last": 9}
    assert room.column(writer.run_id).records.tolist() == [10]


def test_too_much_that_waits_for_compaction_is_answered_with_wait(room, monkeypatch):
    """Beyond the run's limit batches get 429 until compaction has caught up; nothing is lost."""
    from tracker.services import compaction

    monkeypatch.setattr(backpressure, "RUN_BYTES", 100_000)
    monkeypatch.setattr(backpressure, "LOOK_AGAIN_SECONDS", 0)
    writer = room.writer()
    noise = np.random.default_rng(1).standard_normal(20_000)
    assert room.simple(writer, 0, noise)["next"] == 20_000
    with pytest.raises(Busy) as caught:
        room.simple(writer, 20_000, [1.0])
    assert caught.value.status == 429
    assert caught.value.retry_after
    assert compaction.compact_run(writer.run_id, force=True) == 1
    assert room.simple(writer, 20_000, [1.0])["next"] == 20_001


def test_10_000_keys_one_by_one_stay_few_segments_and_readable(room):
    """Names logged one at a time come as sparse frames: no key lists pile up, and each key is found, before and after compaction."""
    from tracker.services import compaction

    writer = room.writer()
    rows = [(n, f"layer/{n}", "d", n, n, float(n)) for n in range(10_000)]
    for first in range(0, 10_000, 2500):
        room.post(writer, wire.batch(writer.run_id, writer.id, first, first + 2499, [wire.sparse(first, rows[first : first + 2500])]))
    assert MetricKeyset.objects.filter(run=writer.run).count() == 0
    for compact in (False, True):
        if compact:
            assert compaction.compact_run(writer.run_id, force=True) == 1
        for n in (0, 4999, 9999):
            assert room.column(writer.run_id, f"layer/{n}").values.tolist() == [float(n)]
        assert len(reading.keys_of(writer.run_id)) == 10_000


# -- in parallel -----------------------------------------------------------------------------------------------------------------------


def in_threads(work, count: int) -> None:
    problems = []

    def run(at: int) -> None:
        try:
            work(at)
        except BaseException as problem:
            problems.append(problem)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(at,)) for at in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


@pytest.mark.django_db(transaction=True)
def test_parallel_senders_of_one_journal_store_each_record_once(room):
    """Eight senders of the same records, cut differently, sent twice: every record is there exactly once, whatever the order."""
    writer = room.writer()
    total = 400

    def sender(at: int) -> None:
        draw, next_ = random.Random(at), 0
        while next_ < total:
            count = min(draw.randrange(1, 40), total - next_)
            values = [float(n) for n in range(next_, next_ + count)]
            try:
                next_ = room.simple(writer, next_, values)["next"]
            except RangeConflict as told:
                next_ = told.fields["next"]

    in_threads(sender, 8)
    column = room.column(writer.run_id)
    assert column.records.tolist() == list(range(total))
    assert column.values.tolist() == [float(n) for n in range(total)]
    assert Writer.objects.get(id=writer.id).next == total


@pytest.mark.django_db(transaction=True)
def test_group_commit_stores_all_and_fails_each_for_itself(room):
    """Batches of many writers committed together: good ones are stored, a bad one among them fails alone."""
    writers = [room.writer() for _ in range(12)]
    failed = []

    def send(at: int) -> None:
        for n in range(10):
            try:
                room.simple(writers[at], n if at % 4 else n + 1, [float(n)])
            except EncoreError as problem:
                failed.append((at, problem))

    in_threads(send, len(writers))
    for at, writer in enumerate(writers):
        column = room.column(writer.run_id)
        assert (column is None) if at % 4 == 0 else (column.values.tolist() == [float(n) for n in range(10)])
    assert len(failed) == 30
    assert all(isinstance(problem, RangeConflict) for _, problem in failed)
