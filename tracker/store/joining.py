"""Several blocks of one writer made into one: what lay on equal axes comes to lie on one axis, a key's scattered points together.

Memory: the blocks themselves, what is made of them, one column of a frame, and ``POOL_POINTS`` of points that came one by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tracker.store import blocks, pooling
from tracker.store.blocks import Axis, Builder, DamagedBlock, Directory, Encoded

POOL_POINTS = 100_000


def join(writer: str, parts: list[bytes]) -> Encoded:
    """One block of all points of these blocks, which are one writer's, in order of records. Raises DamagedBlock for what it cannot read."""
    opened = [_Block(data) for data in parts]
    if any(each.directory.writer != writer for each in opened):
        raise DamagedBlock(f"a block is not of writer {writer}")
    builder = Builder(min(each.directory.first for each in opened), max(each.directory.last for each in opened))
    frames: dict[tuple[tuple[str, ...], bytes], list[_Frame]] = {}
    loose: list[list[np.ndarray]] = [[np.zeros(0, np.int64)] for _ in opened]
    for at, block in enumerate(opened):
        for axis, columns in block.by_axis():
            entries = block.directory.columns[columns]
            if len(columns) == 1 or entries["sliced"].any():
                loose[at].append(columns)
                continue
            keys = tuple(block.directory.names_of(columns))
            frames.setdefault((keys, entries["type"].tobytes()), []).append(_Frame(block, axis, columns, at))
    for (keys, types), mine in frames.items():
        if sum(frame.rows for frame in mine) < blocks.SHORT:
            for frame in mine:
                loose[frame.at].append(frame.columns)
        else:
            _join_frames(builder, keys, np.frombuffer(types, "u1"), mine)
    for some in _portions(opened, [np.concatenate(each) for each in loose]):
        pooling.add(builder, some)
    points = sum(each.points for each in opened)
    del opened, frames, loose  # large directories, while another one is made
    made = builder.finish(writer)
    if points != made.points:
        raise RuntimeError(f"blocks of {points} points of writer {writer} became one of {made.points}; not stored")
    return made


@dataclass(slots=True)
class _Block:
    data: bytes
    directory: Directory = field(init=False)
    _last: dict[str, tuple[int, object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory = Directory(self.data)

    @property
    def points(self) -> int:
        return int(self.directory.columns["rows"].astype(np.int64).sum())

    def by_axis(self) -> Iterator[tuple[int, np.ndarray]]:
        """(axis, its columns by rising hash)."""
        order = np.argsort(self.directory.columns["axis"], kind="stable")
        of = self.directory.columns["axis"][order]
        edges = np.flatnonzero(np.r_[True, of[1:] != of[:-1], True]) if len(of) else np.zeros(1, np.int64)
        for start, end in itertools.pairwise(edges):
            yield int(of[start]), order[start:end]

    def axis(self, axis: int) -> Axis:
        kept = self._last.get("axis")
        if kept is None or kept[0] != axis:
            entry = self.directory.axes[axis]
            spans = [self.data[a:b] for a, b in blocks.axis_spans(entry)]
            self._last["axis"] = kept = axis, blocks.decode_axis(self.directory, entry, spans)
        return kept[1]  # type: ignore[return-value]

    def column(self, column: int) -> np.ndarray:
        """The int64 bits of all values of a column that is not sliced."""
        entry = self.directory.columns[column]
        start, end = blocks.column_span(entry)
        return blocks.decode_column(entry, self.data[start:end]).view("<i8")

    def shared(self, column: int) -> np.ndarray:
        entry = self.directory.columns[column]
        start, end = blocks.column_span(entry)
        kept = self._last.get("shared")
        if kept is None or kept[0] != start:
            self._last["shared"] = kept = start, blocks.decode_shared(entry, self.data[start:end]).view("<i8")
        return kept[1]  # type: ignore[return-value]


# -- frames --------------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Frame:
    """An axis with columns of all its rows."""

    block: _Block
    axis: int
    columns: np.ndarray
    at: int

    @property
    def rows(self) -> int:
        return int(self.block.directory.axes[self.axis]["rows"])


def _join_frames(builder: Builder, keys: tuple[str, ...], types: np.ndarray, frames: list[_Frame]) -> None:
    """Column by column, so that only one is in memory."""
    axes = [frame.block.axis(frame.axis) for frame in frames]
    records, steps, times = (np.concatenate([getattr(axis, name) for axis in axes]) for name in ("records", "steps", "times"))
    order = np.argsort(records, kind="stable") if (records[1:] < records[:-1]).any() else None
    if order is not None:
        records, steps, times = records[order], steps[order], times[order]
    parts = [slice(start, start + blocks.ROWS) for start in range(0, len(records), blocks.ROWS)]
    hashes = frames[0].block.directory.columns["hash"][frames[0].columns]
    made = [builder.entries(hashes, types, records[part], steps[part], times[part]) for part in parts]
    for row, key in enumerate(keys):
        bits = np.concatenate([frame.block.column(int(frame.columns[row])) for frame in frames])
        bits = bits if order is None else bits[order]
        for part, entries in zip(parts, made, strict=True):
            blocks.statistics(entries, np.array([row]), int(types[row]), bits[part].reshape(1, -1))
            builder.column(entries, row, key, bits[part])


# -- points one by one ---------------------------------------------------------------------------------------------------------------


def _portions(opened: list[_Block], columns: list[np.ndarray]) -> Iterator[list[pooling.Points]]:
    """The points of these columns, a bounded part of the keys (by hash) at a time; all points of a key are in the same part."""
    hashes = [block.directory.columns["hash"][mine] for block, mine in zip(opened, columns, strict=True)]
    rows = [block.directory.columns["rows"][mine] for block, mine in zip(opened, columns, strict=True)]
    together = np.concatenate(hashes)
    if not len(together):
        return
    order = np.argsort(together, kind="stable")
    together, total = together[order], np.cumsum(np.concatenate(rows).astype(np.int64)[order])
    ends = np.flatnonzero(np.r_[together[1:] != together[:-1], True])  # of each hash
    below = 0
    lowest = None
    for at in range(len(ends)):
        following = int(total[ends[at + 1]]) if at + 1 < len(ends) else None
        if following is not None and following - below <= POOL_POINTS:
            continue
        highest = together[ends[at]]
        some = []
        for block, mine, its in zip(opened, columns, hashes, strict=True):
            chosen = mine[(its <= highest) & ((its > lowest) if lowest is not None else True)]
            if len(chosen):
                some += _points(block, np.sort(chosen))
        yield some
        lowest, below = highest, int(total[ends[at]])


def _points(block: _Block, columns: np.ndarray) -> list[pooling.Points]:
    found = []
    entries = block.directory.columns[columns]
    of = entries["axis"].astype(np.int64) * 2 + entries["sliced"]
    order = np.argsort(of, kind="stable")  # each axis once
    columns, entries, of = columns[order], entries[order], of[order]
    edges = np.flatnonzero(np.r_[True, of[1:] != of[:-1], True])
    for start, end in itertools.pairwise(edges.tolist()):
        mine, its = columns[start:end], entries[start:end]
        axis = block.axis(int(its["axis"][0]))
        keys = block.directory.names_of(mine)
        if not its["sliced"][0]:
            matrix = np.stack([block.column(column) for column in mine.tolist()])
            types = "".join("dq"[kind] for kind in its["type"].tolist())
            found.append(pooling.from_dense(keys, types, axis.records, axis.steps, axis.times, matrix))
            continue
        # The rows of each column, one after the other.
        counts = its["rows"].astype(np.int64)
        rows = np.repeat(its["row"] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        if int(rows.max()) >= len(axis.records):
            raise DamagedBlock("a column is longer than what it is a slice of")
        index = np.repeat(np.arange(len(mine)), counts)
        bits = _gathered(block, mine, its, rows, counts)
        types = its["type"][index]
        found.append(pooling.Points(keys, index, types, axis.records[rows], axis.steps[rows], axis.times[rows], bits))
    return found


def _gathered(block: _Block, columns: np.ndarray, entries: np.ndarray, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    if (entries["at"] == entries["at"][0]).all():
        return block.shared(int(columns[0]))[rows]
    starts = np.cumsum(counts) - counts
    parts = zip(columns.tolist(), starts.tolist(), counts.tolist(), strict=True)
    return np.concatenate([block.shared(column)[rows[start : start + count]] for column, start, count in parts])
