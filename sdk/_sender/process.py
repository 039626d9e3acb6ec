"""The sender's process: one run of this host from its first record to its last acknowledgement, then whatever older runs left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from .._reader import read_json
from . import drain, limits
from .run import RunSender

ADOPTED_ROUNDS = 16  # quiet rounds before an adopted run is left alone: a vanished process shows after two looks


def main(run_folder: str) -> int:
    with contextlib.suppress(OSError, AttributeError):
        os.nice(19)
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
        sender.drain = drain.Drain(folder)
        finished = _follow(sender, stopping)
        sender.drain.close(sender, stopping)
        drain.adopt(folder.parent, folder, stopping)
        if finished and url:
            _adopt(folder.parent, folder, url, token, stopping)
        sender.resign()
        if not (finished or sender.drain.whole) or not _somebody_new(sender):
            return 0


def _follow(sender: RunSender, stopping: threading.Event) -> bool:
    """Until all is acknowledged and the trainers are gone; True if that came to pass."""
    syncing = threading.Thread(target=_sync, args=(sender, stopping), name="encore-sync", daemon=True)
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
        if deadline is not None and (time.monotonic() > deadline or sender.delivered):
            return False
        if not sender.step():
            time.sleep(limits.TICK_SECONDS)
    sender._next_status = 0.0
    sender._tell()
    return True


def _sync(sender: RunSender, stopping: threading.Event) -> None:
    while not sender.done:
        sender.sync()
        time.sleep(limits.SYNC_SECONDS)


def _somebody_new(sender: RunSender) -> bool:
    """A rank that opened its journal while we were leaving saw our lock, and counts on us."""
    before = set(sender.outboxes)
    sender.rescan()
    return any(not box.ended for name, box in sender.outboxes.items() if name not in before)


def _adopt(root: Path, own: Path, url: str, token: str | None, stopping: threading.Event) -> None:
    """Runs that a death left behind are delivered by the next sender that has nothing else to do; delivered ones go after a day."""
    for folder in run_folders(root):
        if folder == own or stopping.is_set():
            continue
        abouts = writers(folder)
        if not abouts or any(about.get("mode") != "online" or (about.get("url") or url) != url for about in abouts):
            continue
        sender = RunSender(folder, url, token)
        if not sender.elect():
            continue
        try:
            deadline = time.monotonic() + 60
            settled = 0
            while time.monotonic() < deadline and not stopping.is_set() and settled < ADOPTED_ROUNDS and not sender.error:
                busy = sender.step()
                if sender.done:
                    break
                settled = 0 if busy or not sender.delivered else settled + 1
                if not busy:
                    time.sleep(limits.TICK_SECONDS)
            if sender.done:
                sweep(folder)
        except Exception as error:  # one broken folder does not keep the others
            print(f"encore: {folder}: {type(error).__name__}: {error}", file=sys.stderr)
        finally:
            sender.resign()


def sweep(folder: Path) -> bool:
    """Removes a run's folder a day after its last writer was sealed."""
    acks = [(path, read_json(path)) for path in folder.glob("*/ack.json")]
    if (
        not acks
        or len(acks) < len(list(folder.glob("*/writer.json")))
        or not all((ack or {}).get("sealed") or (ack or {}).get("gone") for _, ack in acks)
    ):
        return False
    if time.time() - max(path.stat().st_mtime for path, _ in acks) < limits.KEEP_SEALED_SECONDS:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return True


def run_folders(root: Path) -> list[Path]:
    """Folders below a journal root that hold writers."""
    try:
        return sorted(entry for entry in root.iterdir() if entry.is_dir() and any(entry.glob("*/writer.json")))
    except OSError:
        return []


def writers(folder: Path) -> list[dict[str, Any]]:
    return [about for path in sorted(folder.glob("*/writer.json")) if (about := read_json(path)) is not None]
