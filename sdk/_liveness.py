"""Is the process behind a writer still there? Asked from outside, also across a sandbox's pid namespace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import _process


def alive(folder: Path, about: Mapping[str, Any]) -> bool | None:
    """None: it runs (or ran) on another machine, so nobody here can know."""
    if about.get("host") != _process.host() or (about.get("boot") or _process.boot_id()) != _process.boot_id():
        return None
    held = _held(folder / "alive")
    if held:
        return True
    if about.get("pid_namespace", _process.pid_namespace()) == _process.pid_namespace():
        start = _process.started(int(about.get("pid") or 0))
        return start is not None and abs(start - float(about.get("pid_started") or start)) < 0.02
    return False if held is False else None


def _held(path: Path) -> bool | None:
    try:
        import fcntl

        with open(path, "r+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
            return False
    except (ImportError, OSError):
        return None
