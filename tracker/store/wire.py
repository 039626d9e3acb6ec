"""A batch of the wire, version 1 (docs/formats.md), as numpy columns. Strict: what is wrong is named, nothing is half taken."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tracker.domain import limits
from tracker.domain.errors import KeylistUnknown, Refused, TooLarge
from tracker.domain.ids import is_id

MAGIC = b"ENCW"
VERSION = 1
HEAD = struct.Struct("<4sHHII")
TOP = 2**63

Keylist = tuple[str, tuple[str, ...]]
"""(types, keys)"""
Lookup = Callable[[str], Keylist | None]


@dataclass(slots=True)
class Dense:
    """``rows`` records of one key list: they share an axis. ``matrix`` is int64 bits, keys × rows."""

    keylist: str
    types: str
    keys: tuple[str, ...]
    records: np.ndarray
    steps: np.ndarray
    times: np.ndarray
    matrix: np.ndarray
    is_new: bool = False

    @property
    def points(self) -> int:
        return self.matrix.size


@dataclass(slots=True)
class Sparse:
    """Points one by one. ``bits`` are the values' 64 bits, ``types`` 0 = f64, 1 = i64; ``index`` points into ``keys``."""

    keys: tuple[str, ...]
    records: np.ndarray
    index: np.ndarray
    types: np.ndarray
    steps: np.ndarray
    times: np.ndarray
    bits: np.ndarray

    @property
    def points(self) -> int:
        return len(self.bits)


@dataclass(slots=True)
class Batch:
    """All there is of the records ``first`` … ``last`` of one writer; ``records`` in frames are absolute (int64)."""

    run: str
    writer: str
    first: int
    last: int
    frames: list[Dense | Sparse] = field(default_factory=list)
    docs: list[dict[str, Any]] = field(default_factory=list)
    holes: list[tuple[int, int]] = field(default_factory=list)
    points: int = 0
    lo_step: int | None = None
    hi_step: int | None = None

    def keylists(self) -> str:
        """The hashes of its dense frames' key lists, space separated; ``*`` for a sparse frame (MetricSegment.keylists)."""
        return " ".join(dict.fromkeys("*" if isinstance(f, Sparse) else f.keylist for f in self.frames if f.points))


def keylist_hash(types: str, keys: list[str] | tuple[str, ...]) -> str:
    text = json.dumps([types, list(keys)], separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def decode(body: bytes, lookup: Lookup = lambda _: None) -> Batch:
    """Decode an inflated body. ``lookup`` gives the key lists the server knows for this run.

    Raises Refused (422: it can never be accepted), TooLarge (413: cut it) or KeylistUnknown (409: send it again with its keys).
    """
    header, at = _header(body)
    first, last = header["first"], header["last"]
    batch = Batch(run=header["run"], writer=header["writer"], first=first, last=last)
    reader = _Columns(body, at)
    names = 0
    for number, frame in enumerate(header["frames"]):
        found = _frame(reader, frame, first, last, lookup, f"frame {number}")
        names += len(found.keys)
        _at_most(names, limits.KEYS_PER_BATCH, "names of metrics in a batch")
        batch.frames.append(found)
    reader.finish()
    batch.points = sum(frame.points for frame in batch.frames)
    _at_most(batch.points, limits.POINTS_PER_BATCH, "points in a batch")
    steps = [frame.steps for frame in batch.frames if len(frame.steps)]
    if steps:
        batch.lo_step, batch.hi_step = min(int(s.min()) for s in steps), max(int(s.max()) for s in steps)
    batch.docs = _docs(header.get("docs", []), first, last)
    batch.holes = _holes(header.get("holes", []), first, last)
    return batch


def _header(body: bytes) -> tuple[dict[str, Any], int]:
    if len(body) < HEAD.size:
        raise _bad("it has fewer than 16 bytes")
    magic, version, flags, size, crc = HEAD.unpack_from(body)
    if magic != MAGIC:
        raise _bad("it does not begin with ENCW")
    if version != VERSION or flags:
        raise Refused(
            f"The batch has version {version} (flags {flags}); this server reads version {VERSION}. Update the server.",
            code="version",
            version=version,
        )
    if (HEAD.size + size) % 8 or HEAD.size + size > len(body):
        raise _bad("its header's length is wrong")
    _at_most(size, limits.HEADER_BYTES, "bytes of header")
    if zlib.crc32(memoryview(body)[HEAD.size :]) != crc:
        raise Refused("The batch's checksum is wrong: it was damaged on the way or on disk.", code="crc")
    raw = body[HEAD.size : HEAD.size + size]
    _at_most(raw.count(b"[") + raw.count(b"{"), limits.HEADER_BRACKETS, "lists and objects in a header")
    try:
        header = json.loads(raw.decode())
    except (ValueError, RecursionError):
        raise _bad(f"its header is no JSON in UTF-8 of at most {limits.DEPTH} levels") from None
    if not isinstance(header, dict):
        raise _bad("its header is no object")
    for name in ("run", "writer"):
        if not isinstance(header.get(name), str) or not is_id(header[name]):
            raise _bad(f"{name} is no id")
    first, last = header.get("first"), header.get("last")
    if not (_is_int(first) and _is_int(last) and 0 <= first <= last < TOP - 1):
        raise _bad("first and last are no range of records, 0 <= first <= last < 2**63 - 1")
    _at_most(last - first + 1, limits.RECORDS_PER_BATCH, "records in a batch")
    if not isinstance(header.get("frames"), list):
        raise _bad("frames is no list")
    _at_most(len(header["frames"]), limits.FRAMES_PER_BATCH, "frames in a batch")
    return header, HEAD.size + size


_SIZES = {"u1": 1, "<u4": 4, "<i8": 8}


class _Columns:
    """Takes one column after the other from the body, each padded with zeros to 8 bytes."""

    def __init__(self, body: bytes, at: int) -> None:
        self.body = body
        self.at = at

    def take(self, dtype: str, count: int, where: str) -> np.ndarray:
        bytes_ = count * _SIZES[dtype]
        end = self.at + bytes_
        padded = end + -bytes_ % 8
        if padded > len(self.body):
            raise _bad(f"{where}: its columns are cut short")
        column = np.frombuffer(self.body, dtype, count, self.at)
        if padded != end and any(self.body[end:padded]):
            raise _bad(f"{where}: a column's padding is not zero")
        self.at = padded
        return column

    def finish(self) -> None:
        if self.at != len(self.body):
            raise _bad(f"{len(self.body) - self.at} bytes follow its last column")


def _frame(reader: _Columns, frame: Any, first: int, last: int, lookup: Lookup, where: str) -> Dense | Sparse:
    if not isinstance(frame, dict):
        raise _bad(f"{where} is no object")
    rows = frame.get("rows")
    if not _is_int(rows) or rows < 0:
        raise _bad(f"{where}: rows is no count")
    _at_most(rows, limits.ROWS_PER_FRAME, "rows in a frame")
    if frame.get("kind") == "dense":
        return _dense(reader, frame, rows, first, last, lookup, where)
    if frame.get("kind") == "sparse":
        return _sparse(reader, frame, rows, first, last, where)
    raise Refused(f"{where} is of the kind {str(frame.get('kind'))[:40]!r}, which this server does not know. Update it.", code="frame_kind")


def _dense(reader: _Columns, frame: dict, rows: int, first: int, last: int, lookup: Lookup, where: str) -> Dense:
    name = frame.get("keylist")
    if not isinstance(name, str) or len(name) != 16 or not set(name) <= set("0123456789abcdef"):
        raise _bad(f"{where}: keylist is no hash of 16 hex digits")
    known = lookup(name)
    if "keys" in frame or "types" in frame:
        if known is not None and frame.get("types") == known[0] and _is_same(frame.get("keys"), known[1]):
            types, keys = known
        else:
            types, keys = _keys_and_types(frame, where)
            if keylist_hash(types, keys) != name:
                raise _bad(f"{where}: keylist is not the hash of its types and keys")
    elif known is None:
        raise KeylistUnknown(keylist=name)
    else:
        types, keys = known
    records = _records(reader.take("<u4", rows, where), first, last, where)
    if rows > 1 and not (records[1:] > records[:-1]).all():
        raise _bad(f"{where}: record numbers do not rise")
    steps, times = reader.take("<i8", rows, where), reader.take("<i8", rows, where)
    matrix = reader.take("<i8", rows * len(keys), where).reshape(len(keys), rows)
    return Dense(name, types, keys, records, steps, times, matrix, is_new=known is None)


def _keys_and_types(frame: dict, where: str) -> Keylist:
    keys, types = frame.get("keys"), frame.get("types")
    keys = _keys(keys, where)
    if not isinstance(types, str) or len(types) != len(keys) or not set(types) <= {"d", "q"}:
        raise _bad(f"{where}: types is not one of d and q for each key")
    return types, keys


def _is_same(keys: Any, known: tuple[str, ...]) -> bool:
    return isinstance(keys, list) and len(keys) == len(known) and tuple(keys) == known


def _keys(keys: Any, where: str) -> tuple[str, ...]:
    """The names, checked without a loop of Python's: there may be 100,000."""
    if not isinstance(keys, list) or not keys:
        raise _bad(f"{where}: keys is no list of names")
    _at_most(len(keys), limits.KEYS_PER_BATCH, "names of metrics in a batch")
    try:
        text = "\0".join(keys)
        text.encode()
    except TypeError:
        raise _bad(f"{where}: a key is no text of 1 to {limits.KEY_LENGTH} characters") from None
    except UnicodeEncodeError:
        raise _bad(f"{where}: a key is no valid Unicode (it holds half of a surrogate pair)") from None
    if min(map(len, keys)) < 1 or max(map(len, keys)) > limits.KEY_LENGTH:
        raise _bad(f"{where}: a key is no text of 1 to {limits.KEY_LENGTH} characters")
    if text.count("\0") != len(keys) - 1:
        raise _bad(f"{where}: a key holds NUL")
    if len(set(keys)) != len(keys):
        raise _bad(f"{where}: a key is named twice")
    return tuple(keys)


def _sparse(reader: _Columns, frame: dict, rows: int, first: int, last: int, where: str) -> Sparse:
    keys = _keys(frame.get("keys"), where) if rows else ()
    records = _records(reader.take("<u4", rows, where), first, last, where)
    if rows > 1 and not (records[1:] >= records[:-1]).all():
        raise _bad(f"{where}: record numbers fall")
    index = reader.take("<u4", rows, where)
    types = reader.take("u1", rows, where)
    steps, times, bits = (reader.take("<i8", rows, where) for _ in range(3))
    if rows and int(index.max()) >= len(keys):
        raise _bad(f"{where}: a key index is beyond its keys")
    if rows and int(types.max()) > 1:
        raise _bad(f"{where}: a type is neither 0 nor 1")
    return Sparse(keys, records, index, types, steps, times, bits)


def _records(offsets: np.ndarray, first: int, last: int, where: str) -> np.ndarray:
    if len(offsets) and int(offsets.max()) > last - first:
        raise _bad(f"{where}: a record number is beyond the range")
    return offsets.astype(np.int64) + first


def _docs(docs: Any, first: int, last: int) -> list[dict[str, Any]]:
    if not isinstance(docs, list):
        raise _bad("docs is no list")
    _at_most(len(docs), limits.DOCS_PER_BATCH, "documents in a batch")
    if _is_deeper([entry.get("doc") for entry in docs if isinstance(entry, dict)], limits.DEPTH):
        raise _bad(f"a document nests lists and objects more than {limits.DEPTH} levels deep")
    for entry in docs:
        if not isinstance(entry, dict) or not isinstance(entry.get("doc"), dict):
            raise _bad("a document is no object with doc")
        if not _is_int(entry.get("n")) or not first <= entry["n"] <= last:
            raise _bad("a document's number is beyond the range")
        step, time = entry.get("step"), entry.get("time")
        if not (step is None or (_is_int(step) and -TOP <= step < TOP)) or not (_is_int(time) and -TOP <= time < TOP):
            raise _bad("a document's step or time is no 64-bit integer")
    return docs


def _holes(holes: Any, first: int, last: int) -> list[tuple[int, int]]:
    if not isinstance(holes, list):
        raise _bad("holes is no list")
    _at_most(len(holes), limits.HOLES_PER_BATCH, "holes in a batch")
    found = []
    for hole in holes:
        if not isinstance(hole, list) or len(hole) != 2 or not all(_is_int(n) for n in hole) or not first <= hole[0] <= hole[1] <= last:
            raise _bad("a hole is no range within the batch")
        found.append((hole[0], hole[1]))
    return found


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_deeper(values: list[Any], depth: int) -> bool:
    for _ in range(depth):
        values = [inner for one in values for inner in _inner(one) if isinstance(inner, dict | list)]
        if not values:
            return False
    return True


def _inner(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _at_most(found: int, most: int, what: str) -> None:
    if found > most:
        raise TooLarge(f"There are {found:,} {what}, at most {most:,} are taken: cut it into smaller ranges.", most=most)


def _bad(what: str) -> Refused:
    return Refused(f"The batch is malformed: {what}.", code="malformed")
