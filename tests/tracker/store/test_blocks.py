"""Block objects and compaction: exact to the bit, found without decoding, moved in one commit, swept when unused."""

from __future__ import annotations

import json
import struct
import threading
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from django.db import connections
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracker.store import wire_writer as write
from tracker.domain.ids import new_id
from tracker.models import MetricBlock, MetricSegment, MetricSummary, MetricTrash, Writer
from tracker.services import compaction, summaries
from tracker.store import blocks, reading, wire
from tracker.store.blobs import blob_store, random_key

GOLDEN = Path(__file__).parents[2] / "contract" / "golden"
ODD = [float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 5e-324, 1.5]
NAN_WITH_PAYLOAD = struct.unpack("<d", struct.pack("<Q", 0xFFF8000000000123))[0]
RUN, WRITER = new_id(), new_id()


def points_of(data: bytes) -> set[tuple]:
    _, columns = blocks.decode(data)
    return {
        (int(n), key, values.dtype.kind, int(s), int(t), int(b))
        for key, axis, values in columns
        for n, s, t, b in zip(axis.records, axis.steps, axis.times, values.view("<i8"), strict=True)
    }


I64 = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(width=64) | st.sampled_from([*ODD, NAN_WITH_PAYLOAD])


@given(
    st.lists(st.tuples(I64, I64, FLOATS, I64), min_size=1, max_size=40),
    st.lists(st.tuples(st.sampled_from(["loss", "b", "ü/ñ"]), st.sampled_from("dq"), I64, I64), max_size=20),
)
@settings(max_examples=60, deadline=None)
def test_a_block_holds_its_batches_to_the_bit(dense_rows, sparse_rows):
    """Every point of both kinds of frame comes out of a block as it went in; counts and extremes in its directory are right."""
    rows = [(n, step, time, [f, i]) for n, (step, time, f, i) in enumerate(dense_rows)]
    half = max(len(rows) // 2, 1)
    bodies, first = [], 0
    for part in (rows[:half], rows[half:]):
        if part:
            bodies.append(write.batch(RUN, WRITER, first, first + len(part) - 1, [write.dense(first, ["loss", "epoch"], "dq", part)]))
            first += len(part)
    loose = [
        (first + n, key, kind, step, 7, step if kind == "q" else struct.unpack("<d", struct.pack("<q", value))[0])
        for n, (key, kind, step, value) in enumerate(sparse_rows)
    ]
    if loose:
        bodies.append(write.batch(RUN, WRITER, first, first + len(loose) - 1, [write.sparse(first, loose)]))
    frames = [frame for body in bodies for frame in wire.decode(body).frames]
    block = blocks.encode(WRITER, 0, first + len(loose) - 1, frames)
    expected = {
        (n, key, "fi"[kind == "q"], s, t, struct.unpack("<q", struct.pack("<" + kind, v))[0])
        for n, s, t, vs in rows
        for key, kind, v in zip(("loss", "epoch"), "dq", vs, strict=True)
    }
    expected |= {(n, key, "fi"[kind == "q"], s, t, struct.unpack("<q", struct.pack("<" + kind, v))[0]) for n, key, kind, s, t, v in loose}
    assert points_of(block.data) == expected
    assert block.points == len(expected)
    directory = blocks.Directory(block.data[: 64 + block.directory_bytes])
    told = [directory.columns[c] for c in directory.find("loss") if directory.columns[c]["type"] == blocks.F64]
    values = np.array([p[5] for p in expected if p[1:3] == ("loss", "f")], "<i8").view("<f8")
    assert sum(int(entry["rows"]) for entry in told) == len(values)
    assert sum(int(entry["nan"]) for entry in told) == np.isnan(values).sum()
    assert sum(int(entry["inf"]) for entry in told) == np.isinf(values).sum()
    if not np.isnan(values).all():
        low, high = (np.array([entry[name] for entry in told], "<i8").view("<f8") for name in ("min", "max"))
        assert [np.nanmin(low), np.nanmax(high)] == [np.nanmin(values), np.nanmax(values)]
    assert (block.lo_step, block.hi_step) == (min(p[3] for p in expected), max(p[3] for p in expected))


@given(st.integers(0, 10**6), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_a_damaged_block_says_so(at, flip):
    """A changed byte anywhere is noticed by a checksum, or lies in padding."""
    data = bytearray(GOLDEN_BLOCK.data)
    data[at % len(data)] ^= flip
    try:
        found = points_of(bytes(data))
    except blocks.DamagedBlock:
        return
    assert found == points_of(GOLDEN_BLOCK.data)


def golden_frames() -> list:
    rows = [
        (n, n * 10, 1_700_000_000_000_000 + n, [[2.5, -0.0, float("nan"), float("inf"), 1e-3][n % 5], [2**53 + 1, -(2**63), n][n % 3]])
        for n in range(100)
    ]
    loose = [(100 + n, f"sparse/{n % 3}", "dq"[n % 2], -n, 5, float(n) if n % 2 == 0 else n) for n in range(20)]
    body = write.batch("a" * 26, "b" * 25 + "a", 0, 119, [write.dense(0, ["train/loss", "größe"], "dq", rows), write.sparse(0, loose)])
    return wire.decode(body).frames


GOLDEN_BLOCK = blocks.encode("b" * 25 + "a", 0, 119, golden_frames())


def test_the_golden_block_is_still_read():
    """A block written by the first version decodes to the same points for ever."""
    expected = {tuple(point) for point in json.loads((GOLDEN / "block-v1.json").read_text())}
    assert points_of((GOLDEN / "block-v1.block").read_bytes()) == expected
    assert points_of(GOLDEN_BLOCK.data) == expected


def packed_frames() -> list:
    """70 names one by one, one of them long, and some frames too short to stay frames: a packed directory and sliced columns."""
    loose = [(n, f"layer/{n % 70}/größe", "dq"[n % 70 % 2], -n, n * 7, n / 3 if n % 2 == 0 else 2**53 + n) for n in range(140)]
    loose += [(140 + n, "long", "d", n, n, -0.0 if n % 2 else float("nan")) for n in range(300)]
    rows = [(440 + n, n, n, [float(n), n]) for n in range(3)]
    body = write.batch("a" * 26, "b" * 25 + "a", 0, 442, [write.sparse(0, loose), write.dense(0, ["loss", "epoch"], "dq", rows)])
    return wire.decode(body).frames


def test_the_golden_packed_block_is_still_read():
    """So does one with a packed directory and with columns that share their bytes."""
    expected = {tuple(point) for point in json.loads((GOLDEN / "block-v1-packed.json").read_text())}
    golden = (GOLDEN / "block-v1-packed.block").read_bytes()
    assert points_of(golden) == expected
    directory = blocks.Directory(golden)
    assert directory.columns["sliced"].sum() == 70
    assert len(directory.find("layer/3/größe")) == 1
    block = blocks.encode("b" * 25 + "a", 0, 442, packed_frames())
    assert points_of(block.data) == expected
    assert block.points == len(expected) == 446


@given(st.integers(0, 10**6), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_a_damaged_packed_block_says_so(at, flip):
    """A changed byte anywhere in one, its flags included, is noticed or lies in padding."""
    data = bytearray((GOLDEN / "block-v1-packed.block").read_bytes())
    expected = points_of(bytes(data))
    data[at % len(data)] ^= flip
    try:
        found = points_of(bytes(data))
    except blocks.DamagedBlock:
        return
    assert found == expected


def test_a_series_longer_than_an_axis_has_several(monkeypatch):
    """Each with its own steps, so that a window of them is read without the rest; together they are all points."""
    monkeypatch.setattr(blocks, "ROWS", 100)
    rows = [(n, n * 2, n, [float(n), n]) for n in range(250)]
    frames = wire.decode(write.batch(RUN, WRITER, 0, 249, [write.dense(0, ["a", "b"], "dq", rows)])).frames
    block = blocks.encode(WRITER, 0, 249, frames)
    directory = blocks.Directory(block.data)
    assert [(int(a["rows"]), int(a["lo_step"]), int(a["hi_step"])) for a in directory.axes] == [
        (100, 0, 198),
        (100, 200, 398),
        (50, 400, 498),
    ]
    assert len(directory.find("a")) == len(directory.find("b")) == 3
    assert block.rows == 100
    assert {point[0] for point in points_of(block.data)} == set(range(250))


def test_records_that_do_not_fit_one_block_are_refused():
    with pytest.raises(ValueError, match="too many for one block"):
        blocks.encode(WRITER, 0, 2**32, [])


def test_a_key_is_found_among_many_without_decoding_names():
    rows = [(n, f"k{n}", "d", n, n, float(n)) for n in range(3000)]
    block = blocks.encode(WRITER, 0, 2999, wire.decode(write.batch(RUN, WRITER, 0, 2999, [write.sparse(0, rows)])).frames)
    directory = blocks.Directory(block.data)
    assert [directory.name(c) for c in directory.find("k1234")] == ["k1234"]
    assert directory.find("k9999") == []


# -- compaction ------------------------------------------------------------------------------------------------------------------------


def bits_of(column) -> list[int]:
    return column.values.view("<i8").tolist()


def test_compaction_changes_nothing_that_is_read(room):
    """Odd values, integers beyond 2**53, repeated and falling steps read the same to the bit before and after, and all is counted."""
    writer = room.writer()
    values = [*ODD, NAN_WITH_PAYLOAD] * 20
    room.simple(writer, 0, values)
    room.simple(writer, len(values), values[::-1], step=5, known=True)
    room.simple(writer, 2 * len(values), [2**53 + 1, -(2**63), 2**63 - 1], key="tokens", kind="q")
    before = {key: room.column(writer.run_id, key) for key in ("loss", "tokens")}
    assert compaction.compact_run(writer.run_id, force=True) == 1
    assert not MetricSegment.objects.filter(run=writer.run).exists()
    for key, old in before.items():
        new = room.column(writer.run_id, key)
        for name in ("records", "steps", "times", "winner"):
            assert getattr(new, name).tolist() == getattr(old, name).tolist()
        assert new.values.dtype == old.values.dtype
        assert bits_of(new) == bits_of(old)
    assert bits_of(before["tokens"]) == [2**53 + 1, -(2**63), 2**63 - 1]
    writer.refresh_from_db()
    assert (writer.upto, writer.hot_bytes, writer.hot_segments) == (writer.next, 0, 0)
    assert MetricSummary.objects.get(run=writer.run, key="loss").count == 2 * len(values)


def test_small_runs_stay_segments(room):
    """Below 64 KiB a writer's segments are left alone, since a block would gain nothing; force compacts them."""
    writer = room.writer(finish={"state": "finished"})
    for n in range(70):
        room.simple(writer, n, [float(n)], known=n > 0)
    assert compaction.run_due() == 0
    assert compaction.compact_run(writer.run_id, force=True) == 1


def test_a_run_is_compacted_when_64_segments_wait(room):
    writer = room.writer()
    noise = np.random.default_rng(0).standard_normal(200)
    for n in range(63):
        room.simple(writer, n * 200, noise, known=n > 0)
    assert compaction.run_due() == 0
    room.simple(writer, 63 * 200, noise, known=True)
    assert compaction.run_due() == 1
    assert len(room.column(writer.run_id).values) == 64 * 200


def test_of_two_compactions_one_wins_and_nothing_doubles(room, monkeypatch):
    """A compaction that finds its writer moved on takes its object back and changes nothing."""
    writer = room.writer()
    room.simple(writer, 0, np.arange(100.0))
    real = blocks.encode

    def meanwhile(*args):
        monkeypatch.setattr(compaction.blocks, "encode", real)
        assert compaction.compact_run(writer.run_id, force=True) == 1  # the other one is faster
        return real(*args)

    monkeypatch.setattr(compaction.blocks, "encode", meanwhile)
    compaction.compact_run(writer.run_id, force=True)
    assert MetricBlock.objects.filter(run=writer.run).count() == 1
    assert len(list(blob_store().list("blocks"))) == 1
    assert room.column(writer.run_id).values.tolist() == list(range(100))


def test_a_crash_before_the_commit_leaves_an_orphan_that_is_swept(room, monkeypatch):
    """An object without a row is never read and is removed later; the segments are all still there."""
    writer = room.writer()
    room.simple(writer, 0, np.arange(100.0))
    orphan = random_key(f"blocks/{writer.run_id}", ".block")
    blob_store().put(orphan, b"left by a process that died")
    assert compaction.compact_run(writer.run_id, force=True) == 1
    assert compaction.sweep_orphans() == 0  # too young
    assert compaction.sweep_orphans(timedelta(seconds=-5)) == 1
    assert not blob_store().exists(orphan)
    reading.forget()
    assert len(room.column(writer.run_id).values) == 100


def test_trash_is_emptied_after_its_delay(room):
    """Blocks of a run that goes for good are deleted after an hour, not before, and never one that a row still names."""
    writer = room.writer()
    room.simple(writer, 0, np.arange(100.0))
    compaction.compact_run(writer.run_id, force=True)
    block = MetricBlock.objects.get(run=writer.run)
    key = block.object_key
    assert compaction.discard_blocks(writer.run_id) == (1, block.bytes)
    assert compaction.sweep_trash() == 0
    MetricTrash.objects.update(delete_after=timezone.now() - timedelta(seconds=1))
    assert compaction.sweep_trash() == 1
    assert not blob_store().exists(key)


@pytest.mark.django_db(transaction=True)
def test_compaction_races_senders_and_readers(room):
    """While two senders append and a compactor moves, every reader sees an unbroken prefix of each writer; in the end all is there once."""
    run = room.run()
    writers = [room.writer(run, rank=rank) for rank in range(2)]
    batches, rows = 30, 20
    over = threading.Event()
    problems: list[BaseException] = []

    def guarded(work, *args) -> None:
        try:
            work(*args)
        except BaseException as problem:
            problems.append(problem)
            over.set()
        finally:
            connections.close_all()

    def send(writer) -> None:
        for n in range(batches):
            room.simple(writer, n * rows, [float(v) for v in range(n * rows, (n + 1) * rows)], known=n > 0)

    def compact() -> None:
        while not over.is_set():
            compaction.compact_run(run.id, force=True)

    def read() -> None:
        longest = {0: 0, 1: 0}
        while not over.is_set():
            for column in reading.history([run.id], ["loss"]):
                count = len(column.records)
                assert column.records.tolist() == list(range(count))
                assert column.values.tolist() == [float(n) for n in range(count)]
                assert count >= longest[column.rank]
                longest[column.rank] = count

    senders = [threading.Thread(target=guarded, args=(send, writer)) for writer in writers]
    others = [threading.Thread(target=guarded, args=(work,)) for work in (compact, read, read)]
    for thread in [*others, *senders]:
        thread.start()
    for thread in senders:
        thread.join()
    over.set()
    for thread in others:
        thread.join()
    if problems:
        raise problems[0]
    compaction.compact_run(run.id, force=True)
    for column in reading.history([run.id], ["loss"]):
        assert column.records.tolist() == list(range(batches * rows))
    assert MetricSummary.objects.filter(run=run, key="loss", count=batches * rows).count() == 2
    assert not Writer.objects.filter(run=run, hot_segments__gt=0).exists()


# -- summaries -------------------------------------------------------------------------------------------------------------------------


def test_summaries_count_each_point_once(room):
    """However often and in whatever portions they are kept up, summaries equal numpy's over all points."""
    writer = room.writer()
    values = np.random.default_rng(3).standard_normal(300)
    values[[7, 200]] = np.nan
    for first in range(0, 300, 50):
        room.simple(writer, first, values[first : first + 50], known=first > 0)
        if first % 100 == 0:
            assert summaries.summarise_due() == 1
    summaries.summarise_due()
    assert summaries.summarise_due() == 0
    row = MetricSummary.objects.get(run=writer.run, key="loss", rank=0)
    assert (row.count, row.nan_count, row.first_nan_step) == (300, 2, 7)
    assert (row.min, row.max) == (np.nanmin(values), np.nanmax(values))
    assert row.sum == pytest.approx(np.nansum(values), rel=1e-12)
    assert (row.last, row.last_step) == (values[-1], 299)


def test_summaries_keep_what_sql_cannot(room):
    """NaN, infinities and integers beyond 2**53 are kept exactly, as text beside the number."""
    writer = room.writer()
    room.simple(writer, 0, [1.0, float("nan")], key="a")
    room.simple(writer, 2, [float("inf"), -float("inf")], key="b")
    room.simple(writer, 4, [2**53 + 1], key="c", kind="q")
    summaries.summarise_due()
    found = {row.key: row for row in MetricSummary.objects.filter(run=writer.run)}
    assert {key: row.last_text for key, row in found.items()} == {"a": "NaN", "b": "-Infinity", "c": str(2**53 + 1)}
    assert found["a"].last is None
    assert found["b"].sum is None


def test_a_run_of_very_many_keys_has_500_summaries_and_loses_none_of_its_points(room):
    writer = room.writer()
    rows = [(n, f"k{n:04}", "d", n, n, float(n)) for n in range(700)]
    room.post(writer, wire_batch(writer, rows))
    summaries.summarise_due()
    assert MetricSummary.objects.filter(run=writer.run).count() == 500
    assert set(MetricSummary.objects.filter(run=writer.run).values_list("key", flat=True)) == {f"k{n:04}" for n in range(500)}
    assert len(reading.keys_of(writer.run_id)) == 700


def wire_batch(writer, rows) -> bytes:
    return write.batch(writer.run_id, writer.id, 0, rows[-1][0], [write.sparse(0, rows)])


def test_runs_are_sorted_by_the_last_value_over_ranks(room):
    """The value that tables sort by is the last of each rank, reduced; what the program set itself stays."""
    run = room.run(summary={"own": 5})
    for rank, last in ((0, 2.0), (1, 4.0)):
        writer = room.writer(run, rank=rank)
        frames = [write.dense(0, ["val/acc", "own"], "dd", [(0, 0, 1, [0.0, 1.0]), (1, 1, 2, [last, 2.0])])]
        room.post(writer, write.batch(run.id, writer.id, 0, 1, frames))
    summaries.summarise_due()
    assert dict(run.values.filter(kind="summary").values_list("path", "number")) == {"val/acc": 3.0}
