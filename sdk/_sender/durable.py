"""Brings the journals of a run to the disk each second, so that a power loss costs at most what was logged in the last one.

What `log()` has returned lies in the page cache, where it survives any death of a process. Only the machine's own end can take it, and
the kernel alone would write it within some thirty seconds. So each second: the segment that is written to; each earlier one once more
after it stopped being the last; writer.json, capture.json and blobs (unless the store has them) once; and each folder whose names have
changed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container
from pathlib import Path

ONCE = ("writer.json", "capture.json")
BLOBS_SECONDS = 0.3  # of each round


class Durable:
    """Not thread-safe; lives in the sender's sync thread, which waits for no network."""

    def __init__(self, run_folder: Path, sent: Callable[[], Container[str]] = frozenset) -> None:
        """sent: names of blobs that the store has; they need no disk of ours."""
        self.run_folder, self.sent = run_folder, sent
        self.failed: str | None = None  # a sync that failed is no sync: the kernel has dropped what it could not write
        self._whole: set[tuple[str, int]] = set()  # files that change no more and are on the disk, by path and inode
        self._names: dict[str, frozenset[str]] = {}
        self._resting: set[str] = set()

    def step(self, ended: set[str]) -> None:
        """One round. ended: writers that will write no more; they are synced once more and then left alone.

        The points first. Blobs (a source of thousands of files) take what is left of the second, and go on in the next.
        """
        names = [name for name in sorted(self._listed(self.run_folder)) if (self.run_folder / name / "writer.json").exists()]
        resting = {name for name in names if name in ended and name in self._resting}
        for name in names:
            if name not in resting:
                self._writer(self.run_folder / name, name in ended)
        if self._names.get("") != frozenset(names):
            done = self._sync(self.run_folder) and self._sync(self.run_folder.parent)
            if done:
                self._names[""] = frozenset(names)
        until = time.monotonic() + BLOBS_SECONDS
        for name in names:
            if name not in resting and self._blobs(self.run_folder / name / "blobs", until) and name in ended:
                self._resting.add(name)

    def _writer(self, folder: Path, at_end: bool) -> None:
        names = self._listed(folder)
        segments = sorted(name for name in names if name.endswith(".seg") and name[:-4].isdigit())
        for name in segments[:-1]:
            self._once(folder / name)
        if segments:
            self._sync(folder / segments[-1])
        for name in ONCE:
            if name in names:
                self._once(folder / name)
        lasting = frozenset(name for name in names if not name.startswith("."))
        # Last: a name may stand on the disk only when what it names does.
        if (self._names.get(folder.name) != lasting or at_end) and self._sync(folder):
            self._names[folder.name] = lasting

    def _blobs(self, folder: Path, until: float) -> bool:
        """True if all of them are on the disk."""
        blobs = frozenset(name for name in self._listed(folder) if not name.startswith("."))
        if self._names.get(str(folder), frozenset()) == blobs:
            return True
        sent = self.sent()
        for name in sorted(blobs):
            if name not in sent and not self._once(folder / name):
                return False
            if time.monotonic() > until:
                return False
        if self._sync(folder):
            self._names[str(folder)] = blobs
            return True
        return False

    def _once(self, path: Path) -> bool:
        try:
            found = os.stat(path)
        except OSError:
            return True
        mark = (str(path), found.st_ino)
        if mark in self._whole:
            return True
        if self._sync(path):
            self._whole.add(mark)
            return True
        return False

    def _sync(self, path: Path) -> bool:
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError:
            return True  # delivered and unlinked meanwhile
        try:
            _to_disk(fd)
            return True
        except OSError as error:
            if error.errno not in (22, 95):  # EINVAL, EOPNOTSUPP: a folder or filesystem that knows no sync
                self.failed = f"the disk did not take the journal ({path.name}: {error.strerror or error})"
            return False
        finally:
            os.close(fd)

    @staticmethod
    def _listed(folder: Path) -> frozenset[str]:
        try:
            return frozenset(os.listdir(folder))
        except OSError:
            return frozenset()


def _to_disk(fd: int) -> None:
    """fsync; on macOS that stops at the drive's own cache unless asked for more."""
    try:
        from fcntl import F_FULLFSYNC, fcntl  # type: ignore[attr-defined,unused-ignore]
    except ImportError:
        os.fsync(fd)
    else:
        fcntl(fd, F_FULLFSYNC)
