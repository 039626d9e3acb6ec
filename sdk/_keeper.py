"""Keeps a sender at work: one that was killed (by hand, or as the machine's memory ran out) comes back while training goes on.

What is logged is safe in the journal either way; without a sender the run would look crashed until it ends. A look each quarter of a
minute costs the trainer one lock call in a thread of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from . import _sender
from ._reader import read_json
from ._settings import Settings

LOOK_SECONDS = 15.0
LONGEST_SECONDS = 600.0  # for a sender that dies as soon as it is started


def keep(run_folder: Path, settings: Settings) -> Callable[[], None]:
    """Begins to look after the run's sender; returns what ends that. Never raises."""
    over = threading.Event()
    pid = os.getpid()

    def work() -> None:
        wait = LOOK_SECONDS
        # Jitter, so that the ranks of a node do not all start one in the same instant (which would be harmless: one is elected).
        while not over.wait(wait * (0.8 + os.urandom(1)[0] / 640)):
            if os.getpid() != pid:
                return
            status = read_json(run_folder / _sender.STATUS) or {}
            if status.get("refused") and status.get("done"):  # the server wants nothing of this run
                wait = LONGEST_SECONDS
            elif _sender.at_work(run_folder) or not run_folder.exists():
                wait = LOOK_SECONDS
            else:
                _sender.start(run_folder, settings)
                wait = min(LONGEST_SECONDS, wait * 2)

    threading.Thread(target=work, name="encore-keeper", daemon=True).start()
    return over.set
