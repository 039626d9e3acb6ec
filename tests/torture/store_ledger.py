"""What each writer of the store's torture sent and what was acknowledged, by record range, and what every record holds.

A slot a writer: everything a record holds is a function of (slot, record number), so that the same range can be sent again after any
death, and the audit needs no copy of it. The counts lie in a shared mapping that any death of a process leaves as it was.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SLOT = struct.Struct("<QQQQ")  # records acknowledged, records sent, batches sent again on doubt, answers that took an acknowledgement back
SPARSE_KEYS = 40
BIG = 2**53  # integers beyond this are no float64
TIME = 1_700_000_000_000_000
SPECIAL = np.array([0x7FF8000000000001, 0xFFF8DEADBEEF0001, 0x7FF0000000000000, 0xFFF0000000000000, 0x8000000000000000, 1], "u8").view("f8")
"""NaN with two payloads, both infinities, -0.0 and the smallest number."""


class StoreLedger:
    def __init__(self, path: Path, slots: int) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.posix_fallocate(fd, 0, slots * SLOT.size)
        self.map = mmap.mmap(fd, slots * SLOT.size)
        os.close(fd)
        self.slots = slots

    def read(self, slot: int) -> tuple[int, int, int, int]:
        """(acknowledged, sent, sent again, taken back): records below ``acknowledged`` must be there, none from ``sent`` on may be."""
        return SLOT.unpack_from(self.map, slot * SLOT.size)

    def _put(self, slot: int, place: int, value: int) -> None:
        struct.pack_into("<Q", self.map, slot * SLOT.size + 8 * place, value)  # eight aligned bytes: whole or not at all

    def sending(self, slot: int, end: int) -> None:
        """Before the bytes leave."""
        if end > self.read(slot)[1]:
            self._put(slot, 1, end)

    def told(self, slot: int, next_: int) -> None:
        """The server said that all below ``next_`` is stored."""
        acknowledged = self.read(slot)[0]
        if next_ > acknowledged:
            self._put(slot, 0, next_)
        elif next_ < acknowledged:
            self._put(slot, 3, self.read(slot)[3] + 1)

    def again(self, slot: int) -> None:
        self._put(slot, 2, self.read(slot)[2] + 1)


# -- what a record holds -------------------------------------------------------------------------------------------------------------


def _random(slot: int, records: np.ndarray, salt: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = records.astype("u8") * np.uint64(0xBF58476D1CE4E5B9) + np.uint64((slot * 1000 + salt + 1) * 0x9E3779B97F4A7C15 & (2**64 - 1))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass
class Points:
    """Of one key, in the order of their records."""

    records: np.ndarray
    steps: np.ndarray
    times: np.ndarray
    bits: np.ndarray  # u8: the value's eight bytes, of a float64 or an int64


def steps_of(records: np.ndarray) -> np.ndarray:
    """The record's number; now and then a step that was there before (a repeated one, out of order)."""
    return np.where(records % 101 == 50, np.maximum(records - 30, 0), records).astype("i8")


def times_of(records: np.ndarray) -> np.ndarray:
    return (TIME + records * 1000).astype("i8")


def is_sparse(records: np.ndarray) -> np.ndarray:
    return records % 7 == 3


def x_of(slot: int, records: np.ndarray) -> np.ndarray:
    values = (_random(slot, records, 0) >> np.uint64(11)).astype("f8") * 2.0**-53
    at = np.flatnonzero(records % 97 == 13)
    values[at] = SPECIAL[(records[at] // 97) % len(SPECIAL)]
    return values.view("u8")


def i_of(records: np.ndarray) -> np.ndarray:
    return (records + BIG + 1).astype("i8").view("u8")


def expected(slot: int, key: str, end: int) -> Points:
    """All points of ``x``, ``i`` or ``s0`` … of a writer whose records 0 … end - 1 are stored."""
    records = np.arange(end, dtype="i8")
    if key == "x":
        bits = x_of(slot, records)
    elif key == "i":
        bits = i_of(records)
    else:
        records = records[is_sparse(records) & (records // 7 % SPARSE_KEYS == int(key[1:]))]
        bits = s_of(slot, records)
    return Points(records, steps_of(records), times_of(records), bits)


def s_of(slot: int, records: np.ndarray) -> np.ndarray:
    return (_random(slot, records, 1) >> np.uint64(11)).astype("f8").view("u8")


def points_in(end: int) -> int:
    """How many points records 0 … end - 1 have: two keys each, three where it is a sparse one."""
    return 2 * end + int(is_sparse(np.arange(end)).sum())


def winners(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """(steps, bits) as a history shows them: by rising step, the last record of each step."""
    order = np.lexsort((points.records, points.steps))
    steps = points.steps[order]
    last = np.append(steps[1:] != steps[:-1], True) if len(steps) else np.zeros(0, bool)
    return steps[last], points.bits[order][last]


# -- the batch (docs/formats.md, Wire) ---------------------------------------------------------------------------------------------


def batch(slot: int, run: str, writer: str, first: int, count: int) -> bytes:
    records = np.arange(first, first + count, dtype="i8")
    sparse = is_sparse(records)
    frames, columns = [], b""
    dense = records[~sparse]
    if len(dense):
        keys, types = ["x", "i"], "dq"
        frames.append({"kind": "dense", "keylist": _KEYLIST, "keys": keys, "types": types, "rows": len(dense)})
        parts = [(dense - first).astype("u4"), steps_of(dense), times_of(dense), x_of(slot, dense), i_of(dense)]
        columns += b"".join(_padded(part) for part in parts)
    few = records[sparse]
    if len(few):
        names = ["x", "i", *(f"s{n}" for n in range(SPARSE_KEYS))]
        three = np.repeat(few, 3)
        index = np.stack([np.zeros(len(few)), np.ones(len(few)), 2 + few // 7 % SPARSE_KEYS], 1).ravel().astype("u4")
        kinds = np.tile(np.array([0, 1, 0], "u1"), len(few))
        values = np.stack([x_of(slot, few), i_of(few), s_of(slot, few)], 1).ravel()
        frames.append({"kind": "sparse", "keys": names, "rows": len(three)})
        parts = [(three - first).astype("u4"), index, kinds, steps_of(three), times_of(three), values]
        columns += b"".join(_padded(part) for part in parts)
    header = {"run": run, "writer": writer, "first": first, "last": first + count - 1, "frames": frames, "docs": [], "holes": []}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rest = text + columns
    return struct.pack("<4sHHII", b"ENCW", 1, 0, len(text), zlib.crc32(rest)) + rest


def _padded(part: np.ndarray) -> bytes:
    raw = part.tobytes()
    return raw + b"\0" * (-len(raw) % 8)


def _keylist(keys: list[str], types: str) -> str:
    import hashlib

    return hashlib.blake2b(json.dumps([types, keys], separators=(",", ":")).encode(), digest_size=8).hexdigest()


_KEYLIST = _keylist(["x", "i"], "dq")
