"""Folders of a worker: one per job, and the machine's caches beside them.

<home>/jobs/<job>-<fence>/   source/ journal/ home/ tmp/ overlay/ rng/ rerun.json program.log
<home>/blobs/<2 hex>/<hex>   by digest, checked whenever used
<home>/environments/<key>/   virtual environments, each with its marker
<home>/locks/<name>          fcntl locks between workers of one machine
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from blake3 import blake3

from runner.errors import WorkerFault

CHUNK = 1 << 20


class JobFolder:
    """A fresh folder for one claim of a job; never one that an earlier claim has used."""

    def __init__(self, path: Path):
        self.path = path
        self.source = path / "source"
        self.journal = path / "journal"
        self.home = path / "home"
        self.tmp = path / "tmp"
        self.overlay = path / "overlay"
        self.stage = path / "stage"
        """Restored files that have no place in the source, before they are put where they belong."""
        self.rng = path / "rng"
        self.rerun = path / "rerun.json"
        self.output = path / "program.log"
        self.sender_log = path / "sender.log"

    @classmethod
    def create(cls, home: Path, job: str, fence: int) -> JobFolder:
        folder = cls(home / "jobs" / f"{job}-{fence}")
        try:
            folder.path.mkdir(mode=0o700, parents=True)
            for path in (folder.source, folder.journal, folder.home, folder.tmp, folder.overlay, folder.stage, folder.rng):
                path.mkdir(mode=0o700)
        except FileExistsError:
            raise WorkerFault(f"the folder {folder.path} exists already; this claim was begun before") from None
        except OSError as error:
            raise WorkerFault(f"the job's folder cannot be made ({error})") from error
        return folder

    def tail(self, limit_bytes: int = 16 * 1024) -> str:
        """The end of what the program printed."""
        try:
            with self.output.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - limit_bytes))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def close(self, *, failed: bool) -> None:
        """What need not be kept goes; a mark says whether the job failed (``prune`` keeps those apart)."""
        for path in (self.stage, self.tmp):
            remove(path)
        for work in self.overlay.glob("*/work"):
            remove(work)
        with contextlib.suppress(OSError):
            (self.path / ("failed" if failed else "done")).touch()


def prune(home: Path, *, keep: int, keep_failed: int) -> list[Path]:
    """Removes the oldest folders of ended jobs beyond the counts; returns what went. Folders of running jobs carry no mark."""
    gone = []
    for mark, count in (("done", keep), ("failed", keep_failed)):
        ended = sorted((p.parent for p in (home / "jobs").glob(f"*/{mark}")), key=lambda p: p.stat().st_mtime, reverse=True)
        for folder in ended[count:]:
            remove(folder)
            gone.append(folder)
    return gone


def prune_unused(home: Path, *, days: float) -> list[Path]:
    """Removes cached environments and blobs that no job has used for so long."""
    limit = time.time() - days * 86400
    gone = []
    for marker in (home / "environments").glob("*/.encore.json"):
        if marker.stat().st_mtime < limit:
            with lock(home, f"environment-{marker.parent.name}"):
                marker.unlink()
                remove(marker.parent)
            gone.append(marker.parent)
    for blob in (home / "blobs").glob("*/*"):
        if blob.stat().st_mtime < limit:
            blob.unlink(missing_ok=True)
            gone.append(blob)
    return gone


def remove(path: Path) -> None:
    """A tree, also where the program (or overlayfs, with its work folder) took away our rights. Never raises, never follows a link."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError:
        for directory, folders, _ in os.walk(path):
            for name in folders:
                full = os.path.join(directory, name)
                if not os.path.islink(full):
                    with contextlib.suppress(OSError):
                        os.chmod(full, 0o700)
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def lock(home: Path, name: str, *, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Between all workers of this machine. ``check`` is called while waiting and may raise."""
    folder = home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                check()
                time.sleep(0.05)
        yield


class BlobCache:
    """Blobs of this machine by digest. ``fetch(digest, file)`` writes a blob's bytes from the tracker."""

    def __init__(self, home: Path, fetch: Callable[[str, Path], None]):
        self._folder = home / "blobs"
        self._fetch = fetch

    def put(self, digest: str, target: Path) -> None:
        """Writes the blob to ``target``, a new file. The bytes are measured on the way, so a damaged cache is mended, never used."""
        for attempt in (1, 2):
            source = self._get(digest)
            hasher = blake3()
            with source.open("rb") as reader, target.open("xb") as writer:
                while chunk := reader.read(CHUNK):
                    hasher.update(chunk)
                    writer.write(chunk)
            if "blake3:" + hasher.hexdigest() == digest:
                with contextlib.suppress(OSError):
                    os.utime(source)
                return
            target.unlink()
            source.unlink(missing_ok=True)
            if attempt == 2:
                raise WorkerFault(f"the cached blob {digest} was damaged twice; look at the disk below {self._folder}")

    def read(self, digest: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            self.put(digest, path := Path(folder) / "blob")
            return path.read_bytes()

    def prefetch(self, digest: str) -> None:
        self._get(digest)

    def _get(self, digest: str) -> Path:
        name = digest.removeprefix("blake3:")
        path = self._folder / name[:2] / name
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        os.close(descriptor)
        try:
            self._fetch(digest, Path(temporary))
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        return path
