"""What a death, a cut or a week without a server left behind on this machine: the next sender brings it over, and clears what is done."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import _liveness, _ordinals, _process
from .._reader import read_json
from . import STATUS, limits
from .run import RunSender

ADOPTED_ROUNDS = 16  # quiet rounds before an adopted run is left alone: a vanished process shows after two looks


def adopt(root: Path, own: Path, url: str, token: str | None, stopping: Callable[[], bool]) -> None:
    """Delivers the other runs below a journal root that nobody sends; removes those delivered a day ago. Never raises."""
    _ordinals.clean(root)
    for folder in run_folders(root):
        if stopping():
            return
        if folder == own:
            continue
        try:
            if is_settled(folder):
                sweep(folder)
            elif not _deliver(folder, url, token, stopping):
                return  # the server does not answer: nothing else would fare better
        except Exception as error:  # one broken folder does not keep the others
            print(f"encore: {folder}: {type(error).__name__}: {error}", file=sys.stderr)


def in_background(root: Path, own: Path, url: str, token: str | None, stopping: threading.Event) -> threading.Thread:
    """`adopt` soon after the start and each ten minutes: a training of weeks must not keep an earlier one's end waiting."""

    def work() -> None:
        wait = limits.ADOPT_AFTER_SECONDS
        while not stopping.wait(wait):
            adopt(root, own, url, token, stopping.is_set)
            wait = limits.ADOPT_EVERY_SECONDS

    thread = threading.Thread(target=work, name="encore-adopt", daemon=True)
    thread.start()
    return thread


def is_settled(folder: Path) -> bool:
    """A cheap look: its last sender said that all is over, and no process of the run has come since."""
    status = read_json(folder / STATUS)
    if not status or not status.get("done") or not status.get("delivered"):
        return False
    try:
        said = (folder / STATUS).stat().st_mtime_ns
        return all(path.stat().st_mtime_ns <= said for path in folder.glob("*/writer.json"))
    except OSError:
        return False


def _deliver(folder: Path, url: str, token: str | None, stopping: Callable[[], bool]) -> bool:
    """False if the server could not be reached."""
    abouts = writers(folder)
    if not abouts or any(about.get("mode") != "online" or (about.get("url") or url) != url for about in abouts):
        return True
    if any(_liveness.alive(path.parent, about) for path in folder.glob("*/writer.json") if (about := read_json(path))):
        return True  # it has a sender, or its trainer starts one
    if any(about.get("host") != _process.host() for about in abouts) and _is_fresh(folder / STATUS):
        return True  # a shared folder: another machine's sender is at work, and not every network filesystem shows its lock
    sender = RunSender(folder, url, token)
    if not sender.elect():
        return True
    try:
        quiet = 0
        while not stopping() and quiet < ADOPTED_ROUNDS and not sender.error:
            busy = sender.step()
            if sender.done or any(_liveness.alive(box.folder, box.about) for box in sender.trainers if not box.ended):
                break  # over, or somebody has come who has or starts a sender of its own
            quiet = 0 if busy or not sender.delivered else quiet + 1
            if not busy:
                time.sleep(limits.TICK_SECONDS)
        if sender.done or (sender.delivered and sender.ending):
            sender.sync()
            sender.tell_end()
            sweep(folder)
        return sender.failing_since is None
    finally:
        sender.resign()


def _is_fresh(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < limits.ADOPT_EVERY_SECONDS
    except OSError:
        return False


def sweep(folder: Path) -> bool:
    """Removes a run's folder a day after its last writer was sealed; never what the server refused or does not have."""
    status = read_json(folder / STATUS) or {}
    acks = list(folder.glob("*/ack.json"))
    if not is_settled(folder) or status.get("refused") or len(acks) < len(list(folder.glob("*/writer.json"))):
        return False
    if any(folder.glob("*/refused.jsonl")) or time.time() - max(path.stat().st_mtime for path in acks) < limits.KEEP_SEALED_SECONDS:
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
