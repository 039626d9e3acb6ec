"""An encoder of batches made from docs/formats.md alone, so that the decoder is not tested against a friend of its own."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib

import zstandard


def pad(raw: bytes, fill: bytes = b"\0") -> bytes:
    return raw + fill * (-len(raw) % 8)


def value_bytes(kind: str, value) -> bytes:
    return struct.pack("<" + kind, value)


def keylist(keys, types: str) -> str:
    text = json.dumps([types, list(keys)], separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def dense(first: int, keys, types: str, rows: list[tuple], known: bool = False) -> tuple[dict, bytes]:
    """``rows``: (record, step, time, [values])."""
    frame = {"kind": "dense", "keylist": keylist(keys, types), "rows": len(rows)}
    if not known:
        frame |= {"keys": list(keys), "types": types}
    columns = [
        b"".join(struct.pack("<I", n - first) for n, *_ in rows),
        b"".join(struct.pack("<q", step) for _, step, *_ in rows),
        b"".join(struct.pack("<q", time) for _, _, time, _ in rows),
    ]
    for at, kind in enumerate(types):
        columns.append(b"".join(value_bytes(kind, values[at]) for *_, values in rows))
    return frame, b"".join(pad(column) for column in columns)


def sparse(first: int, rows: list[tuple]) -> tuple[dict, bytes]:
    """``rows``: (record, key, kind, step, time, value)."""
    keys = list(dict.fromkeys(row[1] for row in rows))
    columns = [
        b"".join(struct.pack("<I", row[0] - first) for row in rows),
        b"".join(struct.pack("<I", keys.index(row[1])) for row in rows),
        bytes(0 if row[2] == "d" else 1 for row in rows),
        b"".join(struct.pack("<q", row[3]) for row in rows),
        b"".join(struct.pack("<q", row[4]) for row in rows),
        b"".join(value_bytes(row[2], row[5]) for row in rows),
    ]
    return {"kind": "sparse", "keys": keys, "rows": len(rows)}, b"".join(pad(column) for column in columns)


def pack(header, columns: bytes = b"", version: int = 1) -> bytes:
    text = header if isinstance(header, bytes) else pad(json.dumps(header, ensure_ascii=False).encode(), b" ")
    behind = text + columns
    return struct.pack("<4sHHII", b"ENCW", version, 0, len(text), zlib.crc32(behind)) + behind


def batch(run: str, writer: str, first: int, last: int, frames=(), docs=(), holes=()) -> bytes:
    header = {
        "run": run, "writer": writer, "first": first, "last": last, "frames": [frame for frame, _ in frames], "docs": list(docs),
        "holes": [list(hole) for hole in holes],
    }  # fmt: skip
    return pack(header, b"".join(columns for _, columns in frames))


def simple(
    run: str, writer: str, first: int, values, key: str = "loss", known: bool = False, step: int | None = None, kind: str = "d"
) -> bytes:
    """A batch of one key, one record a value; its step is the record's number, or counts from ``step``."""
    base = first if step is None else step
    rows = [(first + i, base + i, 1_700_000_000_000_000 + (first + i) * 1000, [value]) for i, value in enumerate(values)]
    return batch(run, writer, first, first + len(rows) - 1, [dense(first, [key], kind, rows, known)])


def deflate(raw: bytes) -> bytes:
    return zlib.compress(raw, 1)


def zstd(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(raw)
