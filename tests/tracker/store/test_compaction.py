"""Who is compacted when, by whom, and what happens to a writer whose segments cannot be read."""

from __future__ import annotations

import os
import threading
from datetime import timedelta

import numpy as np
import pytest
from django.db import connection, connections, transaction
from django.utils import timezone

from tests.tracker.store import faulty
from tests.tracker.store import wire_writer as write
from tracker import tasks
from tracker.celery import app
from tracker.models import MetricBlock, MetricSegment, Writer
from tracker.services import blocked, compaction, merging, summaries
from tracker.store import reading, reserved, rows, wire
from tracker.store.metrics import News, metric_store

NOISE = np.random.default_rng(5).standard_normal(200)


@pytest.fixture(autouse=True)
def _from_the_start(monkeypatch):
    monkeypatch.setattr(compaction, "_served", "")


def due(room, run=None, segments: int = 64, **more) -> Writer:
    """A writer with so much in segments that it is due."""
    writer = room.writer(run, **more)
    append(writer, [write.simple(writer.run_id, writer.id, n * 200, NOISE + n) for n in range(segments)], timezone.now())
    return writer


def append(writer: Writer, bodies: list[bytes], at) -> None:
    """Store batches as ingest does, all in one transaction and at a time of our choice."""
    with transaction.atomic(), rows.cursor() as cursor:
        news = News(connection.ops.adapt_datetimefield_value(at))
        position = metric_store().positions(cursor, [writer.id])[writer.id]
        for body in bodies:
            assert metric_store().append(position, wire.decode(body), body, "", news)
        news.keysets = list(dict.fromkeys(news.keysets))
        metric_store().write(cursor, news)


def values(room, writer) -> list[float]:
    reading.forget()
    column = room.column(writer.run_id, rank=writer.rank)
    assert column.records.tolist() == list(range(len(column.records)))
    return column.values.tolist()


def test_nobody_waits_for_ever_behind_larger_ones():
    """However large the others stay, each writer's turn comes: every second turn goes round, every first to the largest."""
    candidates = [(f"w{n}", f"r{n}") for n in range(10)]
    served = []
    for _ in range(10):
        turns = compaction._turns(candidates)
        served += [next(turns)[0], next(turns)[0]]
        turns.close()
    assert set(served) == {writer for writer, _ in candidates}
    assert served.count("w0") >= 9
    assert sorted(compaction._turns(candidates)) == candidates
    assert list(compaction._turns([])) == []


def test_a_writer_that_one_worker_has_is_left_alone_by_the_others(room):
    """Its time runs out with the worker, and it is free again when its block is made."""
    writer = due(room)
    assert compaction._take(writer.id)
    assert not compaction._take(writer.id)
    assert compaction.run_due() == 0
    assert writer.run_id not in compaction.due_runs()
    Writer.objects.filter(id=writer.id).update(compact_after=timezone.now() - timedelta(seconds=1))  # the worker died
    assert writer.run_id in compaction.due_runs()
    assert compaction.compact_due_of(writer.run_id) == 1
    assert Writer.objects.get(id=writer.id).compact_after is None


@pytest.mark.django_db(transaction=True)
def test_several_workers_share_the_work_and_none_does_it_twice(room, monkeypatch):
    store = faulty.install(monkeypatch)  # counts
    written = [due(room) for _ in range(6)]
    problems: list[BaseException] = []

    def work() -> None:
        try:
            compaction.run_due()
        except BaseException as problem:
            problems.append(problem)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    compaction.run_due()  # what a worker gave way to
    assert MetricBlock.objects.filter(writer__in=written).count() == 6
    assert store.calls.count("put") == 6
    for writer in written:
        assert values(room, writer) == np.concatenate([NOISE + n for n in range(64)]).tolist()


def test_the_task_of_one_run_compacts_that_run_alone(room):
    mine, other = due(room), due(room)
    tasks.compact_run(mine.run_id)
    assert set(MetricBlock.objects.values_list("writer_id", flat=True)) == {mine.id}
    tasks.compact()
    assert set(MetricBlock.objects.values_list("writer_id", flat=True)) == {mine.id, other.id}


def test_several_machines_get_a_task_for_each_run(room, monkeypatch):
    """Where workers share the work, the scheduled task only deals it out."""
    written = {due(room).run_id for _ in range(3)}
    monkeypatch.setattr(compaction, "is_spread", lambda: True)
    sent = []
    compact = compaction.compact_due_of
    monkeypatch.setattr(compaction, "compact_due_of", lambda run_id: sent.append(run_id) or compact(run_id))
    app.conf.update(task_always_eager=True)  # each is run where it is sent
    try:
        tasks.compact()
    finally:
        app.conf.update(task_always_eager=False)
    assert set(sent) == written
    assert set(MetricBlock.objects.values_list("run_id", flat=True)) == written


def test_a_merge_that_fails_holds_up_no_compaction(room, monkeypatch):
    """Its blocks stay as they are, and compaction of the others goes on."""
    written = [due(room) for _ in range(2)]
    monkeypatch.setattr(merging, "FAN", 1)
    monkeypatch.setattr(merging.joining, "join", lambda *_: 1 / 0)
    assert compaction.run_due() == 2
    assert MetricBlock.objects.filter(writer__in=written).count() == 2


def test_while_the_store_is_away_nothing_changes_and_then_it_goes_on(room, monkeypatch):
    """A round ends after a few failures, says nothing to those who wait, and everything is done when the store is back."""
    written = [due(room) for _ in range(5)]
    with monkeypatch.context() as patch:

        class Away:
            def put(self, *_):
                raise OSError("the store is away")

            def delete(self, *_):
                raise OSError("the store is away")

        patch.setattr(reserved, "blob_store", Away)
        assert compaction.run_due() == 0
    assert not MetricBlock.objects.exists()
    assert MetricSegment.objects.filter(writer__in=written).count() == 5 * 64
    failed = Writer.objects.filter(compact_after__gt=timezone.now())
    assert failed.count() == compaction.FAILURES
    failed.update(compact_after=None)
    assert compaction.run_due() == 5


def damage(writer: Writer, first: int) -> bytes:
    with connection.cursor() as cursor:
        where = 'WHERE run_id = %s AND writer_id = %s AND "first" = %s'
        args = [writer.run_id, writer.id, first]
        cursor.execute(f"SELECT body FROM tracker_metricsegment {where}", args)
        whole = bytes(cursor.fetchone()[0])
        cursor.execute(f"UPDATE tracker_metricsegment SET body = %s {where}", [whole[:100] + b"?" + whole[101:], *args])
    return whole


def mend(writer: Writer, first: int, body: bytes) -> None:
    with connection.cursor() as cursor:
        where = 'WHERE run_id = %s AND writer_id = %s AND "first" = %s'
        cursor.execute(f"UPDATE tracker_metricsegment SET body = %s {where}", [body, writer.run_id, writer.id, first])


@pytest.mark.parametrize("counted", [False, True], ids=["before it was counted", "after it was counted"])
def test_a_writer_with_a_damaged_segment_is_set_aside_and_told_of(room, counted):
    """The others, of its run too, are compacted and counted; it is tried again later, and when it is whole again nothing is missing."""
    run = room.run()
    bad, good, other = due(room, run), due(room, run, rank=1), due(room)
    if counted:
        summaries.summarise_due()
    whole = damage(bad, 400)
    assert compaction.run_due() == 2
    assert set(MetricBlock.objects.values_list("writer_id", flat=True)) == {good.id, other.id}
    told = run.events.get(name="blocked")
    assert told.writer_id == bad.id
    assert "checksum" in told.data["why"]
    assert MetricSegment.objects.filter(writer=bad).count() == 64
    assert compaction.run_due() == 0
    bad.refresh_from_db()
    assert bad.compact_after - timezone.now() > blocked.FIRST * 0.9

    Writer.objects.filter(id=bad.id).update(compact_after=None, blocked_at=timezone.now() - timedelta(hours=3))
    assert compaction.run_due() == 0  # still damaged: the pauses grow, it is told once
    bad.refresh_from_db()
    assert bad.compact_after - timezone.now() > timedelta(hours=2)
    assert run.events.filter(name="blocked").count() == 1

    mend(bad, 400, whole)
    Writer.objects.filter(id=bad.id).update(compact_after=None)
    assert compaction.run_due() == 1
    assert run.events.filter(name="unblocked").count() == 1
    bad.refresh_from_db()
    assert bad.blocked_at is None
    assert values(room, bad) == np.concatenate([NOISE + n for n in range(64)]).tolist()


def test_a_wide_run_waits_for_long_columns(room):
    """A thousand keys with two rows each make poor blocks: such a writer waits for 120 batches, or for ten minutes."""
    writer = room.writer()
    keys = [f"layer/{n}/norm" for n in range(1001)]
    for n in range(64):
        rows_ = [(n * 2 + r, n, n, (NOISE[r] + np.arange(1001)).tolist()) for r in range(2)]
        frame = write.dense(n * 2, keys, "d" * 1001, rows_, known=n > 0)
        room.post(writer, write.batch(writer.run_id, writer.id, n * 2, n * 2 + 1, [frame]))
    MetricSegment.objects.update(received_at=timezone.now() - timedelta(minutes=5))
    assert Writer.objects.get(id=writer.id).hot_bytes < compaction.WIDE_BYTES
    assert compaction.run_due() == 0
    MetricSegment.objects.update(received_at=timezone.now() - timedelta(minutes=11))
    assert compaction.run_due() == 1


# -- long and slow -----------------------------------------------------------------------------------------------------------------------

DAYS = 7.0 if os.environ.get("ENCORE_TORTURE") == "1" else 0.25


@pytest.mark.timeout(3600 if DAYS > 1 else 300)
def test_a_slow_run_of_days_keeps_few_rows(room):
    """One batch of three points every five seconds: the segments stay below a bound, and the blocks below seven of each tier."""
    writer = room.writer()
    keys, types = ["loss", "lr", "norm"], "ddd"
    began = timezone.now() - timedelta(days=DAYS)
    most_segments = most_blocks = sent = 0
    for start in range(0, int(DAYS * 17280), 60):  # compaction comes every five minutes here, in truth oftener
        at = began + timedelta(seconds=5 * start)
        rows_ = [(n, n * 10, n * 5_000_000, [float(NOISE[n % 200]), 1e-4, float(n)]) for n in range(start, start + 60)]
        append(writer, [write.batch(writer.run_id, writer.id, r[0], r[0], [write.dense(r[0], keys, types, [r])]) for r in rows_], at)
        sent += 60
        compaction.run_due()
        most_segments = max(most_segments, MetricSegment.objects.filter(run=writer.run).count())
        most_blocks = max(most_blocks, MetricBlock.objects.filter(run=writer.run).count())
    tiers = list(MetricBlock.objects.filter(run=writer.run).order_by("first").values_list("tier", flat=True))
    assert tiers == sorted(tiers, reverse=True)
    assert most_blocks <= (merging.FAN - 1) * (max(tiers) + 1) + 1
    assert most_segments < 700
    column = room.column(writer.run_id)
    assert column.records.tolist() == list(range(sent))
    print(f"{DAYS} days: {sent} batches, at most {most_segments} segments and {most_blocks} blocks, tiers {tiers}")
