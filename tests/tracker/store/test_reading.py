"""Reading past what goes wrong: swept objects, a store that errs, damaged bytes; keys and last values; one decoding for many threads."""

from __future__ import annotations

import threading

import pytest
from django.conf import settings
from django.db import connections

from tests.tracker.store import wire_writer as write
from tracker.domain.errors import Unavailable
from tracker.models import MetricBlock
from tracker.services import compaction, metrics, summaries
from tracker.store import block_reads, blocks, caches, reading
from tracker.store.backends.base import StoreTrouble
from tracker.store.blobs import blob_store, random_key
from tracker.store.cache import ByteCache

BASE = 1_700_000_000_000_000


def send(room, writer, first: int, count: int, keys=("loss", "acc"), types="dd", known: bool = False, sign: int = 1) -> None:
    rows = [
        (n, n, BASE + n, [sign * (n + at) if t == "q" else sign * (n + at / 4) for at, t in enumerate(types)])
        for n in range(first, first + count)
    ]
    room.post(writer, write.batch(writer.run_id, writer.id, first, first + count - 1, [write.dense(first, keys, types, rows, known)]))


def compacted(room, blocks_: int = 2, rows: int = 40, **more):
    writer = room.writer()
    for n in range(blocks_):
        send(room, writer, n * rows, rows, known=n > 0, **more)
        compaction.compact_run(writer.run_id, force=True)
    reading.forget()
    return writer


def flip(key: str, at: int) -> None:
    data = bytearray(blob_store().read(key))
    data[at] ^= 255
    blob_store().put(key, bytes(data))


# -- what goes wrong -------------------------------------------------------------------------------------------------------------------


def test_a_block_that_was_merged_and_swept_meanwhile_is_found_where_it_is_now(room, monkeypatch):
    """A reader whose snapshot names an object that is gone looks anew, and sees every point once."""
    writer = compacted(room)
    old = MetricBlock.objects.filter(run=writer.run).order_by("first").first()
    real = block_reads.BlockReader.directories

    def moved_first(self, rows):
        monkeypatch.setattr(block_reads.BlockReader, "directories", real)
        fresh = random_key("blocks/x", ".block")
        blob_store().put(fresh, blob_store().read(old.object_key))
        MetricBlock.objects.filter(pk=old.pk).update(object_key=fresh)
        blob_store().delete(old.object_key)
        return real(self, rows)

    monkeypatch.setattr(block_reads.BlockReader, "directories", moved_first)
    assert room.column(writer.run_id).values.tolist() == list(range(80))


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_store_that_errs_is_asked_again_and_in_the_end_said_so(room, monkeypatch, times):
    """One or two errors of the store are not seen by who reads; a third is a 503 that says what to do."""
    writer = compacted(room)
    monkeypatch.setattr(reading, "PAUSE_SECONDS", 0)
    store, failed = blob_store(), []
    real = store.read

    def read(*args):
        if len(failed) < times:
            failed.append(1)
            raise StoreTrouble("slow down")
        return real(*args)

    monkeypatch.setattr(store, "read", read)
    if times < 3:
        assert len(room.column(writer.run_id).values) == 80
    else:
        with pytest.raises(Unavailable, match="slow down") as caught:
            room.column(writer.run_id)
        assert caught.value.status == 503


def test_a_damaged_column_names_run_key_and_object_and_the_others_are_read(room):
    """A flipped bit in one key's column leaves the other keys whole; it is told with names, never half a series."""
    writer = compacted(room)
    row = MetricBlock.objects.filter(run=writer.run).order_by("first").first()
    directory = blocks.Directory(blob_store().read(row.object_key))
    flip(row.object_key, blocks.column_span(directory.columns[directory.find("loss")[0]])[0])
    with pytest.raises(reading.DamagedBlock) as caught:
        reading.history([writer.run_id], ["loss", "acc"])
    problem = caught.value
    assert (problem.run, problem.key, problem.object_key, problem.code) == (writer.run_id, "loss", row.object_key, "damaged_block")
    for word in (writer.run_id, "'loss'", row.object_key):
        assert word in problem.message
    columns, writers, damaged = reading.read_intact([writer.run_id], ["loss", "acc"])
    assert [(column.key, len(column.values)) for column in columns] == [("acc", 80)]
    assert [(each.run, each.key) for each in damaged] == [(writer.run_id, "loss")]
    assert list(writers) == [writer.id]
    assert len(reading.history([writer.run_id], ["acc"])[0].values) == 80


def test_a_damaged_directory_or_a_lost_object_leaves_other_runs_readable(room):
    good, bad, lost = compacted(room), compacted(room), compacted(room)
    flip(MetricBlock.objects.filter(run=bad.run).first().object_key, 70)
    columns, _, damaged = reading.read_intact([bad.run_id, good.run_id], ["loss", "acc"])
    assert {(column.run, column.key) for column in columns} == {(good.run_id, "loss"), (good.run_id, "acc")}
    assert [(each.run, each.key) for each in damaged] == [(bad.run_id, None)]
    with pytest.raises(reading.DamagedBlock):
        reading.keys_of(bad.run_id)
    key = MetricBlock.objects.filter(run=lost.run).first().object_key
    blob_store().delete(key)
    with pytest.raises(reading.DamagedBlock, match=f"{key} is missing"):
        reading.history([lost.run_id], ["loss"])


def loose_run(room, names: int = 90):
    """A block in which many short keys share columns."""
    writer = room.writer()
    rows = [(n, f"k{n % names:02}", "dq"[n % names == 7], n, BASE + n, n if n % names == 7 else n / 2) for n in range(3 * names)]
    room.post(writer, write.batch(writer.run_id, writer.id, 0, len(rows) - 1, [write.sparse(0, rows)]))
    compaction.compact_run(writer.run_id, force=True)
    reading.forget()
    return writer


def test_keys_that_share_a_column_are_read_apart_and_decoded_together(room, monkeypatch):
    """Fifty short keys of one shared column cost one decoding, and each has its own points."""
    writer = loose_run(room)
    shared, real = [], blocks.decode_shared
    monkeypatch.setattr(blocks, "decode_shared", lambda *args: shared.append(1) or real(*args))
    columns = reading.history([writer.run_id], [f"k{n:02}" for n in range(50)])
    assert len(columns) == 50
    assert len(shared) == 2  # of floats, and of the one key with integers
    for n, column in enumerate(columns):
        assert column.steps.tolist() == [n, n + 90, n + 180]
        assert column.values.tolist() == [step if n == 7 else step / 2 for step in (n, n + 90, n + 180)]
    assert reading.last_values([writer.run_id], ["k03"]) == {(writer.run_id, "k03", 0): (183, 91.5)}


def test_damage_to_what_many_keys_share_hurts_them_all_and_none_is_cut_short(room):
    writer = loose_run(room)
    row = MetricBlock.objects.get(run=writer.run)
    directory = blocks.Directory(blob_store().read(row.object_key))
    flip(row.object_key, blocks.column_span(directory.columns[directory.find("k03")[0]])[0])
    columns, _, damaged = reading.read_intact([writer.run_id], ["k03", "k04"])
    assert columns == []
    assert [(each.run, each.key) for each in damaged] == [(writer.run_id, None)]


# -- keys and last values ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch):
    """Counts the columns of blocks and the bodies of segments that are decoded."""
    from tracker.store import hot_reads

    found = {"columns": 0, "bodies": 0}
    column, body = blocks.decode_column, hot_reads.wire.decode

    def count_column(*args):
        found["columns"] += 1
        return column(*args)

    def count_body(*args):
        found["bodies"] += 1
        return body(*args)

    monkeypatch.setattr(blocks, "decode_column", count_column)
    monkeypatch.setattr(hot_reads.wire, "decode", count_body)
    return found


def test_the_last_values_of_a_wide_hot_run_need_only_its_newest_segment(room, decoded):
    """Of many segments of one key list the last alone is decoded, over blocks no column at all, and the values are the last ones."""
    keys = tuple(f"layer/{n}" for n in range(300))
    writer = compacted(room, blocks_=1, rows=4, keys=keys, types="d" * 299 + "q")
    for n in range(2, 12):
        send(room, writer, n * 2, 2, keys, "d" * 299 + "q", known=True)
    reading.forget()
    decoded.update(columns=0, bodies=0)
    found = reading.last_values([writer.run_id])
    assert decoded == {"columns": 0, "bodies": 1}
    assert len(found) == 300
    assert found[writer.run_id, "layer/7", 0] == (23, 23 + 7 / 4)
    assert found[writer.run_id, "layer/299", 0] == (23, 23 + 299)
    assert isinstance(found[writer.run_id, "layer/299", 0].value, int)
    compaction.compact_run(writer.run_id, force=True)
    decoded.update(columns=0, bodies=0)
    assert reading.last_values([writer.run_id]) == found
    assert reading.last_values([writer.run_id], ["layer/7", "no"]) == {(writer.run_id, "layer/7", 0): found[writer.run_id, "layer/7", 0]}
    assert decoded == {"columns": 0, "bodies": 0}


def test_last_values_equal_the_last_points_of_full_histories(room):
    """Both kinds of frame, types that change, ranks, attempts that went back, hot and compacted: as reading all points says."""
    run = room.run()
    first = room.writer(run, attempt=1, started_us=BASE)
    send(room, first, 0, 20)
    rows = [(20 + n, ("loss", "odd")[n % 2], "dq"[n % 3 == 0], 20 - n, BASE + n, n if n % 3 == 0 else n + 0.5) for n in range(10)]
    room.post(first, write.batch(run.id, first.id, 20, 29, [write.sparse(20, rows)]))
    other = room.writer(run, rank=1, attempt=1, started_us=BASE)
    send(room, other, 0, 5, known=True)
    rewound = room.run()
    early, late = room.writer(rewound, attempt=1, started_us=BASE), room.writer(rewound, attempt=2, started_us=BASE + 10)
    send(room, early, 0, 30)
    send(room, late, 0, 3, known=True, sign=-1)
    late.attempt.rewound_to = 10
    late.attempt.save()
    for _ in range(2):
        found = reading.last_values([run.id, rewound.id])
        expected = {}
        for column in reading.history([run.id, rewound.id], ["loss", "acc", "odd"]):
            at = len(column.steps) - 1 if column.order is None else int(column.order.max())
            value = int(column.bits[at]) if column.bits is not None and column.is_int[at] else column.values[at].item()
            expected[column.run, column.key, column.rank] = (int(column.steps[at]), value)
        assert found == expected
        assert len(found) == 7
        compaction.compact_run(run.id, force=True)
        compaction.compact_run(rewound.id, force=True)
        reading.forget()


def test_keys_are_counted_without_their_points(room, decoded):
    """The key list of a run whose segments have one key list each comes from key lists and directories; the counts are exact."""
    writer = compacted(room, blocks_=1, rows=10, keys=("b", "a", "größe"), types="ddq")
    send(room, writer, 10, 5, ("b", "a", "größe"), "ddq", known=True)
    room.post(writer, write.batch(writer.run_id, writer.id, 15, 15, [write.dense(15, ["a", "z"], "dd", [(15, 15, BASE, [1.0, 2.0])])]))
    second = room.writer(writer.run, rank=3)
    send(room, second, 0, 2, ("a",), "d")
    reading.forget()
    decoded.update(columns=0, bodies=0)
    assert reading.keys_of(writer.run_id) == {"a": {0: 16, 3: 2}, "b": {0: 15}, "größe": {0: 15}, "z": {0: 1}}
    assert list(reading.keys_of(writer.run_id)) == ["a", "b", "größe", "z"]
    assert decoded == {"columns": 0, "bodies": 0}
    room.post(second, write.batch(writer.run_id, second.id, 2, 3, [write.sparse(2, [(2, "s", "d", 1, 1, 1.0), (3, "a", "d", 2, 2, 1.0)])]))
    assert reading.keys_of(writer.run_id)["a"] == {0: 16, 3: 3}
    assert reading.keys_of(writer.run_id)["s"] == {3: 1}


def test_a_segment_whose_key_lists_lack_the_key_is_not_decoded(room, decoded):
    writer = room.writer()
    send(room, writer, 0, 3, ("a",), "d")
    send(room, writer, 3, 3, ("b",), "d")
    reading.forget()
    decoded.update(columns=0, bodies=0)
    assert reading.history([writer.run_id], ["b"])[0].values.tolist() == [3.0, 4.0, 5.0]
    assert decoded["bodies"] == 1


def test_keys_on_one_axis_share_what_is_made_of_it(room):
    """Steps and times of a block are put together once for all of its keys."""
    writer = compacted(room)
    loss, acc = reading.history([writer.run_id], ["loss", "acc"])
    assert loss.steps is acc.steps
    assert loss.times is acc.times
    assert loss.order is None


# -- caches ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_eight_requests_for_one_cold_block_decode_it_once(room, decoded):
    """No stampede: threads that miss the same columns at once share one read and one decoding, and all see all points."""
    writer = compacted(room, blocks_=1, rows=200)
    decoded.update(columns=0)
    store, reads = blob_store(), []
    real, gate = store.ranges, threading.Barrier(8)

    def slowly(key, spans):
        reads.append(key)
        threading.Event().wait(0.2)
        return real(key, spans)

    store.ranges = slowly
    found: list = []

    def read() -> None:
        try:
            gate.wait(60)
            found.append([len(column.values) for column in reading.history([writer.run_id], ["loss", "acc"])])
        except BaseException as problem:
            found.append(problem)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    del store.ranges
    assert found == [[200, 200]] * 8
    assert decoded["columns"] == 2
    assert len(reads) == 1


def test_caches_stay_within_their_bytes_and_drop_the_oldest():
    cache = ByteCache(1000)
    for n in range(10):
        cache.put(n, n, 300)
        cache.get(0)
    assert cache.bytes <= 1000
    assert cache.get(0) == 0
    assert cache.get(5) is None
    cache.put("large", 1, 501)  # would push out half of what others use
    assert cache.get("large") is None
    assert caches.columns is caches.directories is caches.hot
    assert caches.columns.most_bytes == settings.ENCORE_CACHE_MB * 2**20


def test_whoever_waits_for_a_maker_that_fails_makes_it_himself():
    """An error is its own thread's; nobody else gets it and nobody waits for ever."""
    cache = ByteCache(1000)
    inside, release = threading.Event(), threading.Event()
    seen = []

    def fails():
        inside.set()
        release.wait(60)
        raise ValueError("mine alone")

    def first() -> None:
        try:
            cache.once("k", fails)
        except ValueError as problem:
            seen.append(str(problem))

    maker = threading.Thread(target=first)
    maker.start()
    inside.wait(60)
    other = threading.Thread(target=lambda: seen.append(cache.once("k", lambda: (7, 1))))
    other.start()
    release.set()
    maker.join()
    other.join()
    assert sorted(map(str, seen)) == ["7", "mine alone"]
    assert cache.get("k") == 7


def test_integers_beyond_floats_are_exact_in_last_values(room):
    writer = room.writer()
    room.simple(writer, 0, [2**53 + 1, -(2**63)], kind="q")
    for _ in range(2):
        assert reading.last_values([writer.run_id], ["loss"]) == {(writer.run_id, "loss", 0): (1, -(2**63))}
        compaction.compact_run(writer.run_id, force=True)


def test_every_key_of_a_very_wide_run_has_its_last_value(room):
    """Beyond the 500 keys that have summaries the list of keys still says how many points and what came last."""
    keys = tuple(f"layer/{n:03}" for n in range(520))
    writer = room.writer()
    send(room, writer, 0, 3, keys, "d" * 520)
    summaries.summarise_run(writer.run_id)
    told = {row["key"]: (row["count"], row["last"], row["last_step"]) for row in metrics.keys(writer.run)}
    assert told == {key: (3, 2 + at / 4, 2) for at, key in enumerate(keys)}
