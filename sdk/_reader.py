"""Reads what a writer's journal holds, from any record on, bearing everything a crash, a full disk or a power loss can leave.

Records are gathered by key list as slices of the mapped segment; joined, they are equal-sized rows, so every column is one strided
view copied in C. A bad record (checksum, length) is skipped to the next good one and the record numbers in between become a hole; a
tail that is not written yet is not a hole.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from ._ids import id_from_bytes
from ._records import (
    DENSE,
    DOC,
    END,
    KEYLIST,
    KEYS,
    KINDS,
    MAGIC,
    MAGIC_BYTES,
    MAX_RECORD_BYTES,
    RECORD,
    RECORD_BYTES,
    SEGMENT_HEADER,
    SEGMENT_MAGIC,
    SPARSE,
    segment_name,
)
from .errors import FormatError

_HEAD = struct.Struct("<IHBBIIQ")  # a record up to its number: enough to sort it


@dataclass
class Chunk:
    """The records first … last of one writer, sorted by kind, still as bytes."""

    first: int
    last: int
    anchor_wall_us: int
    dense: dict[int, list[Any]] = field(default_factory=dict)  # key-list id -> whole records
    sparse: list[tuple[int, int, int, Any]] = field(default_factory=list)  # (record, step, time ns, payload)
    docs: list[tuple[int, int, int, dict[str, Any]]] = field(default_factory=list)  # (record, step, time ns, document)
    holes: list[tuple[int, int]] = field(default_factory=list)
    lists: dict[int, tuple[list[str], str]] = field(default_factory=dict)  # key-list id -> (keys, types); of the whole journal so far
    names: dict[int, str] = field(default_factory=dict)
    bytes: int = 0


class _Segment:
    """One segment file, mapped for reading."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = int(path.stem)
        with open(path, "rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            if self.size < SEGMENT_HEADER.size:
                raise FormatError(f"{path.name} is shorter than its header")
            self.map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        magic, self.header, _, _, self.first, writer, self.anchor_wall_us, self.anchor_mono_ns = SEGMENT_HEADER.unpack_from(self.map)
        if magic != SEGMENT_MAGIC:
            newer = magic[:7] == SEGMENT_MAGIC[:7]
            raise FormatError(
                f"{path.name} is a journal of version {magic[7:].decode()!r}, newer than this SDK"
                if newer
                else f"{path.name} has no header"
            )
        self.writer = id_from_bytes(writer)
        self.view = memoryview(self.map)


class Reader:
    """Follows one writer's journal. `read` gives what is there beyond the records already given; `seek` goes anywhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.next = 0
        self.anchor_wall_us = 0
        self._segment: _Segment | None = None
        self._position = 0
        self._lists: dict[int, tuple[list[str], str]] = {}
        self._names: dict[int, str] = {}
        self._skip: set[str] = set()
        self._stop, self._docs_only = 1 << 62, False

    # Where ----------------------------------------------------------------------------------------------------------------------

    def segments(self) -> list[Path]:
        try:
            names = [name for name in os.listdir(self.folder) if name.endswith(".seg") and name[:-4].isdigit()]
        except OSError:
            return []
        return [self.folder / name for name in sorted(names)]

    def seek(self, record: int) -> None:
        """Go on from this record. What lies before it in its segment is read for the key lists alone."""
        self.next = record
        self._close()
        chosen = None
        for path in self.segments():
            segment = self._open(path)
            if segment is None:
                continue
            if chosen is None or segment.first <= record:
                chosen = segment
            else:
                break
        self._use(chosen)

    def _open(self, path: Path) -> _Segment | None:
        if path.name in self._skip:
            return None
        try:
            return _Segment(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, FormatError) as error:
            if isinstance(error, FormatError) and "newer" in str(error):
                raise
            self._skip.add(path.name)  # its records come out as a hole, by the first number of the segment behind it
            return None

    def _use(self, segment: _Segment | None) -> None:
        self._segment = segment
        if segment is not None:
            self._position = segment.header
            self.anchor_wall_us = segment.anchor_wall_us - segment.anchor_mono_ns // 1000

    def _close(self) -> None:
        self._segment = None  # slices given out may still look at the map: it goes when they go

    def _following(self) -> _Segment | None:
        number = self._segment.number if self._segment is not None else -1
        for path in self.segments():
            if int(path.stem) > number:
                segment = self._open(path)
                if segment is not None:
                    return segment
        return None

    # Reading --------------------------------------------------------------------------------------------------------------------

    def waiting(self) -> bool:
        """Whether anything may lie beyond what was given (cheap: one look at the next record's first bytes)."""
        segment = self._segment
        if segment is None:
            self.seek(self.next)
            segment = self._segment
            if segment is None:
                return False
        at = self._position + 4
        if at + 4 <= segment.size and segment.map[at : at + 4] != b"\0\0\0\0":
            return True
        return (self.folder / segment_name(segment.number + 1)).exists()

    def read(self, limit: int = 3 << 20, settled: bool = False, records: int = 1 << 40, docs_only: bool = False) -> Chunk | None:
        """The next records, at most about `limit` bytes of them, or None. settled: the writer is gone, so look behind gaps too.

        docs_only: points are stepped over without a look at their checksums.
        """
        if self._segment is None:
            self.seek(self.next)
            if self._segment is None:
                return None
        chunk = Chunk(self.next, self.next - 1, self.anchor_wall_us, lists=self._lists, names=self._names)
        self._stop, self._docs_only = self.next + records, docs_only
        while chunk.bytes < limit and self.next < self._stop:
            segment = self._segment
            if segment is None:
                break
            chunk.anchor_wall_us = self.anchor_wall_us
            ended = self._scan(segment, chunk, limit)
            if chunk.bytes >= limit or self.next >= self._stop:
                break
            following = self._following()
            if following is None:
                if settled and not ended and self._jump(segment, chunk):
                    continue
                break
            if not ended and self._jump(segment, chunk):
                continue
            if following.first > self.next:
                self._hole(chunk, following.first - 1)
            self._use(following)
        return chunk if chunk.last >= chunk.first else None

    def _scan(self, segment: _Segment, chunk: Chunk, limit: int) -> bool:
        """Take records in order until something else than the next one comes. True at the segment's end record."""
        view, position, size, expected = segment.view, self._position, segment.size, self.next
        unpack, dense, taken = _HEAD.unpack_from, chunk.dense, chunk.bytes
        ended, stop, docs_only = False, self._stop, self._docs_only
        while taken < limit and expected < stop and position + RECORD_BYTES <= size:
            crc, magic, kind, _, length, list_id, number = unpack(view, position)
            if magic != MAGIC or length < RECORD_BYTES or length > MAX_RECORD_BYTES or position + length > size:
                break
            # Any other number may be a flipped bit, and the last record one that a death tore: there the checksum tells.
            after = position + length
            if docs_only and kind == DENSE and number == expected and view[after + 4 : after + 6] == MAGIC_BYTES:
                position += length
                expected = number + 1
                continue
            body = view[position + 4 : position + length]
            if crc32(body) != crc:
                break
            if number > expected:
                self.next = expected
                self._hole(chunk, number - 1)
                expected = number
            if number == expected:
                if kind == DENSE:
                    if list_id in self._lists:
                        rows = dense.get(list_id)
                        if rows is None:
                            dense[list_id] = [view[position : position + length]]
                        else:
                            rows.append(view[position : position + length])
                    else:  # its declaration was lost: the numbers mean nothing
                        chunk.holes.append((number, number))
                else:
                    ended = self._other(chunk, kind, list_id, number, view, position, length)
                taken += length
                expected += 1
            elif kind in (KEYLIST, KEYS):
                self._other(chunk, kind, list_id, -1, view, position, length)
            position += length
            if ended:
                break
        self._position, self.next = position, expected
        chunk.bytes, chunk.last = taken, expected - 1
        return ended

    def _other(self, chunk: Chunk, kind: int, list_id: int, number: int, view: memoryview, position: int, length: int) -> bool:
        """A record that is not dense. True for the end record. Those already given (number -1) only declare."""
        if kind == END:
            return True
        payload = view[position + RECORD_BYTES : position + length]
        step, time = RECORD.unpack_from(view, position)[7:9]
        if kind == SPARSE:
            chunk.sparse.append((number, step, time, payload))
            return False
        if kind not in KINDS:
            chunk.holes.append((number, number))
            return False
        try:
            value = json.loads(bytes(payload))
            if kind == KEYLIST:
                self._lists[list_id] = (list(value["keys"]), str(value["types"]))
            elif kind == KEYS:
                self._names.update({int(key): str(name) for key, name in value.items()})
            elif kind == DOC and number >= 0:
                if not isinstance(value, dict):
                    raise TypeError
                chunk.docs.append((number, step, time, value))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if number >= 0:
                chunk.holes.append((number, number))
        return False

    def _hole(self, chunk: Chunk, last: int) -> None:
        if last >= self.next:
            chunk.holes.append((self.next, last))
            self.next = last + 1
            chunk.last = last

    def _jump(self, segment: _Segment, chunk: Chunk) -> bool:
        """Behind something unreadable: go to the next good record of this segment, if there is one."""
        position = self._position
        while True:
            position = segment.map.find(MAGIC_BYTES, position + 5) - 4
            if position < 0:
                return False
            if position % 8 or position + RECORD_BYTES > segment.size:
                continue
            crc, _, kind, _, length, _, number = _HEAD.unpack_from(segment.view, position)
            if kind not in KINDS or not RECORD_BYTES <= length <= MAX_RECORD_BYTES or position + length > segment.size or length % 8:
                continue
            if number < self.next or crc32(segment.view[position + 4 : position + length]) != crc:
                continue
            self._position = position
            return True


def read_json(path: Path) -> dict[str, Any] | None:
    """A document of a writer folder; None if it is missing or broken."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
