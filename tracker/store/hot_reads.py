"""Pieces out of hot segments: batches as they were sent, decoded at most once, and not at all where their key lists do not hold the key."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tracker.store import caches, wire
from tracker.store.blocks import Axis
from tracker.store.columns import Piece
from tracker.store.inflate import inflate
from tracker.store.metrics import metric_store

BODIES_A_STATEMENT = 200


class Head(NamedTuple):
    """A segment without its body."""

    run: str
    writer: str
    first: int
    last: int
    keylists: str
    points: int

    @property
    def only_keylist(self) -> str | None:
        """Its one key list, where all its points are of it."""
        return self.keylists if self.keylists and self.keylists != "*" and " " not in self.keylists else None


class DenseFrame:
    def __init__(self, run: str, frame: wire.Dense) -> None:
        self.run, self.frame = run, frame
        self.axis = Axis(frame.records, frame.steps, frame.times)

    def pieces(self, keys: Iterable[str]) -> Iterator[tuple[str, Piece]]:
        frame = self.frame
        at_of = places(self.run, frame.keylist, (frame.types, frame.keys))
        for key in keys:
            at = at_of.get(key)
            if at is not None:
                bits = frame.matrix[at]
                yield key, Piece(self.axis, bits if frame.types[at] == "q" else bits.view("<f8"))


class SparseFrame:
    def __init__(self, frame: wire.Sparse) -> None:
        self.frame = frame

    @functools.cached_property
    def place(self) -> dict[str, int]:
        return {key: at for at, key in enumerate(self.frame.keys)}

    @functools.cached_property
    def order(self) -> np.ndarray:
        return np.argsort(self.frame.index, kind="stable")

    @functools.cached_property
    def edges(self) -> np.ndarray:
        """The points of key k are ``order[edges[k]:edges[k + 1]]``."""
        return np.searchsorted(self.frame.index[self.order], np.arange(len(self.frame.keys) + 1))

    def pieces(self, keys: Iterable[str]) -> Iterator[tuple[str, Piece]]:
        frame = self.frame
        for key in keys:
            k = self.place.get(key)
            if k is None:
                continue
            mine = self.order[self.edges[k] : self.edges[k + 1]]
            for kind, dtype in ((0, "<f8"), (1, "<i8")):
                at = mine[frame.types[mine] == kind]
                if len(at):
                    yield key, Piece(Axis(frame.records[at], frame.steps[at], frame.times[at]), frame.bits[at].view(dtype))


class HotBatch:
    """A decoded segment, as it stays in memory."""

    def __init__(self, writer: str, batch: wire.Batch) -> None:
        self.writer, self.run, self.first, self.last = writer, batch.run, batch.first, batch.last
        self.frames: list[DenseFrame | SparseFrame] = [
            SparseFrame(frame) if isinstance(frame, wire.Sparse) else DenseFrame(batch.run, frame) for frame in batch.frames if frame.points
        ]

    @property
    def index_bytes(self) -> int:
        """About what finding keys in its sparse frames will take."""
        return sum(200 * len(each.frame.keys) + 8 * len(each.frame.index) for each in self.frames if isinstance(each, SparseFrame))

    def pieces(self, keys: Sequence[str]) -> Iterator[tuple[str, Piece]]:
        for frame in self.frames:
            yield from frame.pieces(keys)


def places(run: str, keylist: str, known: wire.Keylist | None = None) -> dict[str, int] | None:
    """Where each key stands in a key list of the run; None if the server does not know the list."""
    found = caches.hot.get((run, keylist))
    if found is None:
        known = known or metric_store().keylist(run, keylist)
        if known is None:
            return None
        found = {key: at for at, key in enumerate(known[1])}
        caches.hot.put((run, keylist), found, 120 * len(found) + 200)
    return found


class Sieve:
    """Whether a segment may hold one of the keys, told from its key lists alone."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys
        self._known: dict[tuple[str, str], bool] = {}

    def lets_through(self, head: Head) -> bool:
        found = self._known.get((head.run, head.keylists))
        if found is None:
            found = self._known[head.run, head.keylists] = any(self._holds(head.run, name) for name in head.keylists.split())
        return found

    def _holds(self, run: str, name: str) -> bool:
        if name == "*":
            return True
        at_of = places(run, name)
        return at_of is None or any(key in at_of for key in self.keys)


def batches(cursor, heads: Sequence[Head]) -> list[HotBatch]:
    """These segments decoded, from memory or the database, in any order. ``cursor``: of the snapshot that told of them."""
    found: list[HotBatch] = []
    missing: dict[tuple[str, str], list[int]] = defaultdict(list)
    for head in heads:
        batch = caches.hot.get((head.writer, head.first))
        if batch is None:
            missing[head.run, head.writer].append(head.first)
        else:
            found.append(batch)
    for (run, writer), firsts in missing.items():
        for start in range(0, len(firsts), BODIES_A_STATEMENT):
            found += _read(cursor, run, writer, firsts[start : start + BODIES_A_STATEMENT])
    return found


def _read(cursor, run: str, writer: str, firsts: list[int]) -> list[HotBatch]:
    cursor.execute(
        'SELECT "first", encoding, body FROM tracker_metricsegment '  # noqa: S608
        f'WHERE run_id = %s AND writer_id = %s AND "first" IN ({", ".join(["%s"] * len(firsts))})',
        [run, writer, *firsts],
    )
    bodies = {first: (encoding, body) for first, encoding, body in cursor.fetchall()}
    lookup = metric_store().lookup(run)

    def decoded(first: int) -> tuple[HotBatch, int]:
        encoding, body = bodies[first]
        raw = inflate(bytes(body), encoding)
        batch = HotBatch(writer, wire.decode(raw, lookup))
        return batch, len(raw) + 1000 + batch.index_bytes

    return [caches.hot.once((writer, first), lambda first=first: decoded(first)) for first in bodies]  # type: ignore[misc]
