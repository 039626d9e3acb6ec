"""Pieces out of block objects: directories first, then only the columns asked for, in few reads, each decoded once for all threads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tracker.store import blocks, caches
from tracker.store.blobs import MissingObject, blob_store
from tracker.store.blocks import DamagedBlock, Directory
from tracker.store.columns import Piece

AT_ONCE = 16
"""Objects of a remote store that are read side by side, over all requests of a process. From a folder one by one is faster."""
WHOLE_BYTES = 256 * 2**10
"""A remote object of at most this comes in one request: a second would cost more than its bytes."""

BLOCKS_AT_ONCE = 256
"""What is held of them undecoded stays below 64 MiB."""


class BlockRow(NamedTuple):
    object_key: str
    directory_bytes: int
    bytes: int
    writer: str
    run: str
    first: int


class BlockReader:
    """Reads for one question. ``damaged`` collects what cannot be read; the rest is answered."""

    def __init__(self) -> None:
        self.damaged: list[DamagedBlock] = []
        self._whole: dict[str, bytes] = {}

    def directories(self, rows: Sequence[BlockRow]) -> Iterator[tuple[BlockRow, Directory]]:
        """The directory of each block, in the order of ``rows``. Raises MissingObject."""
        by_key = {row.object_key: row for row in rows}
        with caches.directories.claim(by_key) as claims:
            mine = [by_key[str(key)] for key in claims.mine]
            for row, raw in _together(self._head, mine):
                self._parsed(claims, row, raw)
        for row in rows:
            found = claims.found.get(row.object_key)
            if found is None and row.object_key in claims.others:
                try:
                    found = claims.wait(row.object_key, lambda row=row: _sized(Directory(self._head(row))))  # type: ignore[misc]
                except DamagedBlock as problem:
                    self.damaged.append(problem.at(row.run, None, row.object_key))
            if found is not None:
                yield row, found

    def _parsed(self, claims, row: BlockRow, raw: bytes) -> None:
        try:
            claims.made(row.object_key, *_sized(Directory(raw)))
        except DamagedBlock as problem:
            self.damaged.append(problem.at(row.run, None, row.object_key))

    def _head(self, row: BlockRow) -> bytes:
        size = blocks.HEAD.size + row.directory_bytes
        if not (_is_remote() and row.bytes <= WHOLE_BYTES):
            return blob_store().read(row.object_key, 0, size)
        raw = self._whole[row.object_key] = blob_store().read(row.object_key, 0, row.bytes)
        return raw

    def pieces(
        self, rows: Sequence[BlockRow], keys: Sequence[str], hashes: np.ndarray, lo_step: int, hi_step: int
    ) -> Iterator[tuple[BlockRow, str, Piece]]:
        """The columns of ``keys`` (``hashes``: their key_hash, uint64) on axes that overlap lo_step … hi_step. Raises MissingObject."""
        for start in range(0, len(rows), BLOCKS_AT_ONCE):
            yield from self._pieces(rows[start : start + BLOCKS_AT_ONCE], keys, hashes, lo_step, hi_step)
            self._whole.clear()

    def _pieces(self, rows: Sequence[BlockRow], keys: Sequence[str], hashes: np.ndarray, lo_step: int, hi_step: int):
        wanted: list[tuple[BlockRow, Directory, str, int, int]] = []
        for row, directory in self.directories(rows):
            there = directory.find_all(keys, hashes)
            if not there:
                continue
            axes = directory.columns["axis"][[column for _, column in there]]
            overlap = (directory.axes["hi_step"][axes] >= lo_step) & (directory.axes["lo_step"][axes] <= hi_step)
            for (key, column), axis, is_wanted in zip(there, axes.tolist(), overlap.tolist(), strict=True):
                if is_wanted:
                    wanted.append((row, directory, key, column, axis))
        found = self._parts(wanted)
        for row, directory, key, column, axis in wanted:
            try:
                piece = piece_of(found, row.object_key, directory, column, axis)
            except DamagedBlock as problem:
                self._note(row, key, problem)
                continue
            if piece is not None:
                yield row, key, piece

    def last_record(self, row: BlockRow, directory: Directory, column: int) -> int:
        """The greatest record of a column: of a key that lies on several axes of a block, which has the last value."""
        axis = int(directory.columns["axis"][column])
        if (end := int(directory.axes["end"][axis])) and not directory.columns["sliced"][column]:
            return directory.first + end - 1
        found = self._parts([(row, directory, directory.name(column), column, axis)])
        piece = piece_of(found, row.object_key, directory, column, axis)
        return row.first if piece is None else int(piece.axis.records[-1])

    def _parts(self, wanted: list[tuple[BlockRow, Directory, str, int, int]]) -> dict[Any, Any]:
        parts: dict[Any, tuple[BlockRow, Directory, str]] = {}
        for row, directory, key, column, axis in wanted:
            parts.setdefault((row.object_key, "axis", axis), (row, directory, key))
            parts[column_part(row.object_key, directory, column)] = (row, directory, key)
        return self.parts(parts)

    def parts(self, parts: Mapping[Any, tuple[BlockRow, Directory, str]]) -> dict[Any, Any]:
        """Each part decoded, by its name (object key, "axis" | "column" | "shared" | "pyramid", which); what is damaged is left out.

        ``parts``: for each name the block, its directory and the key it is wanted for. Raises MissingObject.
        """
        with caches.columns.claim(parts) as claims:
            by_object: dict[str, list[Any]] = {}
            for name in claims.mine:
                by_object.setdefault(name[0], []).append(name)  # type: ignore[index]
            jobs = [(parts[names[0]][1], names) for names in by_object.values()]
            for (_, names), raws in _together(self._raw_parts, jobs):
                for name, raw in zip(names, raws, strict=True):
                    value = self._decoded(parts[name], name, raw)
                    if value is not None:
                        claims.made(name, value, value.nbytes + 200)
        for name in claims.others:
            row, _, key = parts[name]
            try:
                claims.found[name] = claims.wait(name, lambda name=name: self._alone(parts[name], name))  # type: ignore[misc]
            except DamagedBlock as problem:
                self._note(row, _hurt_key(name, key), problem)
        return claims.found

    def _raw_parts(self, job: tuple[Directory, list[Any]]) -> list[list[bytes]]:
        directory, names = job
        spans = [_spans(directory, name) for name in names]
        flat = [span for some in spans for span in some]
        object_key = names[0][0]
        whole = self._whole.get(object_key)
        raws = iter([whole[a:b] for a, b in flat] if whole is not None else blob_store().ranges(object_key, flat))
        return [[next(raws) for _ in some] for some in spans]

    def _decoded(self, part: tuple[BlockRow, Directory, str], name: Any, raw: list[bytes]) -> Any:
        row, directory, key = part
        try:
            return _decode(directory, name, raw)
        except DamagedBlock as problem:
            self._note(row, _hurt_key(name, key), problem)
            return None

    def _note(self, row: BlockRow, key: str | None, problem: DamagedBlock) -> None:
        self.damaged.append(problem.at(row.run, key, row.object_key))

    def _alone(self, part: tuple[BlockRow, Directory, str], name: Any) -> tuple[Any, int]:
        value = _decode(part[1], name, self._raw_parts((part[1], [name]))[0])
        return value, value.nbytes + 200


def _spans(directory: Directory, name: Any) -> list[tuple[int, int]]:
    if name[1] == "axis":
        return blocks.axis_spans(directory.axes[name[2]])
    if name[1] == "pyramid":
        return [blocks.pyramid_span(directory, name[2])]
    return [blocks.column_span(directory.columns[name[2] if name[1] == "column" else _sharing(directory, name[2])])]


def _decode(directory: Directory, name: Any, raw: list[bytes]) -> Any:
    if name[1] == "pyramid":
        return blocks.decode_pyramid(directory, name[2], raw[0])
    if name[1] == "axis":
        return blocks.decode_axis(directory, directory.axes[name[2]], raw)
    if name[1] == "shared":
        return blocks.decode_shared(directory.columns[_sharing(directory, name[2])], raw[0])
    return blocks.decode_column(directory.columns[name[2]], raw[0])


def _hurt_key(name: Any, key: str) -> str | None:
    """The one key that a damaged part is of; None where others may lie on it too."""
    return key if name[1] == "column" else None


def _sharing(directory: Directory, at: int) -> int:
    """One of the columns that are slices of the values at this offset: any of them says how they are stored."""
    return int(np.argmax(directory.columns["at"] == at))


def column_part(object_key: str, directory: Directory, column: int) -> tuple[str, str, int]:
    """The name of what holds a column's values; slices of the same values have the same, so that those are decoded once."""
    if directory.columns["sliced"][column]:
        return object_key, "shared", int(directory.columns["at"][column])
    return object_key, "column", column


def piece_of(parts: Mapping[Any, Any], object_key: str, directory: Directory, column: int, axis: int) -> Piece | None:
    """A column with its axis out of what was read; None where either is damaged. Raises DamagedBlock where they do not fit."""
    points, values = parts.get((object_key, "axis", axis)), parts.get(column_part(object_key, directory, column))
    if points is None or values is None:
        return None
    entry = directory.columns[column]
    if not entry["sliced"]:
        return Piece(points, values)
    start, end = int(entry["row"]), int(entry["row"]) + int(entry["rows"])
    if end > min(len(values), len(points.steps)):
        raise DamagedBlock("a column is longer than what it is a slice of")
    return Piece(blocks.axis_of(points, entry), values[start:end])


def _sized(directory: Directory) -> tuple[Directory, int]:
    return directory, directory.bytes


def _is_remote() -> bool:
    return getattr(blob_store(), "is_remote", False)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_ONCE, thread_name_prefix="block-reads")


Job, Found = TypeVar("Job"), TypeVar("Found")


def _together(read: Callable[[Job], Found], jobs: Iterable[Job]) -> Iterator[tuple[Job, Found]]:
    """Each job with what it read, several at once where the store is far away."""
    jobs = list(jobs)
    if len(jobs) > 1 and _is_remote():
        return zip(jobs, _pool().map(read, jobs), strict=True)
    return ((job, read(job)) for job in jobs)


__all__ = ["BlockReader", "BlockRow", "MissingObject"]
