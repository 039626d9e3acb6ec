"""A block's directory, compressed. Neighbouring entries are alike: they are stored as differences, one plane of bytes after the other."""

from __future__ import annotations

import zlib

import numpy as np

LEVEL = 6
_RISING = {"axes": ("records_at", "steps_at", "times_at"), "columns": ("hash", "at", "name_at", "row")}
"""Fields stored as differences from the entry before."""
_LIKE_MIN = ("max", "sum", "last")
"""Fields stored as XOR with ``min``: of a column of one point they are all the same."""


def pack(axes: np.ndarray, columns: np.ndarray, names: bytes) -> bytes:
    """``axes`` and ``columns`` are structured arrays (store/blocks.py) whose offsets count from the directory's end."""
    deflater = zlib.compressobj(LEVEL)
    parts = (_planes(axes, "axes"), _planes(columns, "columns"), names)
    packed = b"".join([*(deflater.compress(part) for part in parts), deflater.flush()])
    del parts
    found = unpack(packed, (len(axes), axes.dtype), (len(columns), columns.dtype), len(names), 0)
    if not (_same(found[0], axes) and _same(found[1], columns) and found[2] == names):
        raise RuntimeError("a directory that was packed does not unpack to what it was; not stored")
    return packed


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view("u1"), np.ascontiguousarray(b).view("u1"))


def unpack(
    packed: bytes, axes: tuple[int, np.dtype], columns: tuple[int, np.dtype], names: int, shift: int
) -> tuple[np.ndarray, np.ndarray, bytes]:
    """(axes, columns, names); ``shift`` is added to their offsets. Raises ValueError where it holds another number of bytes."""
    sizes = [axes[0] * axes[1].itemsize, columns[0] * columns[1].itemsize, names]
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(packed, sum(sizes) + 1)
    except zlib.error as problem:
        raise ValueError(f"its directory cannot be inflated: {problem}") from None
    if len(raw) != sum(sizes):
        raise ValueError(f"its directory inflates to {len(raw)} bytes, not {sum(sizes)}")
    found = _entries(raw[: sizes[0]], *axes, "axes"), _entries(raw[sizes[0] : sizes[0] + sizes[1]], *columns, "columns")
    for entries, fields in zip(found, (("records_at", "steps_at", "times_at"), ("at",)), strict=True):
        for name in fields:
            entries[name] += entries.dtype[name].type(shift)
    return *found, raw[sizes[0] + sizes[1] :]


def _planes(entries: np.ndarray, kind: str) -> bytes:
    entries = entries.copy()
    for name in _RISING[kind]:
        column = entries[name].copy()
        entries[name][1:] = column[1:] - column[:-1]
    if kind == "columns":
        for name in _LIKE_MIN:
            entries[name] = (_bits(entries, name) ^ _bits(entries, "min")).view(entries.dtype[name])
    return np.ascontiguousarray(entries.view("u1").reshape(len(entries), -1).T).tobytes()


def _entries(raw: bytes, count: int, dtype: np.dtype, kind: str) -> np.ndarray:
    planes = np.frombuffer(raw, "u1").reshape(dtype.itemsize, count)
    entries = np.array(planes.T, order="C").reshape(-1).view(dtype)
    if kind == "columns":
        for name in _LIKE_MIN:
            entries[name] = (_bits(entries, name) ^ _bits(entries, "min")).view(entries.dtype[name])
    for name in _RISING[kind]:
        entries[name] = np.cumsum(entries[name], dtype=entries.dtype[name])
    return entries


def _bits(entries: np.ndarray, name: str) -> np.ndarray:
    return np.ascontiguousarray(entries[name]).view("<u8")
