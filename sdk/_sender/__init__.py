"""The sender: a process of its own that follows the journals of a run on this host and brings them to the server."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .._settings import Settings, start_process

PATH_VARIABLE = "ENCORE_SENDER_PATH"
LOCK = "sender.lock"
STATUS = "sender.json"


def start(run_folder: Path, settings: Settings) -> bool:
    """Starts the sender of a run unless one is at work. True if it was started now. Never raises, waits a few ms at most.

    It is started from a file path under `-I`, so that neither a folder `sdk` beside the user's script nor PYTHONPATH shadows a module; by a
    shell that ends at once, so that it is no child of the training process (os.wait, killing all children); in a session of its own.
    """
    if at_work(run_folder):
        return False
    if not sys.executable:
        return False
    environment = {**os.environ, PATH_VARIABLE: os.pathsep.join(os.path.abspath(entry) for entry in sys.path if entry)}
    for name, value in (("ENCORE_URL", settings.url if settings.mode == "online" else None), ("ENCORE_TOKEN", settings.token)):
        environment.pop(name, None)
        if value:
            environment[name] = value
    environment["ENCORE_HOME"] = str(settings.home)
    environment.setdefault("MALLOC_ARENA_MAX", "1")  # its threads take turns: an arena each would cost 10 MB
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):  # what a batch took goes back to the system: another 10 MB
        environment.setdefault(name, "131072")
    command = [sys.executable, "-I", str(Path(__file__).with_name("__main__.py")), str(run_folder)]
    options: dict[str, Any] = {"env": environment, "cwd": "/", "stdin": subprocess.DEVNULL, "close_fds": True}
    try:
        with open(run_folder / "sender.log", "ab") as log:
            options |= {"stdout": log, "stderr": log}
            if os.name == "posix":
                shell = start_process(["/bin/sh", "-c", '"$@" &', "encore-sender", *command], start_new_session=True, **options)
                with contextlib.suppress(OSError):
                    shell.wait(timeout=10)
            else:
                start_process(command, creationflags=0x00000208, **options)  # DETACHED_PROCESS | CREATE_NEW_PROCESS_GROUP
        return True
    except (OSError, subprocess.SubprocessError):
        return False


def at_work(run_folder: Path) -> bool:
    """Whether a sender holds this run's lock."""
    try:
        import fcntl

        with open(run_folder / LOCK, "ab") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
            return False
    except (ImportError, OSError):
        return False
