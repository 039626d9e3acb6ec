"""Where a run's journal lies: in ENCORE_JOURNAL, unless that is on a filesystem which the hot part must not be trusted to.

Then it lies in a private folder of this node, and the sender drains it into ENCORE_SPOOL (or, without one, into the shared ENCORE_JOURNAL
itself, where `encore sync` looks for it anyway). If this node has no such folder, ENCORE_JOURNAL is written by write(2).
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _filesystems
from ._reader import read_json

PLACE = "place.json"  # in a run's folder: what was chosen, and by which inode the folder knows itself from a copy


@dataclass(frozen=True)
class Place:
    root: Path
    mode: str  # "map" or "write"
    spool: Path | None = None
    why: str | None = None  # why it is not ENCORE_JOURNAL
    private: bool = False  # a folder of this node that others could have laid a trap into

    def ready(self) -> None:
        """OSError if it must not be used."""
        if self.private and not private(self.root.parent):
            raise PermissionError(13, f"{self.root.parent} is not this user's own")


def choose(settings: Any) -> list[Place]:
    """Best first. Which of them can really be written shows when the journal is opened there."""
    wanted: Path = settings.journal
    found = _filesystems.of(wanted)
    by_write = settings.journal_mode == "write"
    spool = None if settings.spool is None or _same(settings.spool, wanted) else settings.spool

    def mode(there: _filesystems.Filesystem) -> str:
        return "write" if by_write or there.journal != "map" else "map"

    own = Place(wanted, mode(found), spool)
    if settings.sender == "external":  # whoever sends it looks there and nowhere else
        return [own, *(Place(folder, mode(there), private=True) for folder, there in _near(settings))]
    if not found.shared:
        return [own, *(Place(folder, mode(there), spool, private=True) for folder, there in _near(settings))]
    why = f"{wanted} is on {found.kind}"
    return [*(Place(folder, mode(there), settings.spool or wanted, why, True) for folder, there in _near(settings)), own]


def _near(settings: Any) -> Iterator[tuple[Path, _filesystems.Filesystem]]:
    """Journal roots on this node's own disks."""
    for base in dict.fromkeys(_bases(settings)):
        there = _filesystems.of(base)
        if not there.shared and os.access(base, os.W_OK | os.X_OK):
            yield base / _own_name() / "sdk", there


def _bases(settings: Any) -> Iterator[Path]:
    if getattr(settings, "local", None) is not None:
        with contextlib.suppress(OSError):
            settings.local.mkdir(parents=True, exist_ok=True)
        yield settings.local
        return
    for name in ("SLURM_TMPDIR", "TMPDIR"):
        if os.environ.get(name):
            yield Path(os.environ[name]).absolute()
    yield Path("/tmp") if os.name == "posix" else Path(tempfile.gettempdir())  # noqa: S108 - a private folder in it
    yield Path("/dev/shm")  # noqa: S108 - memory, so last


def _own_name() -> str:
    return f"encore-{os.getuid() if hasattr(os, 'getuid') else 'sdk'}"


def private(folder: Path) -> bool:
    """Ours alone, a real folder: nobody has put a link or a folder of their own there before us. Made if it is missing."""
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        found = os.lstat(folder)
        if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
            return False
        if os.name == "posix" and found.st_mode & 0o077:
            os.chmod(folder, 0o700)
        return os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        return False


def roots(settings: Any) -> list[Path]:
    """Every folder of this machine in which this user's journals may lie; the spool too."""
    found = [settings.journal]
    for base in _bases(settings):
        folder = base / _own_name()
        try:
            if stat.S_ISDIR(os.lstat(folder).st_mode) and os.stat(folder).st_uid == os.getuid():
                found.append(folder / "sdk")
        except (OSError, AttributeError):
            continue
    if settings.spool is not None:
        found.append(settings.spool)
    kept: list[Path] = []
    for folder in found:
        if not any(_same(folder, other) for other in kept):
            kept.append(folder)
    return kept


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.abspath(one) == os.path.abspath(other)


# A folder knows itself ---------------------------------------------------------------------------------------------------------------


def note(run_folder: Path, place: Place) -> None:
    """Leaves place.json, so that a copy of the folder can be told from the folder. Never raises."""
    try:
        if (run_folder / PLACE).exists():
            return
        from ._journal import write_json

        spool = str(place.spool) if place.spool else None
        write_json(run_folder / PLACE, {"inode": os.stat(run_folder).st_ino, "journal_mode": place.mode, "spool": spool, "why": place.why})
    except OSError:
        return


def is_copy(run_folder: Path) -> bool:
    """Whether this run folder was copied from elsewhere, perhaps while it was being written. False where nobody knows."""
    about = read_json(run_folder / PLACE)
    try:
        return about is not None and about.get("inode") is not None and int(about["inode"]) != os.stat(run_folder).st_ino
    except (OSError, ValueError, TypeError):
        return False
