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
from tracker.store import packing, pooling
from tracker.store import pyramid_codec as pyramid
from tracker.store.wire import Dense, Sparse

MAGIC = b"ENCOREB1"
HEAD = struct.Struct("<8sIIIIQQ16sII")  # magic, D, axes, columns, names bytes, first, last, writer, crc, flags
CHECKED = 56
"""Bytes of the head before its checksum, which covers them too."""
RAW, PCODEC = 0, 1
LEVEL = 5
"""Of pcodec: level 8 takes 1.7 times the CPU and saves 1 %."""
SHORT = 8
"""Columns of fewer rows than this stay raw: pcodec's own header is larger than what it saves. Frames of fewer are pooled, if many."""
ROWS = 65536
"""Of an axis. Longer series have several, so that a window of one is read without the rest."""
RANGE = 2**32
"""Records are stored as 32-bit distances from the block's first."""
PACK_COLUMNS = 64
"""From so many on the directory is stored compressed: it weighs as much as short columns do."""
HAS_PYRAMID, PACKED, SLICED = 1, 2, 4
KNOWN = HAS_PYRAMID | PACKED | SLICED
"""Flags: the directory ends with a table of pyramids (store/pyramid_codec.py); it is packed (store/packing.py); some columns are slices
of what several share (store/pooling.py)."""

AXIS = np.dtype(
    [
        ("rows", "<u4"), ("codec", "u1"), ("zero", "u1", 3),
        ("records_at", "<u8"), ("records_bytes", "<u4"), ("records_crc", "<u4"),
        ("steps_at", "<u8"), ("steps_bytes", "<u4"), ("steps_crc", "<u4"),
        ("times_at", "<u8"), ("times_bytes", "<u4"), ("times_crc", "<u4"),
        ("lo_step", "<i8"), ("hi_step", "<i8"), ("lo_time", "<i8"), ("hi_time", "<i8"), ("end", "<u8"),
    ]
)  # fmt: skip
COLUMN = np.dtype(
    [
        ("hash", "<u8"), ("axis", "<u4"), ("type", "u1"), ("codec", "u1"), ("sliced", "<u2"),
        ("at", "<u8"), ("bytes", "<u4"), ("crc", "<u4"), ("name_at", "<u4"), ("name_bytes", "<u4"), ("rows", "<u4"), ("nan", "<u4"),
        ("min", "<i8"), ("max", "<i8"), ("sum", "<f8"), ("last", "<i8"), ("last_step", "<i8"), ("inf", "<u4"), ("row", "<u4"),
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
    rows: int = 0
    """Of its longest axis."""
    keys: int = 1


# -- writing ------------------------------------------------------------------------------------------------------------------------


def encode(writer: str, first: int, last: int, frames: list[Dense | Sparse]) -> Encoded:
    """One block of all points in ``frames`` (in order of records). The caller sees to it that first … last is all they cover.

    Raises ValueError for a range of 2**32 records or more.
    """
    builder = Builder(first, last)
    dense: dict[str, list[Dense]] = {}
    loose: list[pooling.Points] = []
    for frame in frames:
        if isinstance(frame, Dense) and frame.points:
            dense.setdefault(frame.keylist, []).append(frame)
        elif frame.points:
            loose.append(pooling.Points(frame.keys, frame.index, frame.types, frame.records, frame.steps, frame.times, frame.bits))
    is_short = {name: sum(len(frame.steps) for frame in group) < SHORT for name, group in dense.items()}
    are_many = sum(len(group[0].keys) for name, group in dense.items() if is_short[name]) >= pooling.MANY
    for name, group in dense.items():
        if is_short[name] and are_many:
            loose += [pooling.from_dense(f.keys, f.types, f.records, f.steps, f.times, f.matrix) for f in group]
            continue
        records, steps, times = (np.concatenate([getattr(f, part) for f in group]) for part in ("records", "steps", "times"))
        matrix = group[0].matrix if len(group) == 1 else np.concatenate([f.matrix for f in group], axis=1)
        if (records[1:] < records[:-1]).any():  # frames of one batch that interleave
            order = np.argsort(records, kind="stable")
            records, steps, times, matrix = records[order], steps[order], times[order], matrix[:, order]
        builder.add_dense(group[0].keys, group[0].types, records, steps, times, matrix)
    pooling.add(builder, loose)
    return builder.finish(writer)


@functools.lru_cache(64)
def _hashes(keys: tuple[str, ...]) -> np.ndarray:
    return np.fromiter((key_hash(key) for key in keys), "<u8", len(keys))


class Builder:
    """Takes axes and columns one after the other; what it holds is packed already."""

    def __init__(self, first: int, last: int) -> None:
        if last - first >= RANGE:
            raise ValueError(f"records {first} to {last} are too many for one block")
        self.first, self.last = first, last
        self.flags = 0
        self.axes: list[tuple] = []
        self.columns: list[np.ndarray] = []
        self.names = bytearray()
        self.name_at: dict[str, tuple[int, int]] = {}
        self.data: list[bytes] = []
        self.at = 0
        self.pyramids: dict[int, list[bytes]] = {}
        """By axis: its own, then those of its columns in the order in which they came."""

    def store(self, raw: bytes) -> tuple[int, int, int]:
        at = self.at
        self.data.append(raw)
        self.at += len(raw)
        if pad := -len(raw) % 8:
            self.data.append(bytes(pad))
            self.at += pad
        return at, len(raw), zlib.crc32(raw)

    def axis(self, records: np.ndarray, steps: np.ndarray, times: np.ndarray) -> int:
        parts = [(records - self.first).astype("<u4"), np.ascontiguousarray(steps, "<i8"), np.ascontiguousarray(times, "<i8")]
        packed = [pack(part) for part in parts]
        # One codec for the three: an axis is read whole.
        codec = PCODEC if all(c == PCODEC for c, _ in packed) else RAW
        raws = [raw if codec == PCODEC else part.tobytes() for part, (_, raw) in zip(parts, packed, strict=True)]
        spans = [number for raw in raws for number in self.store(raw)]
        bounds = (steps.min(), steps.max(), times.min(), times.max())
        if pyramid.has_pyramid(records, steps):
            self.pyramids[len(self.axes)] = [pyramid.axis_bytes(pyramid.of_axis(parts[1], parts[2]), pack)]
        self.axes.append((len(steps), codec, (0, 0, 0), *spans, *bounds, int(records[-1]) - self.first + 1))
        return len(self.axes) - 1

    def name(self, key: str) -> tuple[int, int]:
        place = self.name_at.get(key)
        if place is None:
            raw = key.encode()
            place = self.name_at[key] = (len(self.names), len(raw))
            self.names += raw
        return place

    def add_dense(self, keys: tuple[str, ...], types: str, records: np.ndarray, steps: np.ndarray, times: np.ndarray, matrix) -> None:
        """Rows of keys that share an axis, in order of records. ``matrix``: int64 bits, keys × rows."""
        ints = np.frombuffer(types.encode(), "u1") == ord("q")
        for start in range(0, len(records), ROWS):
            part = slice(start, start + ROWS)
            bits = matrix[:, part]
            entries = self.entries(_hashes(keys), ints, records[part], steps[part], times[part])
            for kind, rows in ((F64, np.flatnonzero(~ints)), (I64, np.flatnonzero(ints))):
                if len(rows):
                    statistics(entries, rows, kind, bits if len(rows) == len(bits) else bits[rows])
            for row, key in enumerate(keys):
                self.column(entries, row, key, bits[row])

    def entries(self, hashes: np.ndarray, ints: np.ndarray, records, steps, times) -> np.ndarray:
        """Entries of columns on a new axis; each is to be filled by ``statistics`` and ``column``."""
        entries = np.zeros(len(hashes), COLUMN)
        entries["axis"] = self.axis(records, steps, times)
        entries["hash"], entries["type"], entries["rows"], entries["last_step"] = hashes, ints, len(records), steps[-1]
        self.columns.append(entries)
        return entries

    def column(self, entries: np.ndarray, row: int, key: str, bits: np.ndarray) -> None:
        values = bits if entries["type"][row] == I64 else bits.view("<f8")
        codec, raw = pack(values)
        if (mine := self.pyramids.get(int(entries["axis"][row]))) is not None:
            mine.append(pyramid.column_bytes(pyramid.of_column(values), pack))
        entries["last"][row] = bits[-1]
        entries["codec"][row] = codec
        entries["at"][row], entries["bytes"][row], entries["crc"][row] = self.store(raw)
        entries["name_at"][row], entries["name_bytes"][row] = self.name(key)

    def finish(self, writer: str) -> Encoded:
        axes = np.array(self.axes, AXIS)
        columns = np.concatenate(self.columns) if self.columns else np.zeros(0, COLUMN)
        order = np.lexsort((columns["axis"], columns["hash"]))
        table = self._pyramid_table(columns["axis"], order)
        columns = columns[order]
        if not (columns["hash"][1:] == columns["hash"][:-1]).any():
            axes["end"] = 0  # needed where a key lies on several axes; else a block stays byte for byte what it was before there were ends
        names = bytes(self.names) + bytes(-len(self.names) % 8)
        counts = (len(axes), len(columns), len(names))
        if columns["sliced"].any():
            self.flags |= SLICED
        if len(table):
            self.flags |= HAS_PYRAMID
        if len(columns) >= PACK_COLUMNS:
            self.flags |= PACKED
            directory = packing.pack(axes, columns, names)
        else:
            # Offsets count from the start of the object; in a packed directory, whose length they change, from its end.
            shift = HEAD.size + axes.nbytes + columns.nbytes + len(names) + (pyramid.table_bytes(len(table)) if len(table) else 0)
            columns["at"] += shift
            table["at"] += shift
            for name in ("records_at", "steps_at", "times_at"):
                axes[name] += shift
            directory = axes.tobytes() + columns.tobytes() + names
        if len(table):
            directory += pyramid.with_count(table)
        lo, hi = (int(axes["lo_step"].min()), int(axes["hi_step"].max())) if len(axes) else (0, 0)
        head = (MAGIC, len(directory), *counts, self.first, self.last, id_bytes(writer))
        start = HEAD.pack(*head, 0, self.flags)
        head = HEAD.pack(*head, _crc(start, directory, self.flags), self.flags)
        points = int(columns["rows"].astype(np.int64).sum())
        data = b"".join([head, directory, *self.data])
        rows = int(axes["rows"].max()) if len(axes) else 0
        return Encoded(data, len(directory), points, lo, hi, rows, len(np.unique(columns["hash"])))

    def _pyramid_table(self, axis_of: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Stores the pyramids behind all columns, those of one axis side by side, so that a chart of many keys reads them in one go."""
        rows = []
        place = np.argsort(order)
        for axis, (mine, *its) in self.pyramids.items():
            columns = np.flatnonzero(axis_of == axis).tolist()
            if len(columns) != len(its):
                continue  # a shared axis: its columns are slices
            rows.append((pyramid.AXES + axis, *self._stored(mine)))
            for column, raw in zip(columns, its, strict=True):
                rows.append((int(place[column]), *self._stored(raw)))
        return np.sort(np.array(rows, pyramid.TABLE), order="what")

    def _stored(self, raw: bytes) -> tuple[int, int, int, int]:
        at, size, crc = self.store(raw)
        return size, at, crc, 0


def _crc(head: bytes, directory: bytes, flags: int) -> int:
    """Of head and directory; with the flags only where some are set, so that older blocks are what they were."""
    crc = zlib.crc32(directory, zlib.crc32(head[:CHECKED]))
    return zlib.crc32(struct.pack("<I", flags), crc) if flags else crc


def pack(column: np.ndarray) -> tuple[int, bytes]:
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
        if magic != MAGIC or flags & ~KNOWN:
            raise DamagedBlock(f"not a block that this program reads: it begins with {magic!r}, flags {flags}")
        whole = axes * AXIS.itemsize + columns * COLUMN.itemsize + names
        if len(head) < HEAD.size + size:
            raise DamagedBlock("its directory is cut short")
        directory = head[HEAD.size : HEAD.size + size]
        if _crc(head, directory, flags) != crc:
            raise DamagedBlock("its directory's checksum is wrong")
        self.writer = id_from_bytes(writer)
        end = HEAD.size + size
        self.pyramids = np.zeros(0, pyramid.TABLE)
        if flags & HAS_PYRAMID:
            try:
                directory, self.pyramids = pyramid.without_table(directory, end if flags & PACKED else 0)
            except ValueError as problem:
                raise DamagedBlock(str(problem)) from None
        if len(directory) != whole and not flags & PACKED:
            raise DamagedBlock("its directory is cut short")
        if flags & PACKED:
            try:
                self.axes, self.columns, self._names = packing.unpack(directory, (axes, AXIS), (columns, COLUMN), names, end)
            except ValueError as problem:
                raise DamagedBlock(str(problem)) from None
        else:
            self.axes = np.frombuffer(directory, AXIS, axes)
            self.columns = np.frombuffer(directory, COLUMN, columns, axes * AXIS.itemsize)
            self._names = directory[whole - names :]
        self._hashes = np.ascontiguousarray(self.columns["hash"])
        self.bytes = whole + self._hashes.nbytes

    def name(self, column: int) -> str:
        entry = self.columns[column]
        at = int(entry["name_at"])
        return self._names[at : at + int(entry["name_bytes"])].decode()

    def names_of(self, columns: np.ndarray) -> list[str]:
        """The names of these columns; ten times faster than one by one."""
        starts = self.columns["name_at"][columns].tolist()
        sizes = self.columns["name_bytes"][columns].tolist()
        names = self._names
        return [names[at : at + size].decode() for at, size in zip(starts, sizes, strict=True)]

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


def decode_pyramid(directory: Directory, what: int, raw: bytes) -> pyramid.AxisEntries | pyramid.ColumnEntries:
    """Of what ``directory.pyramid(what)`` names."""
    entry = directory.pyramid(what)
    if entry is None or zlib.crc32(raw) != int(entry["crc"]):
        raise DamagedBlock("a pyramid's checksum is wrong")
    try:
        if what >= pyramid.AXES:
            return pyramid.axis_from(raw, int(directory.axes["rows"][what - pyramid.AXES]), unpack)
        column = directory.columns[what]
        return pyramid.column_from(raw, int(column["rows"]), "<i8" if column["type"] == I64 else "<f8", unpack)
    except (struct.error, ValueError, IndexError) as problem:
        raise DamagedBlock(f"a pyramid cannot be decoded: {problem}") from None


def decode_axis(directory: Directory, entry, raws: list[bytes]) -> Axis:
    rows, codec = int(entry["rows"]), int(entry["codec"])
    crcs = [int(entry[f"{n}_crc"]) for n in ("records", "steps", "times")]
    arrays = [_unpack(raw, crc, codec, dtype, rows) for raw, crc, dtype in zip(raws, crcs, ("<u4", "<i8", "<i8"), strict=True)]
    return Axis(arrays[0].astype(np.int64) + directory.first, arrays[1], arrays[2])


def decode_column(entry, raw: bytes) -> np.ndarray:
    """Values as float64 or int64, exact to the bit."""
    rows = int(entry["rows"])
    if not entry["sliced"]:
        return _unpack(raw, int(entry["crc"]), int(entry["codec"]), "<i8" if entry["type"] == I64 else "<f8", rows)
    shared, start = decode_shared(entry, raw), int(entry["row"])
    if start + rows > len(shared):
        raise DamagedBlock("a column is longer than what it is a slice of")
    return shared[start : start + rows].copy()  # a view would keep all of it in memory


def decode_shared(entry, raw: bytes) -> np.ndarray:
    """All values of the columns that share these bytes with this one."""
    dtype = "<i8" if entry["type"] == I64 else "<f8"
    if zlib.crc32(raw) != int(entry["crc"]):
        raise DamagedBlock("a column's checksum is wrong")
    if int(entry["codec"]) == RAW and len(raw) % 8 == 0:
        return np.frombuffer(raw, dtype)
    try:
        shared = standalone.simple_decompress(raw)
    except (RuntimeError, TypeError) as problem:
        raise DamagedBlock(f"a column cannot be decoded: {problem}") from None
    if shared is None or shared.dtype != np.dtype(dtype):
        raise DamagedBlock("a column is of another type than it says")
    return shared


def axis_of(axis: Axis, entry) -> Axis:
    """The rows of ``axis`` (as ``decode_axis`` gives it) on which this column has its values."""
    if not entry["sliced"]:
        return axis
    part = slice(int(entry["row"]), int(entry["row"]) + int(entry["rows"]))
    return Axis(axis.records[part], axis.steps[part], axis.times[part])


def _unpack(raw: bytes, crc: int, codec: int, dtype: str, rows: int) -> np.ndarray:
    if zlib.crc32(raw) != crc:
        raise DamagedBlock("a column's checksum is wrong")
    return unpack(raw, codec, dtype, rows)


def unpack(raw: bytes, codec: int, dtype: str, rows: int) -> np.ndarray:
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
        found.append((directory.name(column), axis_of(axes[int(entry["axis"])], entry), decode_column(entry, data[start:end])))
    return directory, found
