"""Which file is whose: the program's own, a library's, the interpreter's, or data. No subprocess, cheap enough for the trainer."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

SDK_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# The alias beside the package (see pyproject): also ours, wherever it was imported from.
SDK_ALIAS = os.path.join(os.path.dirname(SDK_FOLDER), "encore.py")

_LIBRARY_PARTS = (os.sep + "site-packages" + os.sep, os.sep + "dist-packages" + os.sep)


@lru_cache(maxsize=1)
def stdlib_folders() -> tuple[str, ...]:
    """The standard library's folders of the running interpreter, with a trailing separator."""
    # Not by sysconfig and tempfile, whose import costs each program some ms.
    versioned = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    found = {os.path.dirname(os.__file__), os.path.join(sys.base_exec_prefix, sys.platlibdir, versioned)}
    return tuple(
        sorted({os.path.join(os.path.realpath(each), "") for each in found if each} | {os.path.join(each, "") for each in found if each})
    )


def is_library(path: str, extra: Iterable[str] = ()) -> bool:
    """Whether `path` belongs to an installed library or the standard library (the environment's facts cover it)."""
    if any(part in path for part in _LIBRARY_PARTS):
        return True
    return path.startswith(stdlib_folders()) or any(path.startswith(each) for each in extra)


def is_own(path: str) -> bool:
    """Whether `path` is a file of the running SDK."""
    return path.startswith(SDK_FOLDER + os.sep) or path == SDK_ALIAS


def git_root(start: str) -> str | None:
    """The nearest folder upward that holds `.git` (a folder, or a file in worktrees and submodules)."""
    folder = os.path.realpath(start)
    while True:
        if os.path.exists(os.path.join(folder, ".git")):
            return folder
        parent = os.path.dirname(folder)
        if parent == folder:
            return None
        folder = parent


def too_wide(folder: str) -> bool:
    """A folder that is nobody's project: the root, HOME, the temp folder. Only what was imported is taken from it."""
    import tempfile

    return os.path.realpath(folder) in {
        os.sep,
        os.path.realpath(os.path.expanduser("~")),
        os.path.realpath(tempfile.gettempdir()),
        "/tmp",  # noqa: S108
        "/mnt",
        "/home",
        "/opt",
    }


def source_root(entry: str | None, cwd: str) -> tuple[str, bool]:
    """(root, whether it is a git repository): of the entry file if there is one of the user's own, else of the working directory."""
    candidates = [os.path.dirname(entry)] if entry and not is_library(os.path.realpath(entry)) else []
    for folder in [*candidates, cwd]:
        root = git_root(folder)
        if root is not None:
            return root, True
    return os.path.realpath(candidates[0] if candidates else cwd), False


def inside(path: str | None, root: str) -> str | None:
    """`path` relative to `root` with `/`, or None when it lies outside. Symbolic links on the way are resolved, the file's own is not."""
    if not path:
        return None
    for form in (path, os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)), os.path.realpath(path)):
        if form == root:
            return "."
        if form.startswith(root.rstrip(os.sep) + os.sep):
            return form[len(root.rstrip(os.sep)) + 1 :].replace(os.sep, "/")
    return None


def encore_folders() -> list[str]:
    """Folders in which Encore itself reads and writes in this process: never data."""
    home = os.environ.get("ENCORE_HOME") or os.path.join(os.path.expanduser("~"), ".encore")
    found = [
        home,
        os.environ.get("ENCORE_JOURNAL") or os.path.join(home, "sdk"),
        os.environ.get("ENCORE_SPOOL"),
        os.path.expanduser("~/.encore"),
        cache_folder(),
    ]
    return [os.path.join(os.path.abspath(each), "") for each in found if each]


def cache_folder() -> str:
    """Where digests of large files are remembered between runs."""
    home = os.environ.get("ENCORE_HOME")
    return (
        os.path.join(home, "cache") if home else os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "encore")
    )


def console_files() -> list[str]:
    """The regular files that this process's stdout and stderr go to: the caller's log of the console, not an output of the program."""
    found = []
    for descriptor in (1, 2):
        for folder in ("/proc/self/fd", "/dev/fd"):
            try:
                path = os.readlink(f"{folder}/{descriptor}")
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    found.append(path)
                break
            except OSError:
                continue  # closed, or a system that does not say
    return list(dict.fromkeys(found))


def process_started_us() -> int:
    """When this process began, µs UTC. Linux knows to 10 ms (then the later end of it); elsewhere it is now."""
    import time

    now = time.time_ns() // 1000
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        age_us = int((time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")) * 1e6)
        return min(now, now - age_us + 10_000)
    except (OSError, ValueError, AttributeError, IndexError):
        return now


def interpreter_prefixes() -> list[str]:
    return sorted({os.path.realpath(each) for each in (sys.prefix, sys.base_prefix, sys.exec_prefix)})


def as_path(value: object) -> str | None:
    """A file name given in any of the ways `open` takes, as text; None for descriptors and what is not a name."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, Path)) or hasattr(value, "__fspath__"):
        return os.fsdecode(value)
    return None
