"""Files of a journal: reserved whole before use, never sparse where they are mapped, never truncated.

A store into a sparse map on a full disk is SIGBUS, and that kills training; so a segment's blocks are allocated before it is
mapped, and a disk that is full shows as an OSError here, where it is counted instead. In mode "write" a segment is a file descriptor
and every record one pwrite(2), whose errors are OSErrors too; the bytes in the file are the same.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ._records import SEGMENT_BYTES, SEGMENT_HEADER, SEGMENT_MAGIC, segment_name

MIN_FREE_SHARE = 0.02  # a disk fuller than this is left to others …
MIN_FREE_BYTES = 1 << 30  # … unless what is left is plenty all the same
POPULATE_WRITE = getattr(mmap, "MADV_POPULATE_WRITE", 23)  # Linux 5.14
POPULATE_BYTES = 1 << 20  # a piece holds the process's memory map for half a millisecond
SLOW_POPULATE_BYTES = 256 << 10  # without ctypes the interpreter's lock is held too
FAST_SECONDS = 2.0  # a segment that is full sooner than this calls for two spares

Segment = Any  # mmap.mmap, or a file descriptor in mode "write"


def reserve(path: Path, mode: str = "map") -> Segment:
    """A file of 4 MiB whose every block is allocated, mapped (or open, in mode "write"). OSError if the disk will not give it."""
    free = _free(path.parent)
    if free is not None and free[0] < MIN_FREE_BYTES and free[0] < MIN_FREE_SHARE * free[1]:
        raise OSError(28, f"less than {MIN_FREE_SHARE:.0%} of the disk is free")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0), 0o600)
    try:
        _allocate(fd, mode)
        if mode == "write":
            return fd
        segment = mmap.mmap(fd, SEGMENT_BYTES)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        os.close(fd)
        raise
    os.close(fd)
    return segment


def _free(folder: Path) -> tuple[int, int] | None:
    try:
        disk = os.statvfs(folder)
    except (OSError, AttributeError):
        return None
    return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize


def _allocate(fd: int, mode: str) -> None:
    try:
        os.posix_fallocate(fd, 0, SEGMENT_BYTES)
        return
    except AttributeError:  # macOS, Windows
        pass
    except OSError as error:
        if error.errno not in (22, 95):  # EINVAL, EOPNOTSUPP: a filesystem without it
            raise
    if mode == "write":  # a hole that cannot be filled is an error of pwrite then, not a signal
        return os.ftruncate(fd, SEGMENT_BYTES)
    zeros = memoryview(bytes(1 << 20))
    left = SEGMENT_BYTES
    while left:
        left -= os.write(fd, zeros[:left])


# Bytes of a segment, in either mode ------------------------------------------------------------------------------------------------


def store(segment: Segment, position: int, crc: int, body: bytes) -> None:
    """One record, its checksum last: nobody sees a part of it as good. OSError (mode "write") leaves it unwritten."""
    if type(segment) is int:
        write_whole(segment, crc.to_bytes(4, "little") + body, position)
    else:
        segment[position + 4 : position + 4 + len(body)] = body
        segment[position : position + 4] = crc.to_bytes(4, "little")


def write_whole(fd: int, data: bytes, position: int) -> None:
    """pwrite until all is there; a short write is tried on, which either gives the rest or the reason."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, position)
        if written == 0:
            raise OSError(5, "nothing was written")
        view, position = view[written:], position + written


def write_record(fd: int, position: int, crc: int, body: bytes) -> None:
    """What struct's pack_into is to a map, for the hot path of mode "write"."""
    data = crc.to_bytes(4, "little") + body
    if os.pwrite(fd, data, position) != len(data):
        raise OSError(5, "a short write")


def load(segment: Segment, position: int, size: int) -> bytes:
    return os.pread(segment, size, position) if type(segment) is int else segment[position : position + size]


class Segments:
    """The segments of one writer. A thread makes the next ones ready; the writer never waits for it, and shares no lock with it."""

    def __init__(
        self, folder: Path, writer: bytes, anchor_wall_us: int, mode: str = "map", remake: Callable[[], None] | None = None
    ) -> None:
        """remake: makes the folder again when somebody has deleted it."""
        self.folder, self.writer, self.anchor_wall_us, self.mode = folder, writer, anchor_wall_us, mode
        self.remake = remake
        self.number = -1
        self.current: Segment = None
        self._names = 0
        self._spares: deque[tuple[Path, Segment]] = deque()
        self._tasks: SimpleQueue[tuple[str, Segment]] = SimpleQueue()  # its put() is C: a Semaphore's release can wait for its own lock
        self._closed = False
        self._thread: threading.Thread | None = None
        self._began = time.monotonic()

    def next(self, first_record: int) -> Segment:
        """The next segment, its header written, under its final name. OSError when the disk is full."""
        try:
            return self._next(first_record)
        except FileNotFoundError:  # the folder was deleted under us
            if self.remake is None:
                raise
            self._clear()  # the spares went with it
            self.remake()
            return self._next(first_record)

    def _next(self, first_record: int) -> Segment:
        path, segment = self._spare()
        number = self.number + 1
        try:
            self.write_header(segment, number, first_record)
            os.rename(path, self.folder / segment_name(number))
        except BaseException:
            _discard(path, segment)
            raise
        self.number, self.current = number, segment
        self._began = time.monotonic()
        return segment

    def _spare(self) -> tuple[Path, Segment]:
        """One that is ready, else one made here: the thread may be slow, it is never waited for."""
        try:
            return self._spares.popleft()
        except IndexError:
            path = self._path()
            segment = reserve(path, self.mode)
            if self._thread is not None:
                self._tell("populate", segment)
            return path, segment

    def _path(self) -> Path:
        self._names += 1
        return self.folder / f"next-{threading.get_ident() & 0xFFFF:04x}-{self._names}.seg"

    def write_header(self, segment: Segment, number: int, first_record: int) -> None:
        packed = SEGMENT_HEADER.pack(SEGMENT_MAGIC, SEGMENT_HEADER.size, 0, number, first_record, self.writer, self.anchor_wall_us, 0)
        if type(segment) is int:
            write_whole(segment, packed, 0)
        else:
            segment[: len(packed)] = packed

    def prepare(self) -> None:
        """Have the next segment made, two if they are used up quickly; returns at once."""
        self._tell("spares", time.monotonic() - self._began < FAST_SECONDS)

    def touch(self, segment: Segment) -> None:
        """Have the pages of this one made present."""
        if self.mode == "map":
            self._tell("populate", segment)

    def release(self, segment: Segment) -> None:
        """Done with this one: unmapping takes a tenth of a millisecond, so the thread does it."""
        self._tell("release", segment)

    def _tell(self, what: str, segment: Segment) -> None:
        self._tasks.put((what, segment))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="encore-segments", daemon=True)
            self._thread.start()

    def close(self) -> None:
        self._closed = True
        if self._thread is not None:
            self._tasks.put(("end", None))
        self._clear()

    def _clear(self) -> None:
        while True:
            try:
                _discard(*self._spares.popleft())
            except IndexError:
                return

    def _work(self) -> None:
        while True:
            what, segment = self._tasks.get()
            if what == "end":
                return self._clear()
            if what == "populate":
                _populate(segment)
            elif what == "release":
                _close(segment)
            else:
                self._make_spares(2 if segment else 1)
            del segment

    def _make_spares(self, wanted: int) -> None:
        while len(self._spares) < wanted and not self._closed:
            path = self._path()
            try:
                segment = reserve(path, self.mode)
            except (OSError, ValueError):  # the disk is full: next() will meet it again, and count
                return
            self._spares.append((path, segment))
            _populate(segment)


def _close(segment: Segment) -> None:
    if type(segment) is int:
        with contextlib.suppress(OSError):
            os.close(segment)


def _discard(path: Path, segment: Segment) -> None:
    _close(segment)
    with contextlib.suppress(OSError):
        os.unlink(path)


def _populate(segment: Segment) -> None:
    """Make the pages present and writable, so that log() does not pay for page faults (two of them a thousand-scalar call)."""
    if type(segment) is int:
        return
    advise, piece = _advise(segment)
    try:
        for start in range(0, SEGMENT_BYTES, piece):
            advise(start, piece)
            if piece != POPULATE_BYTES:
                time.sleep(0.001)
    except (OSError, ValueError, AttributeError):  # an older kernel: pages come by faults, as they ever did
        return


def _advise(segment: mmap.mmap) -> tuple[Callable[[int, int], None], int]:
    """madvise by ctypes, which lets other threads run meanwhile; else mmap's own, which does not."""
    try:
        import ctypes

        madvise = ctypes.CDLL(None, use_errno=True).madvise
        held = ctypes.c_char.from_buffer(segment)  # keeps the map alive as long as its address is in use
        address = ctypes.addressof(held)
    except (ImportError, OSError, AttributeError, TypeError, ValueError):
        return lambda start, size: segment.madvise(POPULATE_WRITE, start, size), SLOW_POPULATE_BYTES

    def advise(start: int, size: int) -> None:
        if madvise(ctypes.c_void_p(address + start), ctypes.c_size_t(size), POPULATE_WRITE) != 0 and held is not None:
            raise OSError(ctypes.get_errno(), "madvise")

    return advise, POPULATE_BYTES
