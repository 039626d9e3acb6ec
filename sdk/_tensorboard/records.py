"""A TFRecord file, followed while it grows: length (u64), masked crc32c of it, data, masked crc32c of them.

A record that is not whole yet is read again later; a file that another program rewrote is begun anew.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

HEAD = struct.Struct("<QI")
FOOT = struct.Struct("<I")
AROUND = HEAD.size + FOOT.size
MOST_BYTES = 1 << 20  # a longer record is a graph, a video, a projector's table: stepped over without being read
MOST_LENGTH = 1 << 34  # no writer makes such; the bytes are no length
PIECE = 2 << 20  # more than the longest record that is read
_DELTA = 0xA282EAD8


def _table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        found.append(byte)
    return tuple(found)


_TABLE = _table()


def crc32c(data: bytes | memoryview) -> int:
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = crc >> 8 ^ table[crc & 0xFF ^ byte]
    return crc ^ 0xFFFFFFFF


def masked(data: bytes | memoryview) -> int:
    """As event files hold it: rotated, so that a checksum of bytes that hold checksums stays good."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _DELTA) & 0xFFFFFFFF


class RecordFile:
    """`read` gives what came since; `offset` is behind the last record given. Never raises but OSError of a file that is not there."""

    def __init__(self, path: str, offset: int = 0, inode: int | None = None) -> None:
        self.path, self.offset, self.inode = path, offset, inode
        self.broken: str | None = None  # from here on nothing can be read: lengths mean nothing any more
        self.bad = 0  # records whose bytes did not fit their checksum
        self.long = 0  # records stepped over

    def grown(self) -> bool:
        """Whether anything lies behind what was read. A file in the place of another is begun anew."""
        stat = os.stat(self.path)
        if self.inode is None:
            self.inode = stat.st_ino
        elif stat.st_ino != self.inode or stat.st_size < self.offset:
            self.inode, self.offset, self.broken = stat.st_ino, 0, None
        return self.broken is None and stat.st_size - self.offset >= AROUND

    @property
    def rest(self) -> int:
        """Bytes that are there and make no whole record."""
        try:
            return max(0, os.stat(self.path).st_size - self.offset)
        except OSError:
            return 0

    def read(self) -> Iterator[tuple[int, memoryview]]:
        """(offset behind it, data) of each whole record. Whoever stops early goes on from `offset` with the next call."""
        if not self.grown():
            return
        with open(self.path, "rb", buffering=0) as file:
            while True:
                file.seek(self.offset)
                piece = file.read(PIECE) or b""
                size = os.fstat(file.fileno()).st_size
                at = 0
                while len(piece) - at >= HEAD.size:
                    length, check = HEAD.unpack_from(piece, at)
                    if masked(piece[at : at + 8]) != check or length > MOST_LENGTH:
                        # The tail of a file on a network may show zeros before its bytes; anything else is damage.
                        if size - self.offset > PIECE or piece[at : at + HEAD.size].strip(b"\0"):
                            self.broken = f"the bytes at {self.offset} are no record"
                        return
                    end = at + AROUND + length
                    if length > MOST_BYTES:
                        if self.offset + AROUND + length > size:
                            return
                        self.long += 1
                        self.offset += AROUND + length
                        at = len(piece)
                        break
                    if end > len(piece):
                        break
                    data = memoryview(piece)[at + HEAD.size : end - FOOT.size]
                    whole = masked(data) == FOOT.unpack_from(piece, end - FOOT.size)[0]
                    if not whole and self.offset + AROUND + length >= size:
                        return  # the last one: its bytes may still be on their way
                    at = end
                    self.offset += AROUND + length
                    if whole:
                        yield self.offset, data
                    else:
                        self.bad += 1
                if not piece or (at == 0 and self.offset + len(piece) >= size):
                    return
