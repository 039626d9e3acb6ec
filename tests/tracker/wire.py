"""A batch as bytes (docs/formats.md, Wire), for tests that only need one to be accepted."""

from __future__ import annotations

import json
import struct
import zlib
from array import array

from tracker.store.wire import keylist_hash


def batch(run: str, writer: str, points: dict[str, list[float]] | None = None, docs=(), first: int = 0, time_us: int = 10**15) -> bytes:
    """Dense rows of ``points`` (key to values, steps 0 …), then ``docs``, from record ``first`` on."""
    points = points or {}
    rows = len(next(iter(points.values()), ()))
    keys, frames, columns = list(points), [], b""
    if rows:
        types = "d" * len(keys)
        frames.append({"kind": "dense", "keylist": keylist_hash(types, keys), "keys": keys, "types": types, "rows": rows})
        parts = [array("I", range(rows)), array("q", range(rows)), array("q", [time_us + n for n in range(rows)])]
        parts += [array("d", points[key]) for key in keys]
        for part in parts:
            raw = part.tobytes()
            columns += raw + b"\0" * (-len(raw) % 8)
    entries = [{"n": first + rows + n, "step": None, "time": time_us + rows + n, "doc": doc} for n, doc in enumerate(docs)]
    last = first + rows + len(entries) - 1
    header = {"run": run, "writer": writer, "first": first, "last": last, "frames": frames, "docs": entries, "holes": []}
    if last < first:
        header |= {"last": first, "holes": [[first, first]]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rest = text + columns
    return struct.pack("<4sHHII", b"ENCW", 1, 0, len(text), zlib.crc32(rest)) + rest
