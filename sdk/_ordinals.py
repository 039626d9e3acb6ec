"""Counting, on one node, the launches that follow each other under one name of the scheduler's.

A SLURM step that holds a shell, or sbatch's own script, can start several programs, and a requeued job starts them again in the same
order. So each launch takes the next number under its name: `<journals>/.launches/<name's hash>/<number>` holds who took it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from . import _process
from ._ids import derived_id

FOLDER = ".launches"
MOST = 10_000
KEEP_SECONDS = 30 * 86400


def number(root: Path, name: tuple[str, ...], who: str, alone: bool) -> int | None:
    """The number of launch `who` ("pid:start" of what its ranks have in common). 0 if it cannot be written down.

    alone: a plain program; beside another of the same name that still runs, nobody could tell the two apart in a requeued job: None.
    """
    folder = root / FOLDER / derived_id(*name)
    holder = f"{_process.host()} {_process.boot_id()} {_process.pid_namespace()} {who}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = folder / f".{os.getpid()}"
        aside.write_text(holder)
    except OSError:
        return None if alone else 0
    try:
        for taken in range(MOST):
            try:
                os.link(aside, folder / str(taken))  # with its content or not at all
                return taken
            except FileExistsError:
                other = (folder / str(taken)).read_text()
                if other == holder:
                    return taken
                if alone and _lives(other):
                    return None
        return None
    except OSError:
        return None if alone else 0
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def _lives(holder: str) -> bool:
    host, boot, namespace, who = (*holder.split(" "), "", "", "", "")[:4]
    if (host, boot, namespace) != (_process.host(), _process.boot_id(), _process.pid_namespace()):
        return False
    pid, _, start = who.partition(":")
    return pid.isdigit() and str(_process.started(int(pid))) == start


def note(root: Path, name: str, value: str) -> None:
    """Keeps a word about a launch for its later starts on this node; see `clean`."""
    folder = root / FOLDER
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = folder / f".{os.getpid()}.{name}"
        aside.write_text(value)
        aside.replace(folder / name)


def noted(root: Path, name: str) -> str | None:
    try:
        return (root / FOLDER / name).read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def clean(root: Path) -> None:
    """What is older than a month goes. Called by senders with nothing else to do."""
    with contextlib.suppress(OSError):
        for old in (root / FOLDER).iterdir():
            with contextlib.suppress(OSError):
                if old.stat().st_mtime < time.time() - KEEP_SECONDS:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
