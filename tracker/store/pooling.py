"""Points that came one by one, for a block: put together by key. Long keys get columns of their own, short ones share some.

A column of its own costs about 250 bytes beside its points. With 100,000 names, or ever-changing subsets of keys, most are far shorter
than that: they lie one after the other on a shared axis in a shared column, and their entries say from which row on (``sliced``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracker.store import blocks

if TYPE_CHECKING:
    from tracker.store.blocks import Builder

OWN_ROWS = 256
"""From so many points on a key has a column of its own."""
MANY = 64
"""With fewer keys than this each has a column of its own however short: what could be saved is too little to look for."""
SHARED_ROWS = 4096
"""Of a shared column: what is decoded for a short key beside it."""


@dataclass(slots=True)
class Points:
    """Points of several keys, in order of records. ``index`` points into ``keys``; ``types`` 0 = f64, 1 = i64; ``bits`` int64."""

    keys: Sequence[str]
    index: np.ndarray
    types: np.ndarray
    records: np.ndarray
    steps: np.ndarray
    times: np.ndarray
    bits: np.ndarray


def from_dense(keys: Sequence[str], types: str, records: np.ndarray, steps: np.ndarray, times: np.ndarray, matrix: np.ndarray) -> Points:
    """Rows of several keys (``matrix``: keys × rows) as points, key by key."""
    rows = len(records)
    index = np.repeat(np.arange(len(keys)), rows)
    kinds = np.repeat(np.frombuffer(types.encode(), "u1") == ord("q"), rows).astype("u1")
    tiled = [np.tile(part, len(keys)) for part in (records, steps, times)]
    return Points(keys, index, kinds, *tiled, np.ascontiguousarray(matrix).reshape(-1))


def add(builder: Builder, parts: list[Points]) -> None:
    """All these points as columns of ``builder``; a key's points (of one type) come to lie together, in order of records."""
    if not parts:
        return
    ids: dict[str, int] = {}
    local = []
    for part in parts:
        place = np.fromiter((ids.setdefault(key, len(ids)) for key in part.keys), np.int64, len(part.keys))
        local.append(place[part.index])
    names = list(ids)
    hashes = np.fromiter((blocks.key_hash(name) for name in names), "<u8", len(names))
    rank = np.arange(len(names))
    if are_many := len(names) >= MANY:
        rank[np.argsort(hashes, kind="stable")] = np.arange(len(names))  # by hash, as the directory has them
    types, records, steps, times, bits = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("types", "records", "steps", "times", "bits")
    )
    which = np.concatenate(local)
    group = types.astype(np.int64) * len(names) + rank[which] if are_many else rank[which] * 2 + types
    order = np.lexsort((records, group))
    group, which, types, records, steps, times, bits = (each[order] for each in (group, which, types, records, steps, times, bits))
    edges = np.flatnonzero(np.r_[True, group[1:] != group[:-1], True])
    pool = _Pool(builder, names, hashes, edges, which, types, records, steps, times, bits)
    counts = np.diff(edges)
    long = counts >= (OWN_ROWS if are_many else 0)
    pool.add_long(np.flatnonzero(long).tolist())
    for stretch in _stretches(counts, long, types[edges[:-1]]):
        pool.add_short(stretch)


def _stretches(counts: np.ndarray, long: np.ndarray, types: np.ndarray) -> list[range]:
    """Neighbours of one type that are all short, as many as fill a shared column."""
    found, start, rows = [], 0, 0
    for at, (count, is_long, kind) in enumerate(zip(counts.tolist(), long.tolist(), types.tolist(), strict=True)):
        if at > start and (is_long or rows + count > SHARED_ROWS or kind != types[start]):
            found.append(range(start, at))
            start, rows = at, 0
        if is_long:
            start = at + 1
        else:
            rows += count
    if start < len(counts):
        found.append(range(start, len(counts)))
    return found


@dataclass(slots=True)
class _Pool:
    """Points in order of (type, hash, record); group ``i`` is rows edges[i] … edges[i + 1]."""

    builder: Builder
    names: list[str]
    hashes: np.ndarray
    edges: np.ndarray
    which: np.ndarray
    types: np.ndarray
    records: np.ndarray
    steps: np.ndarray
    times: np.ndarray
    bits: np.ndarray

    def _rows(self, group: int) -> slice:
        return slice(int(self.edges[group]), int(self.edges[group + 1]))

    def add_long(self, groups: list[int]) -> None:
        """Columns of their own; those of the same rows share their axis, as a frame of several keys does."""

        def axis(group: int) -> tuple:
            part = self._rows(group)
            if part.stop - part.start < OWN_ROWS:
                return (group,)
            return self.records[part].tobytes(), self.steps[part].tobytes(), self.times[part].tobytes()

        alike: dict[tuple, list[int]] = {}
        for group in groups:
            alike.setdefault(axis(group), []).append(group)
        for mine in alike.values():
            first = self._rows(mine[0])
            keys = tuple(self.names[self.which[self.edges[group]]] for group in mine)
            types = "".join("dq"[self.types[self.edges[group]]] for group in mine)
            matrix = np.stack([self.bits[self._rows(group)] for group in mine])
            self.builder.add_dense(keys, types, self.records[first], self.steps[first], self.times[first], matrix)

    def add_short(self, groups: range) -> None:
        """One shared column on one axis."""
        part = slice(int(self.edges[groups.start]), int(self.edges[groups.stop]))
        starts = self.edges[groups.start : groups.stop] - part.start
        counts = np.diff(self.edges[groups.start : groups.stop + 1])
        bits, kind = self.bits[part], int(self.types[part.start])
        which = self.which[part][starts]
        entries = np.zeros(len(groups), blocks.COLUMN)
        entries["axis"] = self.builder.axis(self.records[part], self.steps[part], self.times[part])
        entries["type"], entries["sliced"], entries["row"], entries["rows"] = kind, 1, starts, counts
        entries["hash"] = self.hashes[which]
        codec, raw = blocks.pack(bits if kind == blocks.I64 else bits.view("<f8"))
        entries["codec"] = codec
        entries["at"], entries["bytes"], entries["crc"] = self.builder.store(raw)
        places = [self.builder.name(self.names[at]) for at in which.tolist()]
        entries["name_at"], entries["name_bytes"] = zip(*places, strict=True)
        _statistics(entries, kind, bits, starts)
        ends = starts + counts - 1
        entries["last"], entries["last_step"] = bits[ends], self.steps[part][ends]
        self.builder.columns.append(entries)


def _statistics(entries: np.ndarray, kind: int, bits: np.ndarray, starts: np.ndarray) -> None:
    """As ``blocks.statistics``, of stretches of one array."""
    if kind == blocks.I64:
        entries["min"], entries["max"] = np.minimum.reduceat(bits, starts), np.maximum.reduceat(bits, starts)
        entries["sum"] = np.add.reduceat(bits.astype("f8"), starts)
        return
    values = bits.view("<f8")
    nan = np.isnan(values)
    with np.errstate(invalid="ignore", over="ignore"):
        entries["min"] = np.fmin.reduceat(values, starts).view("<i8")
        entries["max"] = np.fmax.reduceat(values, starts).view("<i8")
        entries["sum"] = np.add.reduceat(np.where(nan, 0.0, values), starts)
    entries["nan"] = np.add.reduceat(nan, starts, dtype="u4")
    entries["inf"] = np.add.reduceat(np.isinf(values), starts, dtype="u4")
