"""A batch as JSON (docs/formats.md, *A batch as JSON*), for people with curl: made into a batch of the wire, which is what is stored."""

from __future__ import annotations

import json
import math
import struct
import time as clock
import zlib
from typing import Any

import numpy as np

from tracker.domain import limits
from tracker.domain.errors import Refused, TooLarge
from tracker.store.wire import HEAD, MAGIC, TOP, VERSION

_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf, "-0.0": -0.0}
NAMES = {"first", "points", "docs"}


def packed(raw: bytes, *, run: str, writer: str, following: int) -> bytes:
    """The inflated body of the batch that this JSON says: ``{"first", "points": [{"key", "value", "step", "time_us"}], "docs": [{…}]}``.

    One record a point, then one a document, from ``first`` on (without it from ``following``, the writer's next record: then a body that
    is sent twice is stored twice). Raises Refused (422), TooLarge (413); the rest is checked when it is decoded.
    """
    doc = _parsed(raw)
    first = doc.get("first", following)
    points, docs = doc.get("points", []), doc.get("docs", [])
    if not isinstance(first, int) or isinstance(first, bool) or not 0 <= first < TOP - 1:
        raise _bad("first is no record number")
    if not isinstance(points, list) or not isinstance(docs, list) or not points + docs:
        raise _bad('it has neither "points": [{"key", "value", "step"}] nor "docs": [{"type", …}]')
    if len(points) > limits.JSON_POINTS:
        raise TooLarge(f"There are {len(points):,} points, at most {limits.JSON_POINTS:,} are taken as JSON: send them in parts.")
    now = clock.time_ns() // 1000
    columns = [_point(entry, now, f"point {at}") for at, entry in enumerate(points)]
    keys: dict[str, int] = {}
    index = [keys.setdefault(key, len(keys)) for key, *_ in columns]
    frames = [{"kind": "sparse", "keys": list(keys), "rows": len(columns)}] if columns else []
    count = len(columns)
    entries = [{"n": first + count + at, "step": None, "time": now, "doc": one} for at, one in enumerate(docs)]
    last = first + count + len(docs) - 1
    header = {"run": run, "writer": writer, "first": first, "last": last, "frames": frames, "docs": entries, "holes": []}
    text = json.dumps(header).encode()
    data = [text + b" " * (-len(text) % 8)]
    if columns:
        steps, times, kinds, bits = ([row[at] for row in columns] for at in (1, 2, 3, 4))
        for dtype, column in (("<u4", range(count)), ("<u4", index), ("u1", kinds), ("<i8", steps), ("<i8", times), ("<i8", bits)):
            part = np.array(column, dtype).tobytes()
            data.append(part + bytes(-len(part) % 8))
    body = b"".join(data)
    return HEAD.pack(MAGIC, VERSION, 0, len(data[0]), zlib.crc32(body)) + body


def _parsed(raw: bytes) -> dict[str, Any]:
    if raw.count(b"[") + raw.count(b"{") > limits.HEADER_BRACKETS or len(raw) > limits.HEADER_BYTES:
        raise TooLarge("The JSON is too large: send it in parts.")
    try:
        doc = json.loads(raw.decode())
    except (ValueError, RecursionError) as problem:
        raise _bad(f"it is no JSON in UTF-8 ({str(problem)[:200]})") from None
    if not isinstance(doc, dict):
        raise _bad("it is no object")
    if unknown := sorted(set(doc) - NAMES):
        raise _bad(f"{unknown[0][:40]!r} is not known; there are {', '.join(sorted(NAMES))}")
    return doc


def _point(entry: Any, now: int, where: str) -> tuple[str, int, int, int, int]:
    """(key, step, time µs, type, the value's 64 bits)."""
    if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
        raise _bad(f"{where} is no object with a key")
    step, time = entry.get("step"), entry.get("time_us", now)
    for name, found in (("step", step), ("time_us", time)):
        if not isinstance(found, int) or isinstance(found, bool) or not -TOP <= found < TOP:
            raise _bad(f"{where}: {name} is no 64-bit integer")
    return entry["key"], step, time, *_value(entry.get("value"), where)


def _value(value: Any, where: str) -> tuple[int, int]:
    if isinstance(value, str):
        value = _SPECIAL.get(value)
    if isinstance(value, int) and -TOP <= value < TOP:  # true and false are 1 and 0
        return 1, int(value)
    if isinstance(value, int | float):
        try:
            return 0, struct.unpack("<q", struct.pack("<d", float(value)))[0]
        except OverflowError:
            return 0, struct.unpack("<q", struct.pack("<d", math.inf if value > 0 else -math.inf))[0]
    raise _bad(f"{where}: value is no number (nor 'NaN', 'Infinity', '-Infinity', '-0.0')")


def _bad(what: str) -> Refused:
    return Refused(f"The JSON batch is malformed: {what}.", code="malformed")
