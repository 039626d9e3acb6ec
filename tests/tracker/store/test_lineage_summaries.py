"""Making stitched summaries again while points come in, twice at once, and without taking the worker's whole time."""

from __future__ import annotations

import threading
import time

import pytest

from tests.tracker.store.test_ingest import in_threads
from tracker.models import Attempt, MetricBlock, MetricSummary, Run, StaleSummary
from tracker.services import compaction, lineage, stitched, summaries
from tracker.store.blobs import blob_store


def rewound(room, rewound_to: int = 4, steps: int = 10):
    """A run whose first attempt logged ``steps`` steps and whose second went back; (run, first, second)."""
    run = room.run(is_stitched=True)
    first = room.writer(run, attempt=1, started_us=10)
    second = room.writer(run, attempt=2, started_us=20)
    Attempt.objects.filter(run=run, number=2).update(rewound_to=rewound_to)
    room.simple(first, 0, [float(n) for n in range(steps)])
    lineage.mark_stale([run.id])
    return run, first, second


@pytest.mark.django_db(transaction=True)
def test_two_workers_and_a_live_run_end_up_with_the_truth(room):
    """Steps repeated and steps that go on, from two writers, while two workers sum up: nothing is missed, nothing counted twice."""
    run, first, second = rewound(room)
    sending = threading.Event()
    sending.set()

    def send_new() -> None:
        try:
            for n in range(60):  # every third batch repeats the steps of the one before it
                room.simple(second, n * 2, [100.0 + n, 200.0 + n], step=5 + 2 * (n - n % 3), known=n > 0)
        finally:
            sending.clear()

    def send_old() -> None:
        for n in range(20):
            room.simple(first, 10 + n, [-1000.0], step=3 if n % 2 else 50, known=True)

    def work() -> None:
        while sending.is_set():
            summaries.summarise_due()
            stitched.recompute(run.id)

    roles = [send_new, send_old, work, work]
    in_threads(lambda at: roles[at](), len(roles))
    summaries.summarise_due()
    stitched.recompute(run.id)
    assert not StaleSummary.objects.exists()
    column = room.column(run.id)
    values = column.values[column.order] if column.order is not None else column.values
    row = MetricSummary.objects.get(run=run, key="loss")
    assert (row.count, row.min, row.max, row.sum) == (len(values), values.min(), values.max(), values.sum())
    assert (row.count, row.min, row.last_step) == (5 + 40, -1000.0, 5 + 2 * 57 + 1)


def test_a_costly_run_rests_and_others_do_not_wait_for_it(room, monkeypatch):
    """A run takes its share of the worker's time and no more; what is left waits, and is not forgotten."""
    run, _, second = rewound(room)
    other, _, _ = rewound(room)
    summaries.summarise_due()
    stitched._rest_until.clear()
    monkeypatch.setattr(stitched, "SHARE", 1e-9)  # as if a turn were very dear
    assert stitched.recompute_due() == 2
    room.simple(second, 0, [1.0, 2.0], step=3)
    summaries.summarise_due()
    assert stitched.recompute_due() == 0
    assert StaleSummary.objects.filter(run=run).exists()
    stitched._rest_until[run.id] = time.monotonic()
    assert stitched.recompute_due() == 1
    assert MetricSummary.objects.get(run=run).count == 5
    assert not StaleSummary.objects.filter(run=other).exists()
    stitched._rest_until.clear()


def test_a_run_that_cannot_be_read_holds_up_no_other(room):
    """Where a block's object is missing, that run stays marked and is tried again later; the summaries of the others are made."""
    stitched._rest_until.clear()
    lost, other = sorted((rewound(room) for _ in range(2)), key=lambda made: made[0].id)
    summaries.summarise_due()
    compaction.compact_run(lost[0].id, force=True)
    blob_store().delete(MetricBlock.objects.get(run=lost[0]).object_key)
    assert stitched.recompute_due() == 1
    assert MetricSummary.objects.get(run=other[0]).count == 5
    assert set(StaleSummary.objects.values_list("run_id", flat=True)) == {lost[0].id}
    assert stitched._rest_until[lost[0].id] > time.monotonic()
    stitched._rest_until.clear()


def test_what_is_marked_for_a_deleted_run_is_dropped(room):
    run, _, _ = rewound(room)
    Run.objects.filter(id=run.id).update(deleted_at="2026-01-01T00:00:00Z")
    stitched.recompute(run.id)
    assert not StaleSummary.objects.exists()
    assert not MetricSummary.objects.filter(run=run).exists()


def test_keys_beyond_the_limit_have_no_rows(room, monkeypatch):
    """A run keeps as many summaries as any other; the keys that were there first stay."""
    monkeypatch.setattr(summaries, "MOST_KEYS", 2)
    run, first, _ = rewound(room)
    room.simple(first, 10, [1.0], key="a", step=0)
    room.simple(first, 11, [1.0], key="b", step=0)
    for _ in range(2):
        summaries.summarise_due()
        stitched.recompute(run.id)
        assert MetricSummary.objects.filter(run=run).count() == 2
