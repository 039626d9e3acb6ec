"""Any sequence of batches, compactions and merges, against the list of what was sent: the same points, to the bit, in winning order."""

from __future__ import annotations

import os
import struct
from collections import defaultdict

import numpy as np
import pytest
from django.db import transaction
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.tracker.store import wire_writer as wire
from tracker.models import MetricBlock, MetricSegment
from tracker.services import compaction, merging
from tracker.store import blocks, joining, pooling, reading

SHAPES = [
    (("loss", "acc"), "dd"),
    (("loss",), "d"),
    (("a", "b", "c", "tokens"), "dddq"),
    (("tokens", "acc"), "qd"),
    (("acc", "tokens"), "qd"),
]
LOOSE = [("loss", "d"), ("acc", "q"), ("tokens", "q"), *((f"layer/{n}", "dq"[n % 2]) for n in range(8))]
KEYS = sorted({key for keys, _ in SHAPES for key in keys} | {key for key, _ in LOOSE})
FLOATS = st.sampled_from([0.0, -0.0, 1.5, -2.25, 1e300, 5e-324, float("inf"), -float("inf"), float("nan")])
INTS = st.sampled_from([0, -1, 2**53 + 1, -(2**63), 2**63 - 1])
STEPS = st.integers(0, 12) | st.sampled_from([-(2**62), 2**62])


@st.composite
def batches(draw) -> list[tuple[int, int, list[tuple[str, str, float | int]], int | None]]:
    """Records of one batch: (step, time, [(key, kind, value)], the shape if it is dense)."""
    found = []
    for _ in range(draw(st.integers(1, 8))):
        shape = draw(st.none() | st.integers(0, len(SHAPES) - 1))
        if shape is None:
            named = draw(st.lists(st.sampled_from(LOOSE), min_size=1, max_size=6, unique_by=lambda pair: pair[0]))
        else:
            named = list(zip(*SHAPES[shape], strict=True))
        points = [(key, kind, draw(FLOATS if kind == "d" else INTS)) for key, kind in named]
        found.append((draw(STEPS), draw(st.integers(0, 10**6)), points, shape))
    return found


def body_of(writer, first: int, records: list) -> bytes:
    dense: dict[int, list] = defaultdict(list)
    loose = []
    for n, (step, time, points, shape) in enumerate(records, first):
        if shape is None:
            loose += [(n, key, kind, step, time, value) for key, kind, value in points]
        else:
            dense[shape].append((n, step, time, [value for _, _, value in points]))
    frames = [wire.dense(first, *SHAPES[shape], rows) for shape, rows in dense.items()]
    if loose:
        frames.append(wire.sparse(first, loose))
    return wire.batch(writer.run_id, writer.id, first, first + len(records) - 1, frames)


SMALL = ((blocks, "ROWS", 8), (blocks, "SHORT", 3), (blocks, "PACK_COLUMNS", 4), (pooling, "MANY", 2), (pooling, "OWN_ROWS", 5),
         (pooling, "SHARED_ROWS", 6), (joining, "POOL_POINTS", 9), (merging, "FAN", 2))  # fmt: skip
EXAMPLES = 1500 if os.environ.get("ENCORE_TORTURE") == "1" else 20
ACTS = st.sampled_from(["nothing", "nothing", "compact", "compact", "merge", "finish"])


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.data())
@pytest.mark.timeout(3600 if EXAMPLES > 20 else 300)
@pytest.mark.django_db
def test_what_is_read_is_what_was_sent(room, monkeypatch, data):
    """Whatever the frames, writers, steps and the moments of compaction and merging, with real bounds and with tiny ones."""
    with monkeypatch.context() as patch, transaction.atomic():
        if data.draw(st.booleans(), label="tiny bounds"):
            for module, name, value in SMALL:
                patch.setattr(module, name, value)
            patch.setattr(merging, "MERGED_POINTS", data.draw(st.sampled_from([20, 100, 8_000_000]), label="merged points"))
        else:
            patch.setattr(merging, "FAN", 2)
        try:
            happen(room, data)
        finally:
            transaction.set_rollback(True)


def happen(room, data) -> None:
    run = room.run()
    writers = [room.writer(run, rank=rank, started_us=1_700_000_000_000_000 + n) for n, rank in enumerate((0, 1, 0))]
    sent: dict[str, list] = {writer.id: [] for writer in writers}
    for _ in range(data.draw(st.integers(2, 10), label="batches")):
        writer = data.draw(st.sampled_from(writers))
        records = data.draw(batches())
        mine = sent[writer.id]
        room.post(writer, body_of(writer, len(mine), records))
        mine += records
        act(data.draw(ACTS), run)
    for last in ("nothing", "compact", "merge", "finish", "finish"):
        act(last, run)
        agree(run, writers, sent)
    assert not MetricSegment.objects.filter(run=run).exists()


def act(what: str, run) -> None:
    if what == "compact":
        compaction.compact_run(run.id, force=True)
    elif what == "merge":
        for writer_id in MetricBlock.objects.filter(run=run).values_list("writer_id", flat=True).distinct():
            merging.merge_writer(run.id, writer_id)
    elif what == "finish":
        merging.finish_run(run.id)


def agree(run, writers, sent: dict[str, list]) -> None:
    expected: dict[tuple[str, int], list] = defaultdict(list)
    for writer in writers:
        for n, (step, time, points, _) in enumerate(sent[writer.id]):
            for key, kind, value in points:
                expected[key, writer.rank].append((n, step, time, kind, struct.pack("<" + kind, value)))
    reading.forget()
    found = {}
    for column in reading.history([run.id], KEYS):
        bits = column.bits if column.bits is not None else column.values.view("<i8")
        kinds = column.is_int if column.is_int is not None else np.full(len(bits), column.values.dtype.kind == "i")
        rows = zip(column.records.tolist(), column.steps.tolist(), column.times.tolist(), kinds, bits.tolist(), strict=True)
        found[column.key, column.rank] = [(n, s, t, "dq"[int(k)], struct.pack("<q", b)) for n, s, t, k, b in rows]
        last = {step: at for at, step in enumerate(column.steps.tolist())}
        assert column.winner.nonzero()[0].tolist() == sorted(last.values())
    assert found == expected
    counts = {key: sum(len(v) for (k, _), v in expected.items() if k == key) for key in {k for k, _ in expected}}
    assert {key: sum(ranks.values()) for key, ranks in reading.keys_of(run.id).items()} == counts
