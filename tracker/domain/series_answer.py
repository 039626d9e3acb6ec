"""The bytes of a series answer, version 1 (docs/formats.md): a JSON header and arrays that a browser maps without parsing."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np

MAGIC = b"ENCS"
VERSION = 1
_HEAD = struct.Struct("<4sHHII")
_TYPES = {"<f8": "f64", "<i8": "i64", "<u4": "u32", "<f4": "f32"}


def encode(series: list[dict[str, Any]], **fields: Any) -> bytes:
    """``series``: entries whose arrays (float64, float32, int64, uint32) are numpy's; all else goes into the header as it is.

    Equal arrays, such as the steps of all keys of a run, are stored once: several descriptions then give the same place.
    """
    parts: list[bytes] = []
    places: dict[tuple[str, bytes], int] = {}
    at = 0
    described = []
    for entry in series:
        told = {}
        for name, value in entry.items():
            if isinstance(value, np.ndarray):
                raw = np.ascontiguousarray(value).tobytes()
                place = places.setdefault((value.dtype.str, raw), at)
                told[name] = {"at": place, "type": _TYPES[value.dtype.str], "length": len(value)}
                if place == at and len(raw):
                    parts.append(raw + bytes(-len(raw) % 8))
                    at += len(parts[-1])
            else:
                told[name] = value
        described.append(told)
    header = json.dumps({"series": described, **fields}, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return b"".join([_HEAD.pack(MAGIC, VERSION, 0, len(header), 0), header, *parts])


def decode(data: bytes) -> dict[str, Any]:
    """The header, with numpy arrays in the places of their descriptions. Raises ValueError for what is no answer of version 1."""
    magic, version, flags, size, _ = _HEAD.unpack_from(data)
    if magic != MAGIC or version != VERSION or flags:
        raise ValueError(f"no series answer of version {VERSION}")
    header = json.loads(data[_HEAD.size : _HEAD.size + size])
    base = _HEAD.size + size
    types = {name: dtype for dtype, name in _TYPES.items()}
    for entry in header["series"]:
        for name, value in entry.items():
            if isinstance(value, dict) and set(value) == {"at", "type", "length"}:
                entry[name] = np.frombuffer(data, types[value["type"]], value["length"], base + value["at"])
    return header


def as_json(series: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """The same as plain JSON: arrays as lists, NaN and infinities as text."""
    return {"series": [{name: _plain(value) for name, value in entry.items()} for entry in series], **fields}


def _plain(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    found = value.tolist()
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        return [v if math.isfinite(v) else "NaN" if math.isnan(v) else "Infinity" if v > 0 else "-Infinity" for v in found]
    return found
