"""A batch, version 1: records of one writer as columns (docs/formats.md, *Wire*). `decode` is the other direction, for tests and tools."""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from array import array
from collections.abc import Container, Mapping
from typing import Any
from zlib import crc32

from ._plain import dumps
from ._reader import Chunk
from ._records import NO_STEP, RECORD_BYTES, SPARSE_ENTRY, padded
from .errors import FormatError

MAGIC = b"ENCW"
VERSION = 1
HEAD = struct.Struct("<4sHHII")  # magic, version, flags, header bytes, crc of everything behind
LOCAL_ONLY = frozenset(("opened", "followed"))  # the sender's own business (docs/formats.md, *Documents*)

assert (array("I").itemsize, array("q").itemsize) == (4, 8)


def key_list_hash(keys: list[str], types: str) -> str:
    text = json.dumps([types, keys], separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


def encode(run: str, writer: str, chunk: Chunk, known: Container[str] = (), left_out: Container[int] = ()) -> tuple[bytes, list[str]]:
    """(bytes of the batch before compression, hashes of its key lists). `known`: key lists the server has seen for this run.

    left_out: record numbers that are covered by the range without being sent.
    """
    frames: list[dict[str, Any]] = []
    columns: list[bytes] = []
    hashes = []
    for list_id, rows in chunk.dense.items():
        keys, types = chunk.lists[list_id]
        digest = key_list_hash(keys, types)
        hashes.append(digest)
        frame: dict[str, Any] = {"kind": "dense", "keylist": digest, "rows": len(rows)}
        if digest not in known:
            frame |= {"keys": keys, "types": types}
        frames.append(frame)
        columns += _dense_columns(rows, len(keys), chunk)
    if chunk.sparse:
        frame, more = _sparse_frame(chunk)
        frames.append(frame)
        columns += more
    docs = [
        {"n": n, "step": None if step == NO_STEP else step, "time": chunk.anchor_wall_us + time // 1000, "doc": doc}
        for n, step, time, doc in chunk.docs
        if doc.get("type") not in LOCAL_ONLY and n not in left_out
    ]
    header = {
        "run": run,
        "writer": writer,
        "first": chunk.first,
        "last": chunk.last,
        "frames": frames,
        "docs": docs,
        "holes": [list(hole) for hole in chunk.holes],
    }
    return pack(header, columns), hashes


def encode_hole(run: str, writer: str, first: int, last: int) -> bytes:
    """A batch that says: these records will not come."""
    return pack({"run": run, "writer": writer, "first": first, "last": last, "frames": [], "docs": [], "holes": [[first, last]]}, [])


def pack(header: Mapping[str, Any], columns: list[bytes]) -> bytes:
    text = padded(dumps(header))
    body = b"".join([text, *(padded(column, b"\0") for column in columns)])
    return HEAD.pack(MAGIC, VERSION, 0, len(text), crc32(body)) + body


def _dense_columns(rows: list[Any], keys: int, chunk: Chunk) -> list[bytes]:
    joined = memoryview(b"".join(rows)).cast("q")  # times may lie before the anchor: what was read from a file is older than its writer
    stride = RECORD_BYTES // 8 + keys
    first, anchor = chunk.first, chunk.anchor_wall_us
    records = array("I", [n - first for n in joined[2::stride].tolist()])
    times = array("q", [anchor + time // 1000 for time in joined[4::stride].tolist()])
    return [_little(records), joined[3::stride].tobytes(), _little(times), *[joined[at::stride].tobytes() for at in range(5, stride)]]


def _sparse_frame(chunk: Chunk) -> tuple[dict[str, Any], list[bytes]]:
    index: dict[int, int] = {}
    keys: list[str] = []
    records, positions, steps, times = array("I"), array("I"), array("q"), array("q")
    types, values = bytearray(), bytearray()
    for number, step, time, payload in chunk.sparse:
        for key_id, kind, value in SPARSE_ENTRY.iter_unpack(payload):
            at = index.get(key_id)
            if at is None:
                name = chunk.names.get(key_id)
                if name is None:  # its declaration was lost
                    continue
                at = index[key_id] = len(keys)
                keys.append(name)
            records.append(number - chunk.first)
            positions.append(at)
            types.append(kind)
            steps.append(step)
            times.append(chunk.anchor_wall_us + time // 1000)
            values += value
    frame = {"kind": "sparse", "keys": keys, "rows": len(records)}
    return frame, [_little(records), _little(positions), bytes(types), _little(steps), _little(times), bytes(values)]


def _little(column: array[int]) -> bytes:
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


# The other direction ------------------------------------------------------------------------------------------------------------


def decode(body: bytes, keylists: Mapping[str, tuple[list[str], str]] | None = None) -> dict[str, Any]:
    """The header, with each frame's columns as lists under "records", "steps", "times" and "values" (per key, or per row if sparse)."""
    if len(body) < HEAD.size:
        raise FormatError("a batch of fewer than 16 bytes")
    magic, version, _, length, crc = HEAD.unpack_from(body)
    if magic != MAGIC or version > VERSION:
        raise FormatError(f"not a batch of version {VERSION} or below: {magic!r} version {version}")
    if crc32(body[HEAD.size :]) != crc:
        raise FormatError("the batch's checksum is wrong")
    header: dict[str, Any] = json.loads(body[HEAD.size : HEAD.size + length])
    at = HEAD.size + length

    def column(code: str, rows: int) -> list[Any]:
        nonlocal at
        data = array(code, body[at : at + rows * array(code).itemsize])
        if len(data) != rows:
            raise FormatError("a column is cut short")
        at += len(padded(bytes(data.itemsize * rows)))
        if sys.byteorder == "big":
            data.byteswap()
        return data.tolist()

    for frame in header["frames"]:
        rows = frame["rows"]
        frame["records"] = [n + header["first"] for n in column("I", rows)]
        if frame["kind"] == "dense":
            if "keys" not in frame:
                frame["keys"], frame["types"] = (keylists or {})[frame["keylist"]]
            frame["steps"], frame["times"] = column("q", rows), column("q", rows)
            frame["values"] = [column(code, rows) for code in frame["types"]]
        else:
            positions, types = column("I", rows), column("B", rows)
            frame["steps"], frame["times"] = column("q", rows), column("q", rows)
            frame["key"] = [frame["keys"][position] for position in positions]
            bits = column("q", rows)
            frame["values"] = [b if t else struct.unpack("<d", struct.pack("<q", b))[0] for t, b in zip(types, bits, strict=True)]
    if at != len(body):
        raise FormatError(f"{len(body) - at} bytes too many")
    return header


def points(batch: Mapping[str, Any]) -> list[tuple[int, str, int, int, Any]]:
    """All points of a decoded batch as (record, key, step, time µs, value), in the order of records."""
    found = []
    for frame in batch["frames"]:
        if frame["kind"] == "dense":
            for key, values in zip(frame["keys"], frame["values"], strict=True):
                found += [(n, key, s, t, v) for n, s, t, v in zip(frame["records"], frame["steps"], frame["times"], values, strict=True)]
        else:
            found += list(zip(frame["records"], frame["key"], frame["steps"], frame["times"], frame["values"], strict=True))
    return sorted(found, key=lambda point: point[0])
