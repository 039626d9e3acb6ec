"""Block objects, version 1 (docs/formats.md): one writer's contiguous records, immutable, columns found without decoding the rest."""

from __future__ import annotations

import functools
import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pcodec import ChunkConfig, standalone

from tracker.domain.errors import EncoreError
from tracker.domain.ids import id_bytes, id_from_bytes
from tracker.store import pyramid_codec as pyramid
from tracker.store.wire import Dense, Sparse

MAGIC = b"ENCOREB1"
HEAD = struct.Struct("<8sIIIIQQ16sII")  # magic, D, axes, columns, names bytes, first, last, writer, crc, flags
CHECKED = 56
"""Bytes of the head before its checksum, which covers them too."""
HAS_PYRAMID = 1
"""The flag of a block whose directory ends with the table of its pyramids."""
RAW, PCODEC = 0, 1
LEVEL = 5
"""Of pcodec: level 8 takes 1.7 times the CPU and saves 1 %."""
SHORT = 8
"""Columns of fewer rows than this stay raw: pcodec's own header is larger than what it saves."""

AXIS = np.dtype(
    [
        ("rows", "<u4"), ("codec", "u1"), ("zero", "u1", 3),
        ("records_at", "<u8"), ("records_bytes", "<u4"), ("records_crc", "<u4"),
        ("steps_at", "<u8"), ("steps_bytes", "<u4"), ("steps_crc", "<u4"),
        ("times_at", "<u8"), ("times_bytes", "<u4"), ("times_crc", "<u4"),
        ("lo_step", "<i8"), ("hi_step", "<i8"), ("lo_time", "<i8"), ("hi_time", "<i8"), ("zero2", "<u8"),
    ]
)  # fmt: skip
COLUMN = np.dtype(
    [
        ("hash", "<u8"), ("axis", "<u4"), ("type", "u1"), ("codec", "u1"), ("zero", "<u2"),
        ("at", "<u8"), ("bytes", "<u4"), ("crc", "<u4"), ("name_at", "<u4"), ("name_bytes", "<u4"), ("rows", "<u4"), ("nan", "<u4"),
        ("min", "<i8"), ("max", "<i8"), ("sum", "<f8"), ("last", "<i8"), ("last_step", "<i8"), ("inf", "<u4"), ("zero2", "<u4"),
    ]
)  # fmt: skip
assert (HEAD.size, AXIS.itemsize, COLUMN.itemsize) == (64, 96, 96)
F64, I64 = 0, 1


class DamagedBlock(EncoreError):
    """The bytes are no block of a version this program reads, or their checksum is wrong.

    Where it was met while reading, ``run``, ``object_key`` and ``key`` (None: the directory, so every key in it) say whose it is.
    """

    code, status = "damaged_block", 500
    run: str | None = None
    key: str | None = None
    object_key: str | None = None

    def at(self, run: str, key: str | None, object_key: str) -> DamagedBlock:
        """The same with its place told."""
        what = "the run" if key is None else f"metric {key!r} of run"
        found = DamagedBlock(
            f"Points of {what} {run} cannot be read: block {object_key} is damaged ({self.message}). Restore the object from a backup.",
            run=run, key=key, object_key=object_key,
        )  # fmt: skip
        found.run, found.key, found.object_key = run, key, object_key
        return found


def key_hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


@dataclass
class Encoded:
    data: bytes
    directory_bytes: int
    points: int
    lo_step: int
    hi_step: int


# -- writing ------------------------------------------------------------------------------------------------------------------------


def encode(writer: str, first: int, last: int, frames: list[Dense | Sparse]) -> Encoded:
    """One block of all points in ``frames`` (in order of records). The caller sees to it that first … last is all they cover."""
    builder = _Builder(first)
    dense: dict[str, list[Dense]] = {}
    for frame in frames:
        if isinstance(frame, Dense) and frame.points:
            dense.setdefault(frame.keylist, []).append(frame)
    for group in dense.values():
        builder.add_dense(group)
    builder.add_sparse([frame for frame in frames if isinstance(frame, Sparse) and frame.points])
    return builder.finish(writer, first, last)


class _Builder:
    def __init__(self, first: int) -> None:
        self.first = first
        self.axes: list[tuple] = []
        self.columns: list[np.ndarray] = []
        self.names = bytearray()
        self.name_at: dict[str, tuple[int, int]] = {}
        self.data: list[bytes] = []
        self.at = 0
        self.axis_pyramids: dict[int, bytes] = {}
        self.column_pyramids: dict[int, bytes] = {}
        """By place in ``columns`` before they are sorted."""
        self.column_count = 0

    def _store(self, raw: bytes) -> tuple[int, int, int]:
        at = self.at
        self.data.append(raw)
        self.at += len(raw)
        if pad := -len(raw) % 8:
            self.data.append(bytes(pad))
            self.at += pad
        return at, len(raw), zlib.crc32(raw)

    def _axis(self, records: np.ndarray, steps: np.ndarray, times: np.ndarray) -> int:
        parts = [(records - self.first).astype("<u4"), np.ascontiguousarray(steps, "<i8"), np.ascontiguousarray(times, "<i8")]
        packed = [_pack(part) for part in parts]
        # One codec for the three: an axis is read whole.
        codec = PCODEC if all(c == PCODEC for c, _ in packed) else RAW
        raws = [raw if codec == PCODEC else part.tobytes() for part, (_, raw) in zip(parts, packed, strict=True)]
        spans = [number for raw in raws for number in self._store(raw)]
        bounds = (steps.min(), steps.max(), times.min(), times.max())
        if pyramid.has_pyramid(records, steps):
            self.axis_pyramids[len(self.axes)] = pyramid.axis_bytes(pyramid.of_axis(parts[1], parts[2]), _pack)
        self.axes.append((len(steps), codec, (0, 0, 0), *spans, *bounds, 0))
        return len(self.axes) - 1

    def _name(self, key: str) -> tuple[int, int]:
        place = self.name_at.get(key)
        if place is None:
            raw = key.encode()
            place = self.name_at[key] = (len(self.names), len(raw))
            self.names += raw
        return place

    def add_dense(self, group: list[Dense]) -> None:
        joined = [np.concatenate([getattr(f, name) for f in group]) for name in ("records", "steps", "times")]
        axis = self._axis(*joined)
        matrix = group[0].matrix if len(group) == 1 else np.concatenate([f.matrix for f in group], axis=1)
        types = np.frombuffer(group[0].types.encode(), "u1") == ord("q")
        entries = np.zeros(len(matrix), COLUMN)
        entries["axis"], entries["type"], entries["rows"] = axis, types, matrix.shape[1]
        entries["last"], entries["last_step"] = matrix[:, -1], joined[1][-1]
        for kind, rows in ((F64, np.flatnonzero(~types)), (I64, np.flatnonzero(types))):
            if len(rows):
                statistics(entries, rows, kind, matrix if len(rows) == len(matrix) else matrix[rows])
        for row, key in enumerate(group[0].keys):
            self._column(entries[row : row + 1], key, matrix[row], bool(types[row]))
        self.columns.append(entries)

    def add_sparse(self, frames: list[Sparse]) -> None:
        """One axis for each key (and type, should a key change it)."""
        if not frames:
            return
        ids: dict[str, int] = {}
        parts = []
        for frame in frames:
            local = np.fromiter((ids.setdefault(key, len(ids)) for key in frame.keys), np.int64, len(frame.keys))
            parts.append(local[frame.index] * 2 + frame.types)
        group = np.concatenate(parts)
        order = np.argsort(group, kind="stable")
        group = group[order]
        records, steps, times, bits = (
            np.concatenate([getattr(f, n) for f in frames])[order] for n in ("records", "steps", "times", "bits")
        )
        starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
        names = list(ids)
        for start, end in zip(starts, np.r_[starts[1:], len(group)], strict=True):
            part = slice(start, end)
            axis = self._axis(records[part], steps[part], times[part])
            kind = int(group[start]) & 1
            entry = np.zeros(1, COLUMN)
            entry["axis"], entry["type"], entry["rows"] = axis, kind, end - start
            entry["last"], entry["last_step"] = bits[end - 1], steps[end - 1]
            statistics(entry, np.array([0]), kind, bits[part].reshape(1, -1))
            self._column(entry, names[int(group[start]) >> 1], bits[part], bool(kind))
            self.columns.append(entry)

    def _column(self, entry: np.ndarray, key: str, bits: np.ndarray, is_int: bool) -> None:
        values = bits if is_int else bits.view("<f8")
        codec, raw = _pack(values)
        if self.axis_pyramids and int(entry[0]["axis"]) in self.axis_pyramids:
            self.column_pyramids[self.column_count] = pyramid.column_bytes(pyramid.of_column(values), _pack)
        self.column_count += 1
        at, size, crc = self._store(raw)
        name_at, name_bytes = self._name(key)
        entry[0]["hash"] = key_hash(key)
        for name, value in (("codec", codec), ("at", at), ("bytes", size), ("crc", crc), ("name_at", name_at), ("name_bytes", name_bytes)):
            entry[0][name] = value

    def finish(self, writer: str, first: int, last: int) -> Encoded:
        axes = np.array(self.axes, AXIS)
        columns = np.concatenate(self.columns) if self.columns else np.zeros(0, COLUMN)
        order = np.lexsort((columns["axis"], columns["hash"]))
        columns = columns[order]
        names = bytes(self.names) + bytes(-len(self.names) % 8)
        table = self._pyramid_table(order)
        directory_bytes = axes.nbytes + columns.nbytes + len(names) + table.nbytes
        shift = HEAD.size + directory_bytes
        columns["at"] += shift
        for name in ("records_at", "steps_at", "times_at"):
            axes[name] += shift
        table["at"] += shift
        directory = axes.tobytes() + columns.tobytes() + names + table.tobytes()
        flags = HAS_PYRAMID if len(table) else 0
        head = (MAGIC, directory_bytes, len(axes), len(columns), len(names), first, last, id_bytes(writer))
        head = HEAD.pack(*head, zlib.crc32(directory, zlib.crc32(HEAD.pack(*head, 0, 0)[:CHECKED])), flags)
        lo, hi = (int(axes["lo_step"].min()), int(axes["hi_step"].max())) if len(axes) else (0, 0)
        points = int(columns["rows"].astype(np.int64).sum())
        return Encoded(b"".join([head, directory, *self.data]), directory_bytes, points, lo, hi)

    def _pyramid_table(self, order: np.ndarray) -> np.ndarray:
        """Stores the pyramids behind all columns, those of one axis side by side, so that a chart of many keys reads them in one go."""
        rows = []
        axis_of = np.concatenate([columns["axis"] for columns in self.columns]) if self.columns else np.zeros(0, "<u4")
        place = np.argsort(order)
        for axis, raw in self.axis_pyramids.items():
            rows.append((pyramid.AXES + axis, *self._stored(raw)))
            for column in np.flatnonzero(axis_of == axis).tolist():
                rows.append((int(place[column]), *self._stored(self.column_pyramids[column])))
        return np.sort(np.array(rows, pyramid.TABLE), order="what")

    def _stored(self, raw: bytes) -> tuple[int, int, int, int]:
        at, size, crc = self._store(raw)
        return size, at, crc, 0


def _pack(column: np.ndarray) -> tuple[int, bytes]:
    column = np.ascontiguousarray(column)
    if len(column) >= SHORT:
        packed = standalone.simple_compress(column, _config())
        # The originals are deleted after this: look once that what was packed is what was there, to the bit.
        if len(packed) < column.nbytes and np.array_equal(_bits(standalone.simple_decompress(packed)), _bits(column)):
            return PCODEC, packed
    return RAW, column.tobytes()


def _bits(column: np.ndarray) -> np.ndarray:
    return column.view(f"u{column.dtype.itemsize}")


@functools.lru_cache(1)
def _config() -> ChunkConfig:
    return ChunkConfig(compression_level=LEVEL)


def statistics(entries: np.ndarray, rows: np.ndarray, kind: int, bits: np.ndarray) -> None:
    """min, max, sum, NaN and Inf counts of each row of ``bits`` into ``entries[rows]``; the first two over what is not NaN."""
    if kind == I64:
        entries["min"][rows], entries["max"][rows] = bits.min(axis=1), bits.max(axis=1)
        entries["sum"][rows] = bits.sum(axis=1, dtype="f8")
        return
    values = bits.view("<f8")
    with np.errstate(invalid="ignore", over="ignore"):
        total = values.sum(axis=1)
        finite = np.isfinite(total)
        entries["min"][rows] = np.fmin.reduce(values, axis=1).view("<i8")
        entries["max"][rows] = np.fmax.reduce(values, axis=1).view("<i8")
        if not finite.all():  # rare: look closer only at rows that hold NaN or Inf
            odd = np.flatnonzero(~finite)
            nan = np.isnan(values[odd])
            total[odd] = np.where(nan, 0.0, values[odd]).sum(axis=1)
            entries["nan"][rows[odd]] = nan.sum(axis=1)
            entries["inf"][rows[odd]] = np.isinf(values[odd]).sum(axis=1)
    entries["sum"][rows] = total


# -- reading ------------------------------------------------------------------------------------------------------------------------


class Directory:
    """The first 64 + D bytes of a block: what it holds and where, with nothing decoded."""

    def __init__(self, head: bytes) -> None:
        if len(head) < HEAD.size:
            raise DamagedBlock("fewer than 64 bytes")
        magic, size, axes, columns, names, self.first, self.last, writer, crc, flags = HEAD.unpack_from(head)
        if magic != MAGIC or flags & ~HAS_PYRAMID:
            raise DamagedBlock(f"not a block of version 1: it begins with {magic!r}, flags {flags}")
        table_at = axes * AXIS.itemsize + columns * COLUMN.itemsize + names
        rest = size - table_at
        is_whole = rest >= 0 and rest % pyramid.TABLE.itemsize == 0 if flags & HAS_PYRAMID else rest == 0
        if not is_whole or len(head) < HEAD.size + size:
            raise DamagedBlock("its directory is cut short")
        directory = head[HEAD.size : HEAD.size + size]
        if zlib.crc32(directory, zlib.crc32(head[:CHECKED])) != crc:
            raise DamagedBlock("its directory's checksum is wrong")
        self.writer = id_from_bytes(writer)
        self.axes = np.frombuffer(directory, AXIS, axes)
        self.columns = np.frombuffer(directory, COLUMN, columns, axes * AXIS.itemsize)
        self._hashes = np.ascontiguousarray(self.columns["hash"])
        self._names = directory[table_at - names : table_at]
        self.pyramids = np.frombuffer(directory, pyramid.TABLE, rest // pyramid.TABLE.itemsize, table_at)
        self.bytes = size + self._hashes.nbytes

    def name(self, column: int) -> str:
        entry = self.columns[column]
        at = int(entry["name_at"])
        return self._names[at : at + int(entry["name_bytes"])].decode()

    def find(self, key: str) -> list[int]:
        """The columns of ``key``, one for each axis it lies on; empty where it is not in the block."""
        wanted = np.uint64(key_hash(key))
        start, end = np.searchsorted(self._hashes, wanted, "left"), np.searchsorted(self._hashes, wanted, "right")
        return [column for column in range(int(start), int(end)) if self.name(column) == key]  # two names may share a hash

    def find_all(self, keys: Sequence[str], hashes: np.ndarray) -> list[tuple[str, int]]:
        """(key, column) of all these keys at once; ``hashes``: their ``key_hash`` as uint64."""
        starts = np.searchsorted(self._hashes, hashes, "left").tolist()
        ends = np.searchsorted(self._hashes, hashes, "right").tolist()
        return [
            (key, column)
            for key, start, end in zip(keys, starts, ends, strict=True)
            if start < end
            for column in range(start, end)
            if self.name(column) == key
        ]

    def pyramid(self, what: int) -> np.void | None:
        """The table's row for a column's place, or ``pyramid_codec.AXES`` + an axis's; None where it has none."""
        at = int(np.searchsorted(self.pyramids["what"], what)) if len(self.pyramids) else 0
        return self.pyramids[at] if at < len(self.pyramids) and self.pyramids["what"][at] == what else None

    def all_names(self) -> list[str]:
        """The name of each column, in their order. Of names in ASCII ten times faster than ``name`` one by one."""
        starts = self.columns["name_at"].tolist()
        ends = (self.columns["name_at"].astype(np.int64) + self.columns["name_bytes"]).tolist()
        names = self._names
        if names.isascii():
            text = names.decode("ascii")
            return [text[a:b] for a, b in zip(starts, ends, strict=True)]
        return [names[a:b].decode() for a, b in zip(starts, ends, strict=True)]

    def keys(self) -> list[str]:
        return list(dict.fromkeys(self.name(column) for column in range(len(self.columns))))


@dataclass
class Axis:
    records: np.ndarray
    steps: np.ndarray
    times: np.ndarray

    @functools.cached_property
    def is_rising(self) -> bool:
        """Neither records nor steps ever fall, so that a window of it is a slice."""
        return bool((self.records[1:] >= self.records[:-1]).all() and (self.steps[1:] >= self.steps[:-1]).all())

    @functools.cached_property
    def is_strict(self) -> bool:
        """No two points have one step, and none has a lower one than a point before."""
        return bool((self.steps[1:] > self.steps[:-1]).all())

    @property
    def nbytes(self) -> int:
        return self.records.nbytes + self.steps.nbytes + self.times.nbytes


def axis_spans(entry) -> list[tuple[int, int]]:
    return [(int(entry[f"{n}_at"]), int(entry[f"{n}_at"]) + int(entry[f"{n}_bytes"])) for n in ("records", "steps", "times")]


def column_span(entry) -> tuple[int, int]:
    return int(entry["at"]), int(entry["at"]) + int(entry["bytes"])


def pyramid_span(directory: Directory, what: int) -> tuple[int, int]:
    entry = directory.pyramid(what)
    if entry is None:
        raise DamagedBlock("its directory names no such pyramid")
    return int(entry["at"]), int(entry["at"]) + int(entry["bytes"])


def decode_axis(directory: Directory, entry, raws: list[bytes]) -> Axis:
    rows, codec = int(entry["rows"]), int(entry["codec"])
    crcs = [int(entry[f"{n}_crc"]) for n in ("records", "steps", "times")]
    arrays = [_unpack(raw, crc, codec, dtype, rows) for raw, crc, dtype in zip(raws, crcs, ("<u4", "<i8", "<i8"), strict=True)]
    return Axis(arrays[0].astype(np.int64) + directory.first, arrays[1], arrays[2])


def decode_column(entry, raw: bytes) -> np.ndarray:
    """Values as float64 or int64, exact to the bit."""
    return _unpack(raw, int(entry["crc"]), int(entry["codec"]), "<i8" if entry["type"] == I64 else "<f8", int(entry["rows"]))


def decode_pyramid(directory: Directory, what: int, raw: bytes) -> pyramid.AxisEntries | pyramid.ColumnEntries:
    """Of what ``directory.pyramid(what)`` names."""
    entry = directory.pyramid(what)
    if entry is None or zlib.crc32(raw) != int(entry["crc"]):
        raise DamagedBlock("a pyramid's checksum is wrong")
    try:
        if what >= pyramid.AXES:
            return pyramid.axis_from(raw, int(directory.axes["rows"][what - pyramid.AXES]), _unpacked)
        column = directory.columns[what]
        return pyramid.column_from(raw, int(column["rows"]), "<i8" if column["type"] == I64 else "<f8", _unpacked)
    except (struct.error, ValueError) as problem:
        raise DamagedBlock(f"a pyramid cannot be decoded: {problem}") from None


def _unpack(raw: bytes, crc: int, codec: int, dtype: str, rows: int) -> np.ndarray:
    if zlib.crc32(raw) != crc:
        raise DamagedBlock("a column's checksum is wrong")
    return _unpacked(raw, codec, dtype, rows)


def _unpacked(raw: bytes, codec: int, dtype: str, rows: int) -> np.ndarray:
    if codec == RAW:
        if len(raw) != rows * np.dtype(dtype).itemsize:
            raise DamagedBlock("a column has another length than its rows")
        return np.frombuffer(raw, dtype)
    if codec != PCODEC:
        raise DamagedBlock(f"codec {codec} is not known to this program")
    out = np.empty(rows, dtype)
    try:
        progress = standalone.simple_decompress_into(raw, out)
    except (RuntimeError, TypeError) as problem:
        raise DamagedBlock(f"a column cannot be decoded: {problem}") from None
    if not progress.finished or progress.n_processed != rows:
        raise DamagedBlock("a column has another length than its rows")
    return out


def decode(data: bytes) -> tuple[Directory, list[tuple[str, Axis, np.ndarray]]]:
    """All of a block: (key, axis, values) for each column. For compaction, exports and tests."""
    directory = Directory(data)
    axes = [decode_axis(directory, entry, [data[a:b] for a, b in axis_spans(entry)]) for entry in directory.axes]
    found = []
    for column, entry in enumerate(directory.columns):
        start, end = column_span(entry)
        found.append((directory.name(column), axes[int(entry["axis"])], decode_column(entry, data[start:end])))
    return directory, found
