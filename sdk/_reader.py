"""Reads what a writer's journal holds, from any record on, bearing everything a crash, a full disk or a power loss can leave.

Records are gathered by key list as slices of the mapped segment; joined, they are equal-sized rows, so every column is one strided
view copied in C. A bad record (checksum, length) is skipped to the next good one and the record numbers in between become a hole; a
tail that is not written yet is not a hole.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

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
)
from .errors import FormatError

_HEAD = struct.Struct("<IHBBIIQ")  # a record up to its number: enough to sort it
MAX_HEADER_BYTES = 4096
MAX_NAMES = 200_000  # of sparse keys, before they are forgotten at the next segment
ROTTEN_SECONDS = 1.0


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
    """One segment file, mapped for reading.

    Its header has no checksum; so what it says is taken only as far as the records behind it and writer.json bear it out: a rotten header
    costs nothing, and no record that is there is taken for a hole.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self.number = int(path.stem)
        self.map: Any = self._bytes()
        self.size = len(self.map)
        magic, header, _, _, _, _, wall_us, mono_ns = SEGMENT_HEADER.unpack_from(self.map)
        # writer.json's format is the journal's version too: a header that alone says otherwise is rotten.
        if magic != SEGMENT_MAGIC and magic[:7] == SEGMENT_MAGIC[:7] and about.get("format") != 1:
            raise FormatError(f"{path.name} is a journal of version {magic[7:]!r}, newer than this SDK")
        self.view = memoryview(self.map)
        self.header = header if SEGMENT_HEADER.size <= header <= MAX_HEADER_BYTES and header % 8 == 0 else SEGMENT_HEADER.size
        found = good_number(self.view, self.header)
        if found is None and self.header != SEGMENT_HEADER.size and good_number(self.view, SEGMENT_HEADER.size) is not None:
            self.header = SEGMENT_HEADER.size
            found = good_number(self.view, self.header)
        if found is None and (behind := find_good(self, self.header, 0)) is not None:
            found = good_number(self.view, behind)
        if found is None and magic != SEGMENT_MAGIC:
            raise FormatError(f"{path.name} has no header and no record")
        self.first = found  # of its good records; None: it holds none (yet)
        wall_us, mono_ns = about.get("anchor_wall_us", wall_us), about.get("anchor_mono_ns", mono_ns)
        self.anchor_wall_us = int(wall_us) - int(mono_ns) // 1000

    def _bytes(self) -> Any:
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < SEGMENT_HEADER.size:
                raise FormatError(f"{self.path.name} is shorter than its header")
            return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)


def good_number(view: memoryview, position: int) -> int | None:
    """The number of the record at this place, if there is a whole one."""
    if position + RECORD_BYTES > len(view):
        return None
    crc, magic, kind, _, length, _, number = _HEAD.unpack_from(view, position)
    if magic != MAGIC or kind not in KINDS or length % 8 or not RECORD_BYTES <= length <= MAX_RECORD_BYTES or position + length > len(view):
        return None
    return number if crc32(view[position + 4 : position + length]) == crc else None


def find_good(segment: _Segment, position: int, least: int) -> int | None:
    """The place of the next good record behind `position` with a number of at least `least`."""
    find = segment.map.find
    while (position := find(MAGIC_BYTES, position + 5) - 4) >= 0:
        if position % 8 == 0 and (number := good_number(segment.view, position)) is not None and number >= least:
            return position
    return None


def first_record(path: Path) -> int | None:
    """The number of a segment's first record, believed only if the records bear it out; None if it holds none. OSError, FormatError."""
    return _Segment(path, read_json(path.parent / "writer.json") or {}).first


class _NotNow(Exception):
    """A segment cannot be opened at the moment (no descriptors, no memory): that is no hole."""


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
        self._about: Mapping[str, Any] | None = None
        self._stop, self._docs_only = 1 << 62, False
        self._bad: tuple[int, int, float] | None = None  # (segment, place, since when) of something that is no record
        self._dead_end: tuple[int, int] | None = None  # where a settled reading ended: there is nothing behind

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
        try:
            for path in self.segments():
                segment = self._open(path)
                if segment is None:
                    continue
                if chosen is None or (segment.first is not None and segment.first <= record):
                    chosen = segment
                elif segment.first is not None:
                    break
        except _NotNow:
            return
        self._use(chosen)

    def _open(self, path: Path) -> _Segment | None:
        if path.name in self._skip:
            return None
        if self._about is None:
            self._about = read_json(self.folder / "writer.json")
        try:
            return _Segment(path, self._about or {})
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _NotNow from error
        except (ValueError, FormatError) as error:
            if isinstance(error, FormatError) and "newer" in str(error):
                raise
            self._skip.add(path.name)  # its records come out as a hole, by the first number of the segment behind it
            return None

    def _use(self, segment: _Segment | None) -> None:
        self._segment = segment
        if segment is not None:
            self._position = segment.header
            self.anchor_wall_us = segment.anchor_wall_us
            if len(self._names) > MAX_NAMES:  # each segment declares what it uses
                self._names = {}

    def relax(self) -> None:
        """Let the pages of what was read go: they stay in the page cache, but no longer count as this process's memory."""
        if self._segment is not None:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                self._segment.map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let the segment go; whoever reads on finds it again."""
        self._close()

    def _close(self) -> None:
        self._segment = None  # slices given out may still look at the map: it goes when they go

    def _following(self) -> _Segment | None:
        number = self._segment.number if self._segment is not None else -1
        for path in self.segments():
            if int(path.stem) > number:
                try:
                    segment = self._open(path)
                except _NotNow:
                    return None
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
        if at + 4 <= segment.size and segment.map[at : at + 4] != b"\0\0\0\0" and self._dead_end != (segment.number, self._position):
            return True
        return any(int(path.stem) > segment.number and path.name not in self._skip for path in self.segments())

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
                if not ended and (settled or self._is_rotten(segment)) and self._jump(segment):
                    continue
                if settled:
                    self._dead_end = (segment.number, self._position)
                break
            if not ended and self._jump(segment):
                continue
            if len(self._names) > MAX_NAMES and chunk.last >= chunk.first:
                break  # the next segment begins with names of its own, in a chunk of its own
            if following.first is not None and following.first > self.next:
                self._hole(chunk, following.first - 1)
            self._use(following)
            chunk.names = self._names
        return chunk if chunk.last >= chunk.first else None

    def _scan(self, segment: _Segment, chunk: Chunk, limit: int) -> bool:
        """Take records in order until something else than the next one comes. True at the segment's end record."""
        view, position, size, expected = segment.view, self._position, segment.size, self.next
        unpack, dense, taken = _HEAD.unpack_from, chunk.dense, chunk.bytes
        ended, stop, docs_only, lists = False, self._stop, self._docs_only, self._lists
        while taken < limit and expected < stop and position + RECORD_BYTES <= size:
            crc, magic, kind, _, length, list_id, number = unpack(view, position)
            if magic != MAGIC or length < RECORD_BYTES or length > MAX_RECORD_BYTES or position + length > size:
                break
            # Any other number may be a flipped bit, and the last record one that a death tore: there the checksum tells.
            after = position + length
            if (
                docs_only
                and kind == DENSE
                and number == expected
                and list_id in lists
                and length == RECORD_BYTES + 8 * len(lists[list_id][1])
                and view[after + 4 : after + 6] == MAGIC_BYTES
            ):
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
                    if list_id in lists:
                        rows = dense.get(list_id)
                        if rows is None:
                            dense[list_id] = [view[position : position + length]]
                        else:
                            rows.append(view[position : position + length])
                    else:  # its declaration was lost: the numbers mean nothing
                        _add_hole(chunk, number)
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
            if self._names.keys() >= set(payload.cast("I")[::4]):
                chunk.sparse.append((number, step, time, payload))
            else:  # a declaration was lost
                _add_hole(chunk, number)
            return False
        if kind not in KINDS:
            _add_hole(chunk, number)
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
                _add_hole(chunk, number)
        return False

    def _hole(self, chunk: Chunk, last: int) -> None:
        if last >= self.next:
            if chunk.holes and chunk.holes[-1][1] == self.next - 1:
                chunk.holes[-1] = (chunk.holes[-1][0], last)
            else:
                chunk.holes.append((self.next, last))
            self.next = last + 1
            chunk.last = last

    def _jump(self, segment: _Segment) -> bool:
        """Behind something unreadable: go to the next good record of this segment, if there is one."""
        position = find_good(segment, self._position, self.next)
        if position is None:
            return False
        self._position = position
        return True

    def _is_rotten(self, segment: _Segment) -> bool:
        """While the writer goes on: what is no record yet may be one in a moment, but not for a second with others behind it."""
        at = self._position + 4
        if segment.map[at : at + 4] in (b"\0\0\0\0", b""):
            return False
        now = time.monotonic()
        if self._bad is None or self._bad[:2] != (segment.number, self._position):
            self._bad = (segment.number, self._position, now)
        return now - self._bad[2] > ROTTEN_SECONDS


def _add_hole(chunk: Chunk, number: int) -> None:
    if chunk.holes and chunk.holes[-1][1] == number - 1:
        chunk.holes[-1] = (chunk.holes[-1][0], number)
    else:
        chunk.holes.append((number, number))


def read_json(path: Path) -> dict[str, Any] | None:
    """A document of a writer folder; None if it is missing or broken."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
