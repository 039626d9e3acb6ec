"""A range that the server has already: the same again is acknowledged; something else under the same record numbers is not dropped in
silence."""

from __future__ import annotations

import json
import time

import numpy as np

from tracker.domain.errors import RangeDiffers
from tracker.models import Event
from tracker.store import wire
from tracker.store.metrics import metric_store

EVENT = "range_conflict"


def require_same(batch: wire.Batch, body: bytes, encoding: str, following: int, *, has_times: bool = True) -> None:
    """Compare a repeated batch with the segment of its very range, while that is still hot. Raises RangeDiffers, told on the run's page.

    Senders may pack the same records differently (another compression, key lists by name or by hash), so points are compared, not bytes.
    ``has_times`` False: its times may be those of its arrival (JSON), and are not compared.
    """
    found = metric_store().segment(batch.run, batch.writer, batch.first, batch.last)
    if found is None or found == (encoding, body):
        return  # compacted, or cut differently then: what it held cannot be told from here
    if is_same(batch, metric_store().decode(batch.run, *found), has_times=has_times):
        return
    told = {"first": batch.first, "last": batch.last}
    if not Event.objects.filter(run_id=batch.run, writer_id=batch.writer, name=EVENT, number=batch.first).exists():
        Event.objects.create(
            run_id=batch.run, writer_id=batch.writer, name=EVENT, number=batch.first, time_us=time.time_ns() // 1000, data=told
        )
    raise RangeDiffers(next=following, **told)


def is_same(one: wire.Batch, other: wire.Batch, *, has_times: bool = True) -> bool:
    """Whether two batches of one range say the same: points to the bit, documents, holes; in whatever frames."""
    if one.points != other.points or sorted(one.holes) != sorted(other.holes):
        return False
    if _documents(one, has_times) != _documents(other, has_times):
        return False
    if not one.points:
        return True
    return all(np.array_equal(mine, its) for mine, its in zip(_points(one, has_times), _points(other, has_times), strict=True))


def _documents(batch: wire.Batch, has_times: bool) -> str:
    docs = batch.docs if has_times else [{**entry, "time": 0} for entry in batch.docs]
    return json.dumps(docs, sort_keys=True)  # as text: NaN equals no NaN


def _points(batch: wire.Batch, has_times: bool) -> list[np.ndarray]:
    """(record, key, type, step, time, bits) of all points as columns, in one order whatever frames they came in."""
    names = sorted({key for frame in batch.frames for key in _used(frame)})
    place = {key: at for at, key in enumerate(names)}
    parts = []
    for frame in batch.frames:
        keys = np.array([place.get(key, -1) for key in frame.keys], np.int64)
        if isinstance(frame, wire.Dense):
            types = np.frombuffer(frame.types.encode(), "u1") == ord("q")
            count, rows = frame.matrix.shape
            if not rows:
                continue
            parts.append((
                np.tile(frame.records, count), np.repeat(keys, rows), np.repeat(types, rows).astype(np.int64),
                np.tile(frame.steps, count), np.tile(frame.times, count), frame.matrix.ravel(),
            ))  # fmt: skip
        elif frame.points:
            parts.append((frame.records, keys[frame.index], frame.types.astype(np.int64), frame.steps, frame.times, frame.bits))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    if not has_times:
        columns[4] = np.zeros_like(columns[4])
    order = np.lexsort(columns[::-1])
    return [*(column[order] for column in columns), np.array(names, dtype=object)]


def _used(frame: wire.Dense | wire.Sparse) -> list[str]:
    """The names that have points."""
    if isinstance(frame, wire.Dense):
        return list(frame.keys) if frame.points else []
    return [frame.keys[at] for at in np.unique(frame.index).tolist()]
