"""Blocks merge in tiers and for good, shared between workers, whatever fails on the way: the points stay what they are."""

from __future__ import annotations

import json
import os
import threading
import uuid
from datetime import timedelta

import numpy as np
import pytest
from django.db import connections
from django.utils import timezone

from tests.tracker.store import faulty
from tests.tracker.store import wire_writer as write
from tracker.models import MetricBlock, MetricSegment, MetricTrash
from tracker.services import compaction, merging
from tracker.store import blobs, reading
from tracker.store.blobs import blob_store


@pytest.fixture(params=["folder", "s3"])
def any_store(request, monkeypatch):
    if request.param == "s3":
        if "ENCORE_TEST_S3" not in os.environ:
            pytest.skip("no S3 server was started (python -m tests.services run)")
        from tracker.store.backends.s3 import S3

        found = S3({**json.loads(os.environ["ENCORE_TEST_S3"]), "region": "us-east-1", "prefix": f"t-{uuid.uuid4().hex}"})
        monkeypatch.setattr(blobs, "_store", lambda *_: found)


def fill(room, writer, count: int, rows: int = 50, start: int = 0) -> None:
    """``count`` blocks of ``rows`` points whose values are their records' numbers."""
    for n in range(start, start + count):
        room.simple(writer, n * rows, [float(v) for v in range(n * rows, (n + 1) * rows)], known=n > 0)
        assert compaction.compact_run(writer.run_id, force=True) == 1


def values(room, writer) -> list[float]:
    reading.forget()
    column = room.column(writer.run_id)
    assert column.records.tolist() == list(range(len(column.records)))
    return column.values.tolist()


def tiers(run_id: str) -> list[int]:
    return list(MetricBlock.objects.filter(run=run_id).order_by("first").values_list("tier", flat=True))


def test_eight_neighbours_become_one_and_their_objects_go_to_the_trash(room, any_store):
    """Merged points read the same; the old objects stay for an hour for those who read them, then they are deleted."""
    writer = room.writer()
    fill(room, writer, 9)
    before = values(room, writer)
    old = list(MetricBlock.objects.filter(run=writer.run).order_by("first").values_list("object_key", flat=True))
    assert merging.merge_writer(writer.run_id, writer.id) == 1
    assert tiers(writer.run_id) == [1, 0]
    merged = MetricBlock.objects.get(run=writer.run, tier=1)
    assert (merged.first, merged.last, merged.points, merged.lo_step, merged.hi_step) == (0, 399, 400, 0, 399)
    assert merged.bytes == blob_store().size(merged.object_key)
    assert values(room, writer) == before
    assert set(MetricTrash.objects.values_list("object_key", flat=True)) == set(old[:8])
    assert all(blob_store().exists(key) for key in old)
    assert compaction.sweep_trash() == 0
    MetricTrash.objects.update(delete_after=timezone.now() - timedelta(seconds=1))
    assert compaction.sweep_trash() == 8
    assert [blob_store().exists(key) for key in old] == [False] * 8 + [True]
    assert compaction.sweep_orphans(timedelta(seconds=-5)) == 0
    assert values(room, writer) == before


def test_a_reader_whose_blocks_were_merged_and_swept_meanwhile_looks_anew(room, monkeypatch):
    """Between a reader's snapshot and its reading the objects can go: it gets the points all the same."""
    writer = room.writer()
    fill(room, writer, 8)
    take = reading._Source.take_snapshot
    times = []

    def snapshot_then_merge(source) -> None:
        take(source)
        times.append(1)
        if len(times) == 1:
            assert merging.merge_writer(writer.run_id, writer.id) == 1
            MetricTrash.objects.update(delete_after=timezone.now() - timedelta(seconds=1))
            assert compaction.sweep_trash() == 8

    monkeypatch.setattr(reading._Source, "take_snapshot", snapshot_then_merge)
    assert values(room, writer) == [float(n) for n in range(400)]
    assert len(times) == 2


def test_tiers_keep_the_number_of_blocks_small(room, monkeypatch):
    """After any number of blocks there are fewer than eight of each tier, in order, and they are all there is."""
    monkeypatch.setattr(merging, "FAN", 3)
    writer = room.writer()
    for n in range(30):
        fill(room, writer, 1, rows=5, start=n)
        merging.merge_writer(writer.run_id, writer.id)
        found = tiers(writer.run_id)
        assert found == sorted(found, reverse=True)
        assert all(found.count(tier) < 3 for tier in found)
    assert tiers(writer.run_id) == [3, 1]
    assert values(room, writer) == [float(n) for n in range(150)]


def test_merging_stays_within_its_bounds(room, monkeypatch):
    """What would be more points than one merge may hold is merged in part, and a block with no room for more is left alone."""
    monkeypatch.setattr(merging, "MERGED_POINTS", 120)
    writer = room.writer()
    fill(room, writer, 9)
    merging.merge_writer(writer.run_id, writer.id)
    assert tiers(writer.run_id) == [merging.FULL, 0, 0, 0, 0, 0, 0, 0]
    assert MetricBlock.objects.filter(run=writer.run, tier=merging.FULL).get().points == 100
    monkeypatch.setattr(merging, "MERGED_POINTS", 60)
    fill(room, writer, 1, start=9)
    merging.merge_writer(writer.run_id, writer.id)
    assert tiers(writer.run_id) == [merging.FULL] * 2 + [0] * 7
    assert values(room, writer) == [float(n) for n in range(500)]


def test_a_run_that_is_over_is_merged_for_good(room):
    """An hour after its last block the rest of it becomes one block; what a sender brings later joins it the next time."""
    run = room.run(state="finished", finished_at=timezone.now())
    writer = room.writer(run, finish={"state": "finished"})
    fill(room, writer, 3)
    assert merging.merge_due() == 0
    MetricBlock.objects.update(created_at=timezone.now() - timedelta(hours=2))
    assert merging.merge_due() == 1
    assert tiers(run.id) == [merging.FINAL]
    fill(room, writer, 1, start=3)
    assert merging.merge_due() == 0
    MetricBlock.objects.update(created_at=timezone.now() - timedelta(hours=2))
    assert merging.merge_due() == 1
    assert merging.merge_due() == 0
    assert tiers(run.id) == [merging.FINAL]
    assert values(room, writer) == [float(n) for n in range(200)]


def test_eights_that_a_crash_left_are_merged_later(room):
    writer = room.writer()
    fill(room, writer, 8)
    assert merging.merge_due() == 1
    assert tiers(writer.run_id) == [1]


def test_of_two_merges_one_wins_and_nothing_doubles(room, monkeypatch):
    """A merge that finds its blocks replaced takes its object back and changes nothing."""
    writer = room.writer()
    fill(room, writer, 8)
    real = merging.joining.join

    def meanwhile(*args):
        monkeypatch.setattr(merging.joining, "join", real)
        assert merging.merge_writer(writer.run_id, writer.id) == 1  # the other one is faster
        return real(*args)

    monkeypatch.setattr(merging.joining, "join", meanwhile)
    assert merging.merge_writer(writer.run_id, writer.id) == 0
    assert tiers(writer.run_id) == [1]
    assert len(list(blob_store().list("blocks"))) == 9  # eight in the trash
    assert values(room, writer) == [float(n) for n in range(400)]


def test_a_damaged_block_is_set_aside_and_the_others_merge(room):
    """It is told on the run's page, never replaced, and its neighbours go on without it."""
    writer = room.writer()
    fill(room, writer, 8)
    bad = MetricBlock.objects.filter(run=writer.run).order_by("first")[2]
    whole = blob_store().read(bad.object_key)
    blob_store().put(bad.object_key, whole[:-20] + bytes(20))
    assert merging.merge_writer(writer.run_id, writer.id) == 0
    assert writer.run.events.get(name="block_damaged").data["why"].startswith(f"Block {bad.object_key} cannot be read")
    fill(room, writer, 4, start=8)
    assert merging.merge_writer(writer.run_id, writer.id) == 1
    assert tiers(writer.run_id) == [0, 0, merging.DAMAGED, 1, 0]
    blob_store().put(bad.object_key, whole)
    assert values(room, writer) == [float(n) for n in range(600)]


# -- failures --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_the_store_may_fail_at_each_call_once(room, monkeypatch, after):
    """Whichever call to the store fails, before or after its work: nothing is lost or doubled, and the next try goes through."""
    monkeypatch.setattr(merging, "FAN", 2)
    expected = [float(n) for n in range(40)]
    at, failed = 0, True
    while failed:
        failed = False
        writer = room.writer()
        MetricTrash.objects.update(delete_after=timezone.now() - timedelta(seconds=1))
        with monkeypatch.context() as patch:
            store = faulty.install(patch, at, after=after)
            for n in range(2):
                room.simple(writer, n * 20, expected[n * 20 : n * 20 + 20], known=n > 0)
                try:
                    compaction.compact_run(writer.run_id, force=True)
                except OSError:
                    failed = True
            try:
                merging.merge_writer(writer.run_id, writer.id)
            except OSError:
                failed = True
            compaction.sweep_trash()
            kinds = store.calls
            failed |= at < len(kinds)
        assert values(room, writer) == expected, (at, kinds)
        compaction.compact_run(writer.run_id, force=True)
        merging.finish_run(writer.run_id)
        assert values(room, writer) == expected, (at, kinds)
        assert MetricBlock.objects.filter(run=writer.run).count() == 1
        assert not MetricSegment.objects.filter(run=writer.run).exists()
        at += 1
    assert at > 8
    MetricTrash.objects.update(delete_after=timezone.now() - timedelta(seconds=1))
    compaction.sweep_trash()
    compaction.sweep_orphans(timedelta(seconds=-5))
    assert {key for key, _, _ in blob_store().list("blocks")} == set(MetricBlock.objects.values_list("object_key", flat=True))


def test_a_deletion_that_fails_stays_in_the_trash_and_holds_up_no_other(room, monkeypatch):
    writer = room.writer()
    fill(room, writer, 8)
    merging.merge_writer(writer.run_id, writer.id)
    MetricTrash.objects.update(delete_after=timezone.now() - timedelta(seconds=1))
    with monkeypatch.context() as patch:
        faulty.install(patch, 3, kinds=("delete",))
        assert compaction.sweep_trash() == 7
    assert MetricTrash.objects.count() == 1
    assert compaction.sweep_trash() == 0  # not at once
    MetricTrash.objects.update(delete_after=timezone.now() - timedelta(seconds=1))
    assert compaction.sweep_trash() == 1
    assert len(list(blob_store().list("blocks"))) == 1


@pytest.mark.django_db(transaction=True)
def test_a_process_that_dies_between_any_two_steps_loses_nothing(room, monkeypatch):
    """Compaction and merging end without a word before and after each call to the store and each move of rows, once each."""
    monkeypatch.setattr(merging, "FAN", 2)
    writer = room.writer()
    point = done = 0
    expected: list[float] = []
    while not done:
        for _ in range(2):
            more = [float(len(expected) + v) for v in range(20)]
            room.simple(writer, len(expected), more, known=bool(expected))
            expected += more
        connections.close_all()  # no database handle may be shared with a child
        child = os.fork()
        if child == 0:
            try:
                passed = faulty.die_at(point)
                monkeypatch.setattr(compaction, "BLOCK_POINTS", 20)  # a block each
                compaction.compact_run(writer.run_id, force=True)
                merging.merge_writer(writer.run_id, writer.id)
                os._exit(0 if passed() else 1)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 9)
        done = status == 0
        assert values(room, writer) == expected, point
        compaction.compact_run(writer.run_id, force=True)  # so that the next one has as many points as this one
        merging.finish_run(writer.run_id)
        assert tiers(writer.run_id) == [merging.FINAL]
        point += 1
    assert point > 12
    compaction.sweep_orphans(timedelta(seconds=-5))
    known = set(MetricBlock.objects.values_list("object_key", flat=True)) | set(MetricTrash.objects.values_list("object_key", flat=True))
    assert {key for key, _, _ in blob_store().list("blocks")} == known


# -- long and slow ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_compaction_and_merging_race_each_other_and_readers(room, monkeypatch):
    """Two compactors and two mergers at once, on one growing writer: every reader sees all that is acknowledged, once."""
    monkeypatch.setattr(merging, "FAN", 2)
    writer = room.writer()
    over = threading.Event()
    problems: list[BaseException] = []
    acknowledged = [0]

    def guarded(work) -> None:
        try:
            while not over.is_set():
                work()
        except BaseException as problem:
            problems.append(problem)
            over.set()
        finally:
            connections.close_all()

    def read() -> None:
        least = acknowledged[0]
        found = reading.history([writer.run_id], ["loss"])
        count = len(found[0].records) if found else 0
        assert count >= least
        assert not count or found[0].values.tolist() == [float(n) for n in range(count)]

    works = [lambda: compaction.compact_run(writer.run_id, force=True), lambda: merging.merge_writer(writer.run_id, writer.id), read]
    threads = [threading.Thread(target=guarded, args=(work,)) for work in (*works, *works)]
    for thread in threads:
        thread.start()
    for n in range(40):
        if over.is_set():
            break
        room.simple(writer, n * 10, [float(v) for v in range(n * 10, n * 10 + 10)], known=n > 0)
        acknowledged[0] = n * 10 + 10
    over.set()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    compaction.compact_run(writer.run_id, force=True)
    assert values(room, writer) == [float(n) for n in range(400)]


def test_many_names_and_changing_subsets_come_to_lie_together(room):
    """Of 3,000 names logged one by one in turn, each key's scattered points are one column after merging, in a small directory."""
    writer = room.writer()
    rng = np.random.default_rng(1)
    for n in range(8):
        rows = [(n * 3000 + i, f"layer/{i}/norm", "d", n, i, float(rng.random())) for i in range(3000)]
        room.post(writer, write.batch(writer.run_id, writer.id, n * 3000, n * 3000 + 2999, [write.sparse(n * 3000, rows)]))
        compaction.compact_run(writer.run_id, force=True)
    before = {key: room.column(writer.run_id, key).values.tolist() for key in ("layer/0/norm", "layer/2999/norm")}
    separate = sum(MetricBlock.objects.filter(run=writer.run).values_list("bytes", flat=True))
    assert merging.merge_writer(writer.run_id, writer.id) == 1
    block = MetricBlock.objects.get(run=writer.run)
    directory = reading._directory(block.object_key, block.directory_bytes)
    assert len(directory.columns) == 3000
    assert len(directory.axes) < 20
    assert block.bytes < separate * 0.6
    reading.forget()
    assert {key: room.column(writer.run_id, key).values.tolist() for key in before} == before
