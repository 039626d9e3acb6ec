"""What a program logs is what is read, to the bit: through ingest, the hot read, compaction, and the read of blocks."""

from __future__ import annotations

import itertools
import os
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tracker.store import wire_writer as wire
from tracker.domain.ids import new_id
from tracker.models import Attempt, Writer
from tracker.services import compaction
from tracker.store import reading

FLOATS = st.one_of(
    st.sampled_from([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 5e-324, 1.7976931348623157e308, 2.0**53 + 2]),
    st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0]),  # any NaN, payload and sign included
    st.floats(),
)
INTS = st.one_of(st.sampled_from([0, -1, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)]), st.integers(-(2**63), 2**63 - 1))
STEPS = st.one_of(st.integers(0, 5), st.sampled_from([-1, 2**63 - 1, -(2**63) + 1, -(2**40)]), st.integers(-(2**63) + 1, 2**63 - 1))
TIMES = st.one_of(
    st.sampled_from([0, -1, -(2**63), 2**63 - 1, -62_135_596_800_000_000, 253_402_300_800_000_000]), st.integers(-(2**63), 2**63 - 1)
)
KEYS = ("loss", "n", "grad/ü")


@st.composite
def records(draw):
    """[(record, step, time, {key: (type, value)})]: late, repeated and far steps, changing keys and types."""
    found = []
    for number in range(draw(st.integers(1, 24))):
        keys = draw(st.lists(st.sampled_from(KEYS), min_size=1, unique=True))
        values = {key: ("q", draw(INTS)) if draw(st.booleans()) else ("d", draw(FLOATS)) for key in keys}
        found.append((number, draw(STEPS), draw(TIMES), values))
    return found


def bits(kind: str, value) -> int:
    return struct.unpack("<q", struct.pack("<" + kind, value))[0]


def frames_of(part: list, is_sparse: bool, first: int) -> list:
    if is_sparse:
        rows = [(n, key, kind, step, time, value) for n, step, time, values in part for key, (kind, value) in values.items()]
        return [wire.sparse(first, rows)]
    by_list: dict[tuple, list] = {}
    for n, step, time, values in part:
        shape = tuple(values), "".join(kind for kind, _ in values.values())
        by_list.setdefault(shape, []).append((n, step, time, [value for _, value in values.values()]))
    return [wire.dense(first, list(keys), types, rows) for (keys, types), rows in by_list.items()]


def winners(everything: list) -> dict:
    """The stated rule within one writer: of points with one step, the greatest record number counts."""
    found: dict[str, dict[int, tuple]] = {}
    for number, step, time, values in everything:
        for key, (kind, value) in values.items():
            found.setdefault(key, {})[step] = (number, time, kind, bits(kind, value))
    return found


def told(run: str) -> dict:
    """What the store tells, winners alone: {key: {step: (record, time, type, bits)}}."""
    found: dict[str, dict[int, tuple]] = {}
    for column in reading.history([run], list(KEYS)):
        bits_ = column.values.view("<i8") if column.bits is None else column.bits
        is_int = np.full(len(bits_), column.values.dtype.kind == "i") if column.is_int is None else column.is_int
        for i in np.arange(len(column.steps)) if column.order is None else column.order:
            kind = "q" if is_int[i] else "d"
            found.setdefault(column.key, {})[int(column.steps[i])] = (int(column.records[i]), int(column.times[i]), kind, int(bits_[i]))
    return found


@given(everything=records(), cuts=st.lists(st.integers(1, 23), max_size=3), sparse=st.lists(st.booleans(), min_size=5, max_size=5))
@settings(max_examples=400 if os.environ.get("ENCORE_TORTURE") else 50, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_value_step_and_time_is_exact_in_segments_and_in_blocks(room, everything, cuts, sparse):
    """NaN with its bits, infinities, -0.0, 2**53 + 1, steps and times at the ends of 64 bits, in dense and sparse frames, cut anywhere:
    the same before compaction, half compacted, and after."""
    writer = room.writer()
    edges = sorted({0, *(cut for cut in cuts if cut < len(everything)), len(everything)})
    for at, (first, end) in enumerate(itertools.pairwise(edges)):
        body = wire.batch(writer.run_id, writer.id, first, end - 1, frames_of(everything[first:end], sparse[at], first))
        room.post(writer, wire.deflate(body) if at % 2 else body, "deflate" if at % 2 else "")
        if at == 0 and len(edges) > 2 and sparse[4]:
            assert compaction.compact_run(writer.run_id, force=True) == 1
    expected = winners(everything)
    assert told(writer.run_id) == expected
    compaction.compact_run(writer.run_id, force=True)
    reading.forget()
    assert told(writer.run_id) == expected


@pytest.mark.parametrize("compacted", [False, True])
def test_of_a_repeated_step_the_later_attempt_start_and_record_win(room, compacted):
    """Later attempt over earlier; within it the writer that started later; within that the greater record. What came first over the wire
    does not matter."""
    run = room.run()
    attempts = {number: Attempt.objects.create(run=run, number=number) for number in (1, 2)}

    def writer(attempt: int, started: int) -> Writer:
        return Writer.objects.create(
            id=new_id(), run=run, attempt=attempts[attempt], started_us=started, anchor_wall_us=started, rank=0, info={}
        )

    first, later, second = writer(1, 10), writer(1, 20), writer(2, 5)
    room.simple(second, 0, [30.0, 31.0], step=2)  # arrives first, wins where it speaks
    room.simple(later, 0, [20.0, 21.0], step=1)
    room.simple(first, 0, [10.0, 11.0, 12.0, 13.0], step=0)
    room.simple(second, 2, [32.0], step=3)  # the same step again, a greater record
    if compacted:
        compaction.compact_run(run.id, force=True)
    (column,) = reading.history([run.id], ["loss"])
    at = np.arange(len(column.steps)) if column.order is None else column.order
    assert dict(zip(column.steps[at].tolist(), np.asarray(column.values)[at].tolist(), strict=True)) == {0: 10.0, 1: 20.0, 2: 30.0, 3: 32.0}
