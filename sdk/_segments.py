"""Files of a journal: reserved whole before use, never sparse, never truncated.

A store into a sparse map on a full disk is SIGBUS, and that kills training; so a segment's blocks are allocated before it is
mapped, and a disk that is full shows as an OSError here, where it is counted instead.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from pathlib import Path

from ._records import SEGMENT_BYTES, SEGMENT_HEADER, SEGMENT_MAGIC, segment_name

MIN_FREE_SHARE = 0.02  # a disk fuller than this is left to others …
MIN_FREE_BYTES = 1 << 30  # … unless what is left is plenty all the same
POPULATE_WRITE = getattr(mmap, "MADV_POPULATE_WRITE", 23)  # Linux 5.14
POPULATE_BYTES = 256 << 10  # madvise holds the interpreter's lock; a quarter MiB is below 0.2 ms
SPARE = "next.seg"


def reserve(path: Path) -> mmap.mmap:
    """A mapped file of 4 MiB whose every block is allocated. OSError if the disk will not give it."""
    free = _free(path.parent)
    if free is not None and free[0] < MIN_FREE_BYTES and free[0] < MIN_FREE_SHARE * free[1]:
        raise OSError(28, f"less than {MIN_FREE_SHARE:.0%} of the disk is free")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0), 0o600)
    try:
        _allocate(fd)
        return mmap.mmap(fd, SEGMENT_BYTES)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(fd)


def _free(folder: Path) -> tuple[int, int] | None:
    try:
        disk = os.statvfs(folder)
    except (OSError, AttributeError):
        return None
    return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize


def _allocate(fd: int) -> None:
    try:
        os.posix_fallocate(fd, 0, SEGMENT_BYTES)
        return
    except AttributeError:  # macOS, Windows
        pass
    except OSError as error:
        if error.errno not in (22, 95):  # EINVAL, EOPNOTSUPP: a filesystem without it
            raise
    zeros = bytes(1 << 20)
    for _ in range(SEGMENT_BYTES // len(zeros)):
        os.write(fd, zeros)


class Segments:
    """The segments of one writer, the next one made ready by a thread that does nothing else."""

    def __init__(self, folder: Path, writer: bytes, anchor_wall_us: int) -> None:
        self.folder, self.writer, self.anchor_wall_us = folder, writer, anchor_wall_us
        self.number = -1
        self._spare: mmap.mmap | None = None
        self._lock = threading.Lock()
        self._wanted = threading.Semaphore(0)
        self._closed = False
        self._thread: threading.Thread | None = None

    def next(self, first_record: int) -> mmap.mmap:
        """The next segment, mapped, its header written, under its final name. OSError when the disk is full."""
        with self._lock:
            segment, self._spare = self._spare, None
            if segment is None:
                segment = reserve(self.folder / SPARE)
            number = self.number + 1
            SEGMENT_HEADER.pack_into(
                segment, 0, SEGMENT_MAGIC, SEGMENT_HEADER.size, 0, number, first_record, self.writer, self.anchor_wall_us, 0
            )
            os.rename(self.folder / SPARE, self.folder / segment_name(number))
            self.number = number
            return segment

    def prepare(self, current: mmap.mmap | None = None) -> None:
        """Have the next segment made; returns at once. `current`: also touch the pages of this one."""
        self._current = current
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="encore-segments", daemon=True)
            self._thread.start()
        self._wanted.release()

    def close(self) -> None:
        self._closed = True
        if self._thread is not None:
            self._wanted.release()
        with self._lock:
            if self._spare is not None:
                self._spare = None
                with contextlib.suppress(OSError):
                    os.unlink(self.folder / SPARE)

    def _work(self) -> None:
        while True:
            self._wanted.acquire()
            if self._closed:
                return
            current, self._current = self._current, None
            if current is not None:
                _populate(current)
                del current
                continue
            with self._lock:
                if self._spare is None and not self._closed:
                    with contextlib.suppress(OSError):  # the disk is full: next() will meet it again, and count
                        self._spare = reserve(self.folder / SPARE)
                spare = self._spare
            if spare is not None:
                _populate(spare)
                del spare


def _populate(segment: mmap.mmap) -> None:
    """Make the pages present and writable, so that log() does not pay for page faults (twenty of them a thousand-scalar call)."""
    try:
        for start in range(0, SEGMENT_BYTES, POPULATE_BYTES):
            segment.madvise(POPULATE_WRITE, start, POPULATE_BYTES)
            time.sleep(0.001)
    except (OSError, ValueError, AttributeError):  # an older kernel: pages come by faults, as they ever did
        return
