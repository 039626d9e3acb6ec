"""The same range again: acknowledged if it says the same, named if it does not, whichever way it was packed."""

from __future__ import annotations

import threading

import pytest
from django.db import connections

from tests.tracker.store import wire_writer as wire
from tracker.domain.errors import RangeConflict, RangeDiffers
from tracker.models import Event, MetricSegment
from tracker.services import compaction

TIME = 1_700_000_000_000_000


def dense(writer, values, known=False):
    rows = [(n, n, TIME + n, [value, -n]) for n, value in enumerate(values)]
    return wire.batch(writer.run_id, writer.id, 0, len(values) - 1, [wire.dense(0, ["loss", "n"], "dq", rows, known)])


def sparse(writer, values):
    rows = [(n, *point) for n, value in enumerate(values) for point in (("n", "q", n, TIME + n, -n), ("loss", "d", n, TIME + n, value))]
    return wire.batch(writer.run_id, writer.id, 0, len(values) - 1, [wire.sparse(0, rows)])


def test_the_same_points_in_another_packing_are_acknowledged(room):
    """A sender that was started anew compresses otherwise, names its key lists again or by hash, or has fallen back to sparse frames."""
    writer = room.writer()
    values = [0.5, float("nan"), -0.0, float("inf")]
    room.post(writer, wire.deflate(dense(writer, values)), "deflate")
    for body, encoding in (
        (dense(writer, values), ""),
        (wire.zstd(dense(writer, values, known=True)), "zstd"),
        (wire.deflate(sparse(writer, values)), "deflate"),
    ):
        assert room.post(writer, body, encoding)["next"] == 4
    assert MetricSegment.objects.filter(run=writer.run).count() == 1
    assert not Event.objects.filter(run=writer.run).exists()


@pytest.mark.parametrize("change", ["a value", "the sign of zero", "a step", "a time", "a key", "a type", "a document", "a point less"])
def test_other_points_under_the_same_numbers_are_a_conflict(room, change):
    """Whatever differs: 409 range_conflict with where to go on, what is stored stays, and the run's page says it once."""
    writer = room.writer()

    def body(key="loss", kind="d", value=0.0, step=7, time=TIME, docs=(), rows=2):
        points = [(n, step, time, [value]) for n in range(rows)]
        return wire.batch(writer.run_id, writer.id, 0, 1, [wire.dense(0, [key], kind, points)], docs)

    note = {"n": 1, "step": None, "time": 1, "doc": {"type": "event", "name": "note", "data": {}}}
    other = {
        "a value": {"value": 1.5},
        "the sign of zero": {"value": -0.0},
        "a step": {"step": 8},
        "a time": {"time": TIME + 1},
        "a key": {"key": "lost"},
        "a type": {"kind": "q", "value": 0},
        "a document": {"docs": [note]},
        "a point less": {"rows": 1},
    }[change]
    room.post(writer, body())
    for _ in range(2):
        with pytest.raises(RangeDiffers) as caught:
            room.post(writer, body(**other))
    assert (caught.value.status, caught.value.code, caught.value.fields) == (409, "range_conflict", {"next": 2, "first": 0, "last": 1})
    assert room.column(writer.run_id).values.tolist() == [0.0, 0.0]
    (event,) = Event.objects.filter(run=writer.run)
    assert (event.name, event.data) == ("range_conflict", {"first": 0, "last": 1})
    assert room.post(writer, body())["next"] == 2


def test_after_compaction_a_repeat_is_acknowledged(room):
    """What lies in a block is stored for good: a late repeat of it is answered with where the writer stands."""
    writer = room.writer()
    room.post(writer, dense(writer, [1.0, 2.0]))
    assert compaction.compact_run(writer.run_id, force=True) == 1
    assert room.post(writer, dense(writer, [1.0, 2.0]))["next"] == 2
    assert room.column(writer.run_id).values.tolist() == [1.0, 2.0]


def test_a_range_of_which_a_part_is_stored_is_told_where_to_cut(room):
    """first < next <= last: 409 with next, before and after compaction, and nothing of it is stored."""
    writer = room.writer()
    room.simple(writer, 0, [1.0, 2.0, 3.0])
    for compacted in (False, True):
        if compacted:
            compaction.compact_run(writer.run_id, force=True)
        with pytest.raises(RangeConflict) as caught:
            room.simple(writer, 1, [2.0, 3.0, 4.0])
        assert caught.value.fields == {"next": 3}
    assert room.simple(writer, 3, [4.0])["next"] == 4


@pytest.mark.django_db(transaction=True)
def test_two_clients_with_one_writer_id_never_mix_a_range(room):
    """Each range is the one's or the other's, whole; whoever came second is told, and neither has to send anything for ever."""
    writer = room.writer()
    told: dict[str, list[str]] = {"a": [], "b": []}

    def client(name: str, value: float) -> None:
        try:
            first = 0
            while first < 60:
                try:
                    first = room.simple(writer, first, [value] * 3)["next"]
                    told[name].append("stored")
                except RangeConflict as problem:
                    first = problem.fields["next"]
                except RangeDiffers as problem:
                    told[name].append("differs")
                    first = problem.fields["next"]
        finally:
            connections.close_all()

    threads = [threading.Thread(target=client, args=("a", 1.0)), threading.Thread(target=client, args=("b", 2.0))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    column = room.column(writer.run_id)
    assert column.records.tolist() == list(range(len(column.records)))
    for at in range(0, 60, 3):
        assert len(set(column.values[at : at + 3].tolist())) == 1
    assert told["a"].count("stored") + told["b"].count("stored") >= 20
