"""The accounting of the store's torture itself: it finds each kind of fault, so that a 0 means something."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from tests.torture import store_audit
from tests.torture.store_ledger import StoreLedger, batch, expected, winners
from tests.torture.store_load import end_of
from tracker.models import MetricBlock, MetricSegment, Writer
from tracker.services import compaction
from tracker.store import reading
from tracker.store.blobs import blob_store

SIZES = [1, 100, 30, 7, 220]


@pytest.fixture
def books(room, tmp_path):
    """A writer with five acknowledged batches, the first three of them in a block; `audit()` counts."""
    writer = room.writer()
    ledger = StoreLedger(tmp_path / "ledger", 2)
    end = 0
    for number, size in enumerate(SIZES):
        ledger.sending(1, end + size)
        end = room.post(writer, batch(1, writer.run_id, writer.id, end, size))["next"]
        ledger.told(1, end)
        if number == 2:
            compaction.compact_run(writer.run_id, force=True)

    def audit(finish: bool = False) -> dict:
        reading.forget()
        order = {"ledger": str(tmp_path / "ledger"), "slots": 2, "first_slot": 1, "run": writer.run_id, "writers": [writer.id]}
        return store_audit.audit(order | {"finish": finish})

    return SimpleNamespace(writer=writer, ledger=ledger, end=end, audit=audit)


def wrong(found: dict) -> set[str]:
    return {kind for kind in ("lost", "doubled", "altered", "reordered", "phantom", "untidy", "unreadable") if found.get(kind)}


def test_what_is_exact_is_exact_and_what_nobody_needs_is_swept(books):
    blob_store().put("blocks/died/00/00.block", b"of a compaction that died")
    assert wrong(books.audit()) == set()
    found = books.audit(finish=True)
    assert wrong(found) == set()
    assert (found["acknowledged"], found["records"], found["orphans"]) == (books.end, books.end, 1)
    assert MetricBlock.objects.filter(writer_id=books.writer.id).exists()
    assert not MetricSegment.objects.filter(writer_id=books.writer.id).exists()


def lose_a_segment(books) -> None:
    MetricSegment.objects.filter(writer_id=books.writer.id, first=131).delete()


def alter_a_segment(books) -> None:
    other = batch(0, books.writer.run_id, books.writer.id, 131, 7)  # as another slot would have sent it
    MetricSegment.objects.filter(writer_id=books.writer.id, first=131).update(body=other)


def double_a_block(books) -> None:
    block = MetricBlock.objects.get(writer_id=books.writer.id)
    block.pk = None
    block.save()


def lose_an_object(books) -> None:
    blob_store().delete(MetricBlock.objects.get(writer_id=books.writer.id).object_key)


def forget_what_was_told(books) -> None:
    books.ledger.told(1, books.end + 1)


def take_back(books) -> None:
    books.ledger.told(1, books.end - 1)


def store_what_was_not_sent(books) -> None:
    books.ledger._put(1, 1, books.end - 1)


def miscount(books) -> None:
    Writer.objects.filter(id=books.writer.id).update(hot_bytes=1)


@pytest.mark.parametrize(
    ("spoil", "kinds"),
    [
        (lose_a_segment, {"lost", "untidy"}),
        (alter_a_segment, {"altered"}),
        (double_a_block, {"doubled", "untidy"}),
        (lose_an_object, {"lost", "unreadable"}),
        (forget_what_was_told, {"lost"}),
        (take_back, {"lost"}),
        (store_what_was_not_sent, {"phantom"}),
        (miscount, {"untidy"}),
    ],
)
def test_every_fault_is_found(books, spoil: Callable, kinds: set[str]):
    spoil(books)
    assert kinds <= wrong(books.audit())


def shown(slot: int, key: str, end: int) -> list[list]:
    steps, bits = winners(expected(slot, key, end))
    values = bits.view("i8" if key == "i" else "f8").tolist()
    return [[step, 0, value] for step, value in zip(steps.tolist(), values, strict=True)]


@pytest.mark.parametrize("key", ["x", "i"])
def test_a_reader_knows_every_state_of_a_writer_and_no_other(key: str):
    """Also where a repeated step comes last, and with NaN, infinities and -0.0 among the values."""
    for end in [*range(55), 150, 153, 600]:
        points = shown(3, key, end)
        found = end_of(3, key, points)
        # A step that came again, and no more: only its value tells the two apart.
        assert found == end
    points = shown(3, key, 600)
    assert end_of(3, key, [*points[:300], *points[301:]]) is None
    assert end_of(3, key, [*points[:300], points[299], *points[300:]]) is None
    assert end_of(3, key, [*points[:300], [300, 0, points[301][2]], *points[301:]]) is None
    assert end_of(4, key, points) is None or key == "i"  # integers are the record's, whoever writes
