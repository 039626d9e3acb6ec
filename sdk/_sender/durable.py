"""Brings the journals of a run to the disk each second, so that a power loss costs at most what was logged in the last one.

What `log()` has returned lies in the page cache, where it survives any death of a process. Only the machine's own end can take it, and
the kernel alone would write it within some thirty seconds. So each second: the segment that is written to; each earlier one once more
after it stopped being the last; writer.json, capture.json and blobs once; and each folder whose names have changed.
"""

from __future__ import annotations

import os
from pathlib import Path

ONCE = ("writer.json", "capture.json")


class Durable:
    """Not thread-safe; lives in the sender's sync thread, which waits for no network."""

    def __init__(self, run_folder: Path) -> None:
        self.run_folder = run_folder
        self.failed: str | None = None  # a sync that failed is no sync: the kernel has dropped what it could not write
        self._whole: set[tuple[str, int]] = set()  # files that change no more and are on the disk, by path and inode
        self._names: dict[str, frozenset[str]] = {}
        self._resting: set[str] = set()

    def step(self, ended: set[str]) -> None:
        """One round. ended: writers that will write no more; they are synced once more and then left alone."""
        names = self._listed(self.run_folder)
        for name in sorted(names):
            folder = self.run_folder / name
            if name in self._resting or not (folder / "writer.json").exists():
                continue
            at_end = name in ended
            self._writer(folder, at_end)
            if at_end:
                self._resting.add(name)
        writers = frozenset(name for name in names if (self.run_folder / name / "writer.json").exists())
        if self._names.get("") != writers:
            done = self._sync(self.run_folder) and self._sync(self.run_folder.parent)
            if done:
                self._names[""] = writers

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
        blobs = frozenset(name for name in self._listed(folder / "blobs") if not name.startswith("."))
        if blobs and self._names.get(f"{folder.name}/blobs") != blobs:
            whole = [self._once(folder / "blobs" / name) for name in sorted(blobs)]
            if all(whole) and self._sync(folder / "blobs"):
                self._names[f"{folder.name}/blobs"] = blobs
        lasting = frozenset(name for name in names if not name.startswith("."))
        # Last: a name may stand on the disk only when what it names does.
        if (self._names.get(folder.name) != lasting or at_end) and self._sync(folder):
            self._names[folder.name] = lasting

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
