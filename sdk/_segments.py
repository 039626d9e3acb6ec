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
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ._records import SEGMENT_BYTES, SEGMENT_HEADER, SEGMENT_MAGIC, segment_name

MIN_FREE_SHARE = 0.02  # a disk fuller than this is left to others …
MIN_FREE_BYTES = 1 << 30  # … unless what is left is plenty all the same
POPULATE_WRITE = getattr(mmap, "MADV_POPULATE_WRITE", 23)  # Linux 5.14
CHECK_SECONDS = 1.0  # between looks at the free space
FAST_SECONDS = 2.0  # a segment that is full sooner than this calls for two spares

_ZEROS = bytes(1 << 20)

Segment = Any  # mmap.mmap, or a file descriptor in mode "write"


def reserve(path: Path, mode: str = "map", check: bool = True, zero: bool = False) -> Segment:
    """A file of 4 MiB whose every block is allocated, mapped (or open, in mode "write"). OSError if the disk will not give it.

    zero: write it once, so that its pages are there: a thousand-scalar call pays 5 µs for the faults of fresh ones, 0.3 for these, and
    all of it takes 0.7 ms here, without the interpreter's lock.
    """
    free = _free(path.parent) if check else None
    if free is not None and free[0] < MIN_FREE_BYTES and free[0] < MIN_FREE_SHARE * free[1]:
        raise OSError(28, f"less than {MIN_FREE_SHARE:.0%} of the disk is free")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0), 0o600)
    try:
        _allocate(fd, mode)
        if mode == "write":
            return fd
        if zero and hasattr(os, "pwritev") and os.pwritev(fd, [_ZEROS] * (SEGMENT_BYTES // len(_ZEROS)), 0) != SEGMENT_BYTES:
            raise OSError(5, "a short write")
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
    left = SEGMENT_BYTES
    while left:
        left -= os.write(fd, memoryview(_ZEROS)[:left])


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

    def __init__(self, folder: Path, writer: bytes, anchor_wall_us: int, mode: str = "map") -> None:
        self.folder, self.writer, self.anchor_wall_us, self.mode = folder, writer, anchor_wall_us, mode
        self.number = -1
        self.current: Segment = None
        self._names = 0
        self._spares: deque[tuple[Path, Segment]] = deque()
        self._tasks: SimpleQueue[tuple[str, Segment]] = SimpleQueue()  # its put() is C: a Semaphore's release can wait for its own lock
        self._closed = False
        self._thread: threading.Thread | None = None
        self._began = time.monotonic()
        self._check_after = 0.0

    def next(self, first_record: int) -> Segment:
        """The next segment, its header written, under its final name. OSError when the disk is full, or the folder gone."""
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
            segment = reserve(path, self.mode, self._due(), zero=self.number < 0)
            if self._thread is not None:
                self._tell("populate", segment)
            return path, segment

    def _due(self) -> bool:
        """Whether to look at the free space now: not for every segment of a writer in a hurry."""
        now = time.monotonic()
        if now < self._check_after:
            return False
        self._check_after = now + CHECK_SECONDS
        return True

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
        self.clear()

    def clear(self) -> None:
        """Let the spares go."""
        while True:
            try:
                _discard(*self._spares.popleft())
            except IndexError:
                return

    def _work(self) -> None:
        while True:
            what, segment = self._tasks.get()
            if what == "end":
                return self.clear()
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
                segment = reserve(path, self.mode, self._due(), zero=True)
            except (OSError, ValueError):  # the disk is full: next() will meet it again, and count
                self._check_after = 0.0
                return
            self._spares.append((path, segment))


def _close(segment: Segment) -> None:
    if type(segment) is int:
        with contextlib.suppress(OSError):
            os.close(segment)


def _discard(path: Path, segment: Segment) -> None:
    _close(segment)
    with contextlib.suppress(OSError):
        os.unlink(path)


def _populate(segment: Segment) -> None:
    """Make the pages of a map present that is in use already. By ctypes, which lets other threads run meanwhile, as mmap's own does not."""
    if type(segment) is int:
        return
    try:
        import ctypes

        held = ctypes.c_char.from_buffer(segment)  # keeps the map alive as long as its address is in use
        address = ctypes.c_void_p(ctypes.addressof(held))
        ctypes.CDLL(None).madvise(address, ctypes.c_size_t(SEGMENT_BYTES), POPULATE_WRITE)  # an older kernel says no: then by faults
        del held
    except (ImportError, OSError, AttributeError, TypeError, ValueError):
        return
