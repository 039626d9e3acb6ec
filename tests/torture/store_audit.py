"""The store against the ledger, read beside the server by its own code: every record, every row, every object."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from pathlib import Path

import numpy as np
from django.db.models import F, Sum
from django.db.models.functions import Length
from django.utils import timezone

from tests.torture.store_ledger import SPARSE_KEYS, Points, StoreLedger, expected, points_in
from tracker.models import MetricBlock, MetricSegment, MetricSummary, MetricTrash, Writer
from tracker.services import compaction, summaries
from tracker.store import reading
from tracker.store.blobs import blob_store

KEYS = ["x", "i", *(f"s{n}" for n in range(SPARSE_KEYS))]


def audit(order: dict) -> dict:
    """``{"ledger", "slots", "run", "writers": [slot's writer id], "first_slot", "finish": bool}`` → what was found, by kind, in records.

    finish: also compact all, empty the trash, sweep; and look once more, with nothing remembered.
    """
    found: dict = defaultdict(int)
    found["examples"] = []
    ledger = StoreLedger(Path(order["ledger"]), order["slots"])
    _look(order, ledger, found)
    if order.get("finish"):
        summaries.summarise_due()
        compaction.compact_run(order["run"], force=True)
        MetricTrash.objects.update(delete_after=timezone.now() - timedelta(days=1))
        compaction.sweep_trash()
        found["orphans"] = compaction.sweep_orphans(older_than=timedelta(days=-1))
        reading.forget()
        _look(order, ledger, found)
        for writer in Writer.objects.filter(run_id=order["run"]):
            if writer.hot_segments:
                _note(found, "untidy", f"writer {writer.id} keeps {writer.hot_segments} segments after all was compacted")
        _look_at_objects(found, swept=True)
        _look_at_summaries(order, found)
    return dict(found)


def _note(found: dict, what: str, example: str, count: int = 1) -> None:
    found[what] += count
    if len(found["examples"]) < 10:
        found["examples"].append(f"{what}: {example}")


def _look(order: dict, ledger: StoreLedger, found: dict) -> None:
    writers = {writer.id: writer for writer in Writer.objects.filter(run_id=order["run"])}
    try:
        columns = {(column.rank, column.key): column for column in reading.history([order["run"]], KEYS)}
    except Exception as problem:
        _note(found, "unreadable", f"{type(problem).__name__}: {problem}")
        columns = {}
    found["acknowledged"] = found["records"] = found["points"] = found["again"] = 0
    for rank, writer_id in enumerate(order["writers"]):
        slot = order["first_slot"] + rank
        acknowledged, sent, again, back = ledger.read(slot)
        found["acknowledged"] += acknowledged
        found["again"] += again
        writer = writers.get(writer_id)
        if writer is None:
            if acknowledged:
                _note(found, "lost", f"writer {writer_id} is not there", acknowledged)
            continue
        if back:
            _note(found, "lost", f"{back} answers to writer {writer_id} took an acknowledgement back", back)
        if writer.next < acknowledged:
            _note(
                found, "lost", f"writer {writer_id} stands at {writer.next}, {acknowledged} were acknowledged", acknowledged - writer.next
            )
        if writer.next > sent:
            _note(found, "phantom", f"writer {writer_id} stands at {writer.next}, {sent} were sent", writer.next - sent)
        found["records"] += writer.next
        for key in KEYS:
            _compare(found, f"{key} of rank {rank}", expected(slot, key, writer.next), columns.get((rank, key)))
        _look_at_rows(found, writer)
    _look_at_objects(found, swept=False)


def _compare(found: dict, where: str, wanted: Points, column: reading.Column | None) -> None:
    if column is None:
        if len(wanted.records):
            _note(found, "lost", f"no {where}", len(wanted.records))
        return
    records = column.records.astype("i8")
    bits = (column.values if column.bits is None else column.bits).view("u8")
    found["points"] += len(records)
    same = len(records) == len(wanted.records) and np.array_equal(records, wanted.records)
    if not same:
        lost = np.setdiff1d(wanted.records, records)
        phantom = np.setdiff1d(records, wanted.records)
        _, counts = np.unique(records, return_counts=True)
        doubled = int((counts - 1).sum())
        if len(lost):
            _note(found, "lost", f"{where}: {len(lost)} records, {lost[0]} … {lost[-1]}", len(lost))
        if len(phantom):
            _note(found, "phantom", f"{where}: {len(phantom)} records, {phantom[0]} … {phantom[-1]}", len(phantom))
        if doubled:
            _note(found, "doubled", f"{where}: {doubled} records", doubled)
        if (np.diff(records) < 0).any():
            _note(found, "reordered", where)
        return
    altered = (column.steps != wanted.steps) | (column.times != wanted.times) | (bits != wanted.bits)
    if altered.any():
        at = np.flatnonzero(altered)
        _note(found, "altered", f"{where}: {len(at)} records, from {records[at[0]]}", len(at))


def _look_at_rows(found: dict, writer: Writer) -> None:
    """The ranges of blocks and segments cover the writer's records once; what the rows say adds up."""
    blocks_ = list(MetricBlock.objects.filter(writer_id=writer.id).order_by("first").values_list("first", "last", "points"))
    segments = MetricSegment.objects.filter(writer_id=writer.id).annotate(size=Length("body")).order_by("first")
    hot = list(segments.values_list("first", "last", "points", "size"))
    at = 0
    for first, last, *_ in [*blocks_, *hot]:
        if first != at or last < first:
            _note(found, "untidy", f"writer {writer.id}: a range {first} … {last} where {at} was next")
        at = last + 1
    if at != writer.next:
        _note(found, "untidy", f"writer {writer.id}: ranges end at {at}, it stands at {writer.next}")
    points = sum(block[2] for block in blocks_) + sum(segment[2] for segment in hot)
    if points != points_in(writer.next):
        _note(found, "untidy", f"writer {writer.id}: rows of {points} points, {points_in(writer.next)} were stored")
    if writer.upto != (blocks_[-1][1] + 1 if blocks_ else 0):
        _note(found, "untidy", f"writer {writer.id}: upto {writer.upto} is not the end of its blocks")
    if (writer.hot_segments, writer.hot_bytes) != (len(hot), sum(segment[3] for segment in hot)):
        said = (writer.hot_segments, writer.hot_bytes)
        _note(found, "untidy", f"writer {writer.id}: says {said}, has {(len(hot), sum(segment[3] for segment in hot))}")


def _look_at_objects(found: dict, swept: bool) -> None:
    """Every block row has its object, whole; after a sweep nothing else is there."""
    objects = {key: size for key, size, _ in blob_store().list("blocks")}
    known = dict(MetricBlock.objects.values_list("object_key", "bytes"))
    for key, size in known.items():
        if objects.get(key) != size:
            _note(found, "unreadable", f"block {key} of {size} bytes: object of {objects.get(key)}")
    if swept:
        left = set(objects) - set(known)
        if left:
            _note(found, "untidy", f"{len(left)} objects that no row knows, such as {sorted(left)[0]}")
        if MetricTrash.objects.exists():
            _note(found, "untidy", f"{MetricTrash.objects.count()} rows of trash are left")
        root = getattr(blob_store(), "root", None)
        if root is not None and (root / ".aside").is_dir() and any((root / ".aside").iterdir()):
            _note(found, "untidy", "unfinished files are left")


def _look_at_summaries(order: dict, found: dict) -> None:
    said = MetricSummary.objects.filter(run_id=order["run"], key="x").aggregate(count=Sum(F("count")))["count"] or 0
    if said != found["records"]:
        _note(found, "untidy", f"the summaries count {said} points of x, {found['records']} are stored")
