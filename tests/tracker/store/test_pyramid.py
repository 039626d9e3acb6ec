"""Pyramids of blocks: exact for the points they cover, never in the way of what they cannot tell, and read back for ever."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracker.store import wire_writer as write
from tracker.domain import series_answer
from tracker.models import MetricBlock
from tracker.services import compaction, merging, overviews, series
from tracker.store import blocks, pyramid, pyramid_codec, reading, wire
from tracker.store.blobs import blob_store

GOLDEN = Path(__file__).parents[2] / "contract" / "golden"
KEYS, TYPES = ("loss", "tokens"), "dq"
RUN, WRITER = "a" * 26, "b" * 25 + "a"


@pytest.fixture
def short(monkeypatch):
    """Pyramids from 512 rows on and axes of at most 750, so that a test of thousands of points has what service has of millions."""
    monkeypatch.setattr(pyramid_codec, "LEAST_ROWS", 512)
    monkeypatch.setattr(blocks, "ROWS", 750)


def values_at(n: int) -> list:
    odd = {101: float("nan"), 2000: float("inf"), 3001: -float("inf"), 3003: -0.0}
    return [odd.get(n, float(np.sin(n) * (1 + n % 7))), (n * 7919) % 1000 - 500 if n != 777 else 2**53 + 1]


def send(room, writer, first: int, count: int, *, known: bool, stride: int = 3, step: int | None = None) -> None:
    base = first * stride if step is None else step
    rows = [(first + n, base + n * stride, 1_700_000_000_000_000 + first + n, values_at(first + n)) for n in range(count)]
    frames = [write.dense(first, KEYS, TYPES, rows, known)]
    room.post(writer, write.batch(writer.run_id, writer.id, first, first + count - 1, frames))


def long_run(room, batches: int = 4, rows: int = 1500, hot: int = 300):
    """A run whose points lie in several blocks with pyramids and, at the end, in a hot segment."""
    writer = room.writer()
    for n in range(batches):
        send(room, writer, n * rows, rows, known=n > 0)
        compaction.compact_run(writer.run_id, force=True)
    if hot:
        send(room, writer, batches * rows, hot, known=True)
    return writer


def check(found: pyramid.Overview, column: reading.Column, lo: int, hi: int) -> None:
    """Each bucket equals numpy's over the points from its first step to the next one's; all points of the window are in one."""
    keep = (column.steps >= lo) & (column.steps <= hi)
    steps, values = column.steps[keep], column.values[keep].astype("f8")
    assert found.n == len(steps) == int(found.count.sum())
    starts = np.searchsorted(steps, found.x)
    assert steps[starts].tolist() == found.x.tolist()
    assert np.diff(np.r_[starts, len(steps)]).tolist() == found.count.tolist()
    with np.errstate(invalid="ignore"):
        for at, (a, b) in enumerate(zip(starts, np.r_[starts[1:], len(steps)], strict=True)):
            part = values[a:b]
            numbers = part[~np.isnan(part)]
            expected = [numbers.min(), numbers.max(), numbers.mean()] if len(numbers) else [np.nan] * 3
            np.testing.assert_allclose([found.min[at], found.max[at], found.mean[at]], expected, rtol=1e-9, atol=1e-9)
            np.testing.assert_array_equal([found.first[at], found.last[at]], [part[0], part[-1]])
    assert (found.nan, found.inf) == (int(np.isnan(values).sum()), int(np.isinf(values).sum()))


@pytest.mark.parametrize("merged", [False, True])
def test_overviews_equal_numpy_over_the_points_of_any_window(room, short, monkeypatch, merged):
    """Blocks, a hot tail, NaN, infinities, integers; windows that begin and end anywhere: nothing is counted twice, left out or lost."""
    writer = long_run(room)
    if merged:
        monkeypatch.setattr(merging, "FAN", 4)
        assert merging.merge_writer(writer.run_id, writer.id) == 1
    columns = {column.key: column for column in reading.history([writer.run_id], KEYS)}
    top = int(columns["loss"].steps[-1])
    draw = np.random.default_rng(5)
    windows = [(reading.LO, reading.HI), (0, top), (1, top - 1), *(sorted(draw.integers(0, top, 2).tolist()) for _ in range(12))]
    answered = 0
    for lo, hi in windows:
        found = pyramid.overviews([writer.run_id], KEYS, lo_step=lo, hi_step=hi, count=4, least=1000)
        for (_, key, _), overview in found.items():
            assert len(overview.x) <= 4
            check(overview, columns[key], lo, hi)
            answered += 1
    assert answered >= len(windows)


@given(st.lists(st.floats(width=64) | st.sampled_from([float("nan"), float("inf"), -0.0]), min_size=1, max_size=1200), st.booleans())
@settings(max_examples=40, deadline=None)
def test_entries_come_back_to_the_bit(values, is_int):
    """A pyramid's bytes decode to what was made of the column, whatever its values and length."""
    array = np.array(values)
    column = np.nan_to_num(array, nan=7, posinf=2**62, neginf=-(2**62)).clip(-(2**62), 2**62).astype("<i8") if is_int else array
    made = pyramid_codec.of_column(column)
    raw = pyramid_codec.column_bytes(made, blocks.pack)
    back = pyramid_codec.column_from(raw, len(column), column.dtype.str, blocks.unpack)
    for name in ("min", "max", "first", "last", "sum", "nan", "inf"):
        assert getattr(back, name).tobytes() == getattr(made, name).tobytes()
    assert back.nan.sum() == (0 if is_int else np.isnan(array).sum())


def test_what_a_pyramid_cannot_tell_is_left_out(room, short):
    """Short series, charts finer than entries, steps that fall, a second writer at the same steps, rewound runs: all read in full."""
    short_one = long_run(room, batches=1)
    assert pyramid.overviews([short_one.run_id], KEYS, count=2, least=5000) == {}
    fine = long_run(room)
    assert pyramid.overviews([fine.run_id], KEYS, count=20, least=1000) == {}

    falls = room.writer()
    for n in range(4):
        send(room, falls, n * 1500, 1500, known=n > 0, step=1000 if n == 2 else None)
        compaction.compact_run(falls.run_id, force=True)
    assert pyramid.overviews([falls.run_id], KEYS, count=2, least=1000) == {}

    again = room.writer(fine.run, attempt=2, started_us=1_700_000_000_000_001)
    send(room, again, 0, 1, known=False, step=30)
    assert pyramid.overviews([fine.run_id], KEYS, count=2, least=1000) == {}

    rewound = long_run(room)
    rewound.attempt.rewound_to = 100
    rewound.attempt.save()
    assert pyramid.overviews([rewound.run_id], KEYS, count=2, least=1000) == {}


def test_of_several_ranks_all_are_answered_or_none(room, short):
    first = long_run(room)
    second = room.writer(first.run, rank=1)
    for n in range(4):
        send(room, second, n * 1500, 1500, known=True)
    compaction.compact_run(first.run_id, force=True)
    found = pyramid.overviews([first.run_id], ["loss"], count=2, least=1000)
    assert {rank for _, _, rank in found} == {0, 1}
    assert {rank for _, _, rank in pyramid.overviews([first.run_id], ["loss"], [1], count=2, least=1000)} == {1}
    third = room.writer(first.run, rank=2)
    send(room, third, 0, 1500, known=True)
    send(room, third, 1500, 5, known=True, step=0)
    assert pyramid.overviews([first.run_id], ["loss"], count=2, least=1000) == {}


def test_a_chart_of_a_very_long_series_comes_from_pyramids_alone(room, short, monkeypatch):
    """The answer has all points in its counts, the true extremes and every marker, as a full read has them; points are decoded only where
    a NaN or an infinity is to be shown at its step."""
    writer = long_run(room, hot=0)
    query = {"runs": [writer.run_id], "keys": [*KEYS, "none"], "buckets": 5}
    full = series_answer.decode(series.answer(user=room.user, query=query))
    real = pyramid.look
    monkeypatch.setattr(overviews.pyramid, "look", lambda *args, **more: real(*args, least=1000, **more))
    decoded = []
    keep = blocks.decode_column
    monkeypatch.setattr(blocks, "decode_column", lambda *args: decoded.append(1) or keep(*args))
    reading.forget()
    fast = series_answer.decode(series.answer(user=room.user, query=query))
    assert len(decoded) == 3
    assert fast["cursor"] == full["cursor"]
    for one, other in zip(fast["series"], full["series"], strict=True):
        plain = {name: value for name, value in other.items() if not isinstance(value, np.ndarray)}
        assert {name: one[name] for name in plain if name != "drawn"} == {name: plain[name] for name in plain if name != "drawn"}
        assert set(one) == set(other)
        assert one["count"].sum() == other["count"].sum() == 6000
        for name, pick in (("min", np.nanmin), ("max", np.nanmax)):
            assert pick(one[name]) == pick(other[name])
        assert (one["first"][0], one["last"][-1]) == (other["first"][0], other["last"][-1])
        assert one.get("odd_first", np.zeros(0)).tolist() == other.get("odd_first", np.zeros(0)).tolist()
    assert fast["series"][0]["odd_first"].tolist() == [303.0, 6000.0, 9003.0]


def test_a_zoom_reads_only_the_blocks_of_its_window(room, short):
    """With every other block gone from the store, a window of one block is still answered exactly."""
    writer = long_run(room, hot=0)
    kept, *others = MetricBlock.objects.filter(run=writer.run).order_by("-first")
    for row in others:
        blob_store().delete(row.object_key)
    reading.forget()
    query = {"runs": [writer.run_id], "keys": ["loss"], "from": kept.lo_step, "to": kept.hi_step, "buckets": 2000}
    entry = series_answer.decode(series.answer(user=room.user, query=query))["series"][0]
    assert (entry["exact"], entry["n"]) == (True, 1500)
    found = pyramid.overviews([writer.run_id], ["loss"], lo_step=kept.lo_step, hi_step=kept.hi_step, count=2, least=1000)
    assert found[writer.run_id, "loss", 0].n == 1500


# -- the format ------------------------------------------------------------------------------------------------------------------------


def golden_rows() -> list[tuple]:
    odd = {5: float("nan"), 300: float("inf"), 301: -float("inf"), 16_000: -0.0}
    return [(n, n * 10, 1_700_000_000_000_000 + n * 1000, [odd.get(n, (n % 97) / 8), n % 13 if n else 2**53 + 1]) for n in range(16_500)]


def golden_block() -> blocks.Encoded:
    """How block-v1-pyramid.block was made; the JSON beside it is ``entries_of`` it."""
    body = write.batch(RUN, WRITER, 0, 16_499, [write.dense(0, ["train/loss", "größe"], "dq", golden_rows())])
    return blocks.encode(WRITER, 0, 16_499, wire.decode(body).frames)


def entries_of(data: bytes) -> dict:
    directory = blocks.Directory(data)
    told = {}
    for row in directory.pyramids:
        what = int(row["what"])
        start, end = blocks.pyramid_span(directory, what)
        found = blocks.decode_pyramid(directory, what, data[start:end])
        fields = {name: getattr(found, name) for name in found.__dataclass_fields__}
        name = "axis" if what >= pyramid_codec.AXES else directory.name(what)
        told[name] = {each: [str(value) for value in array.tolist()] for each, array in fields.items()}
    return told


def test_the_golden_block_with_a_pyramid_is_still_read():
    """A block with a pyramid, written by the first program that made one, decodes to the same points and entries for ever."""
    data = (GOLDEN / "block-v1-pyramid.block").read_bytes()
    assert entries_of(data) == json.loads((GOLDEN / "block-v1-pyramid.json").read_text())
    assert entries_of(golden_block().data) == entries_of(data)
    _, columns = blocks.decode(data)
    told = {key: (axis.steps.tolist(), values.view("<i8").tolist()) for key, axis, values in columns}
    rows = golden_rows()
    steps = [row[1] for row in rows]
    assert told["train/loss"] == (steps, np.array([row[3][0] for row in rows]).view("<i8").tolist())
    assert told["größe"] == (steps, [row[3][1] for row in rows])


def test_a_block_without_a_pyramid_is_read_as_before():
    """Blocks of the first version have no flag and no table; nothing about them changed."""
    directory = blocks.Directory((GOLDEN / "block-v1.block").read_bytes())
    assert len(directory.pyramids) == 0
    assert directory.pyramid(0) is None


@given(st.integers(0, 10**6), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_a_damaged_pyramid_says_so(at, flip):
    """A changed byte anywhere is noticed, or changes nothing that is read."""
    data = bytearray(GOLDEN_DATA)
    data[at % len(data)] ^= flip
    try:
        found = entries_of(bytes(data))
    except blocks.DamagedBlock:
        return
    assert found == GOLDEN_ENTRIES


GOLDEN_DATA = golden_block().data
GOLDEN_ENTRIES = entries_of(GOLDEN_DATA)


def test_a_packed_directory_has_its_pyramids_too(monkeypatch):
    """Blocks of many columns, whose directory is stored compressed, tell the same entries."""
    monkeypatch.setattr(blocks, "PACK_COLUMNS", 1)
    packed = golden_block().data
    assert blocks.HEAD.unpack_from(packed)[-1] == blocks.HAS_PYRAMID | blocks.PACKED
    assert entries_of(packed) == GOLDEN_ENTRIES
    assert [key for key, _, _ in blocks.decode(packed)[1]] == [key for key, _, _ in blocks.decode(GOLDEN_DATA)[1]]
