"""The sender's process: one run of this host from its first record to its last acknowledgement, then whatever older runs left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

from . import adopt, drain, limits
from .adopt import run_folders, sweep, writers
from .run import RunSender

__all__ = ["main", "run_folders", "sweep", "writers"]


def main(run_folder: str) -> int:
    _step_back()
    folder = Path(run_folder)
    url, token = os.environ.pop("ENCORE_URL", None), os.environ.pop("ENCORE_TOKEN", None)
    stopping = threading.Event()
    for name in ("SIGINT", "SIGHUP", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), (lambda *_: stopping.set()) if name == "SIGTERM" else signal.SIG_IGN)
    while True:
        sender = RunSender(folder, url, token, capture=True, sample=True, may_stop=True)
        if not sender.elect():
            return 0
        over = threading.Event()
        adopting = adopt.in_background(folder.parent, folder, url, token, over) if url else None
        sender.drain = drain.Drain(folder)
        finished = _follow(sender, stopping)
        while not sender.drain.close(sender, stopping):
            finished = _follow(sender, stopping)
        over.set()
        if adopting is not None:
            adopting.join(limits.STOP_SECONDS)
            if finished and not adopting.is_alive():
                adopt.adopt(folder.parent, folder, str(url), token, stopping.is_set)
        drain.adopt(folder.parent, folder, stopping)
        sender.resign()
        if not (finished or sender.drain.whole) or not _somebody_new(sender):
            return 0


def _step_back() -> None:
    """Training comes first: the lowest priority, for the disk too.

    Where Linux schedules by session (autogroup), the niceness of a process counts within its session alone and ours has one of its own,
    so the session steps back too: without it a training on all cores was slowed by 5 to 9 % while its source was copied.
    ENCORE_SENDER_NICE asks for less, where something else occupies all cores: at 19 a sender gets a sixtieth of one then.
    """
    given = os.environ.get("ENCORE_SENDER_NICE", "").strip()
    nice = min(int(given), 19) if given.isdecimal() else 19
    if nice == 0:
        return
    with contextlib.suppress(OSError, AttributeError):
        os.nice(nice)
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as file:
        file.write(str(nice))
    with contextlib.suppress(Exception):
        import psutil

        psutil.Process().ionice(getattr(psutil, "IOPRIO_CLASS_IDLE", 3))


def _follow(sender: RunSender, stopping: threading.Event) -> bool:
    """Until all is acknowledged and the trainers are gone; True if that came to pass."""
    syncing = threading.Thread(target=_sync, args=(sender,), name="encore-sync", daemon=True)
    syncing.start()
    deadline = None
    while not sender.done:
        if not sender.folder.exists():  # somebody removed the journal: nothing is left to do
            return False
        if stopping.is_set() and deadline is None:
            deadline = time.monotonic() + (limits.STOP_SECONDS if sender.drain.spool is None else drain.STOP_SECONDS)
            sender.drain.hurry()
        if sender.drain.suffices(sender, stopping.is_set()):
            return False
        # A scheduler's SIGTERM comes to the trainer at the same time: its last words are waited for.
        if deadline is not None and (time.monotonic() > deadline or (sender.delivered and sender.ending)):
            return False
        if sender.given_up:
            print(f"encore: nothing was taken for {limits.GIVE_UP_SECONDS / 3600:.0f} h: {sender.error}", file=sys.stderr)
            return False
        if not sender.step():
            time.sleep(limits.TICK_SECONDS)
    sender.sync()
    sender.tell_end()
    return True


def _sync(sender: RunSender) -> None:
    while not sender.done:
        sender.sync()
        time.sleep(limits.SYNC_SECONDS)


def _somebody_new(sender: RunSender) -> bool:
    """A rank that opened its journal while we were leaving saw our lock, and counts on us."""
    before = set(sender.outboxes)
    sender.rescan()
    return any(not box.ended for name, box in sender.outboxes.items() if name not in before)
