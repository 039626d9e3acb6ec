"""Objects as files below one folder: written aside, synced, renamed, so that a crash leaves a whole object or none."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from tracker.store.backends.base import MissingObject, StoreTrouble, checked

_ASIDE = ".aside"
"""The folder of unfinished files: on the same filesystem, hidden from listing, emptied of old ones by ``sweep_aside``."""


class Folder:
    is_remote = False

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def _path(self, key: str) -> Path:
        return self.root / checked(key)

    def put(self, key: str, data: bytes | BinaryIO) -> int:
        target = self._path(key)
        aside = self.root / _ASIDE / secrets.token_hex(16)
        aside.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if isinstance(data, bytes | bytearray | memoryview):
                    file.write(data)
                else:
                    shutil.copyfileobj(data, file, 2**20)
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            self._rename(aside, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)
            raise
        _sync_folder(target.parent)
        return size

    def _rename(self, aside: Path, target: Path) -> None:
        for attempt in range(20):
            self._make_folders(target.parent)
            try:
                os.replace(aside, target)
                return
            except FileNotFoundError:  # ``delete`` took the folder, which was empty again
                if attempt == 19:
                    raise

    def _make_folders(self, folder: Path) -> None:
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
            _sync_folder(path.parent)  # a folder that power loss forgets takes its files with it

    def open(self, key: str) -> BinaryIO:
        path = self._path(key)
        try:
            return path.open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise MissingObject(key) from None

    @contextlib.contextmanager
    def _descriptor(self, key: str) -> Iterator[int]:
        """For pread, without a Python file and its buffer around it. Raises MissingObject, StoreTrouble."""
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except (FileNotFoundError, NotADirectoryError):
            raise MissingObject(key) from None
        except OSError as problem:
            raise StoreTrouble(f"{key}: {problem.strerror}") from problem
        try:
            yield descriptor
        except IsADirectoryError:
            raise MissingObject(key) from None
        except OSError as problem:
            raise StoreTrouble(f"{key}: {problem.strerror}") from problem
        finally:
            os.close(descriptor)

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        with self._descriptor(key) as descriptor:
            return _pread(descriptor, start, (os.fstat(descriptor).st_size if end is None else end) - start)

    def ranges(self, key: str, spans: list[tuple[int, int]]) -> list[bytes]:
        with self._descriptor(key) as descriptor:
            return [_pread(descriptor, start, end - start) for start, end in spans]

    def size(self, key: str) -> int:
        with self.open(key) as file:
            return os.fstat(file.fileno()).st_size

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def delete(self, key: str) -> None:
        path = self._path(key)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
            with contextlib.suppress(OSError):
                path.parent.rmdir()  # only when empty

    def list(self, prefix: str) -> Iterator[tuple[str, int, datetime]]:
        for folder, _, names in os.walk(self._path(prefix)):
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    yield path.relative_to(self.root).as_posix(), stat.st_size, datetime.fromtimestamp(stat.st_mtime, timezone.utc)

    def sweep_aside(self, older_than: datetime) -> int:
        """Remove what writers that died left unfinished; how many."""
        removed = 0
        with contextlib.suppress(FileNotFoundError):
            for path in (self.root / _ASIDE).iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime < older_than.timestamp():
                        path.unlink()
                        removed += 1
        return removed

    def presign_get(self, key: str, seconds: int) -> str | None:
        checked(key)

    def presign_put(self, key: str, bytes: int, seconds: int) -> tuple[str, dict[str, str]] | None:
        checked(key)


def _pread(descriptor: int, at: int, size: int) -> bytes:
    if size <= 0:
        return b""
    found = os.pread(descriptor, size, at)
    while len(found) < size and (more := os.pread(descriptor, size - len(found), at + len(found))):
        found += more
    return found


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
