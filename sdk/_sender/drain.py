"""The sender's hand towards the spool: a thread, so that a shared filesystem that hangs holds back neither the server's way nor samples.

While the server takes everything within two seconds nothing is drained: it would only be a second copy.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from .. import _spool
from .._journal import write_json
from .._reader import read_json
from . import keeping, limits

HURRY_SECONDS = 0.5  # after a SIGTERM
STOP_SECONDS = 300.0  # that long after a SIGTERM trainers are still followed: schedulers give them time for a checkpoint
SILENT_SERVER_SECONDS = 10.0
KEEP_DRAINED_SECONDS = 3600.0  # a run's folder on the node, after all of it lies in the spool


class Drain:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spool: Path | None = None
        self.error: str | None = None
        self._copy: _spool.RunCopy | None = None
        self._thread: threading.Thread | None = None
        self._wake, self._over = threading.Event(), False
        self._every = _spool.DRAIN_SECONDS
        self._lock = threading.Lock()
        self._seen: dict[str, Any] = {"writers": {}, "settled": set(), "alive": [], "gone": [], "blobs": set()}
        self._answer: dict[str, Any] | None = None
        self._marks: tuple[float, dict[str, int]] = (0.0, {})
        self._delivered_at = -1e9
        self._ended: set[str] = set()
        self._whole: set[str] = set()  # ended writers that lie in the spool to the last record
        self._drained_at = 0.0
        self._state: dict[str, Any] = {}
        self._alone_since: float | None = None

    # From the sender's loop -----------------------------------------------------------------------------------------------------

    def look(self, sender: Any) -> None:
        """Each round: what there is to drain, and what came back. Takes no time."""
        boxes = list(sender.outboxes.values())
        if self.spool is None:
            named = next((box.about["spool"] for box in boxes if box.about.get("spool")), None)
            if named is None:
                return
            self.spool = Path(named)
            self._copy = _spool.RunCopy(self.folder, self.spool)
            self._thread = threading.Thread(target=self._work, name="encore-drain", daemon=True)
            self._thread.start()
        ended = {box.id for box in boxes if box.ended and not box.eyes.waiting()}
        trainers = [box for box in boxes if box.kind != "node" or box.child]
        with self._lock:
            self._seen = {
                "writers": {box.id: box.next for box in boxes},
                "settled": ended,
                "alive": [box.id for box in trainers if not box.ended],
                "gone": [box.id for box in trainers if box.gone_told],
                "blobs": sender.blobs.done if sender.blobs is not None else set(),
            }
            answer, self._answer = self._answer, None
        self._note_delivery(sender, boxes)
        if ended - self._ended:
            self._wake.set()
        self._ended = ended
        if answer is not None:
            sender._heed(answer)

    def _note_delivery(self, sender: Any, boxes: list[Any]) -> None:
        """The server has by now what had been seen a second ago."""
        now = time.monotonic()
        since, marks = self._marks
        if now - since < 1.0:
            return
        taken = all(box.deleted is None and box.next >= marks.get(box.id, 0) for box in boxes)
        if sender.transport is not None and sender.error is None and marks and taken and not sender.blobs_waiting():
            self._delivered_at = now
        self._marks = (now, {box.id: box.eyes.next for box in boxes})

    def hurry(self) -> None:
        """We are asked to stop: the end may come at any moment."""
        self._every = HURRY_SECONDS
        self._wake.set()

    @property
    def whole(self) -> bool:
        return self._copy is not None and bool(self._ended) and self._ended <= self._whole

    def suffices(self, sender: Any, stopping: bool) -> bool:
        """All has ended and lies in the spool, and no server is in reach: nobody is needed here any more."""
        node = sender.node
        over = self.whole and sender.ending and (node is None or node.closed) and self._ended >= set(sender.outboxes)
        if not over or not (sender.transport is None or sender.error):
            self._alone_since = None
            return False
        self._alone_since = self._alone_since or time.monotonic()
        return stopping or time.monotonic() - self._alone_since > SILENT_SERVER_SECONDS

    def close(self, sender: Any, stopping: threading.Event) -> bool:
        """Drains until everything is over there; gives up when asked to stop and the spool fails, or after a day.

        False: a rank opened its journal meanwhile. Nothing is closed then: it has to be followed to its end first.
        """
        if self._thread is None:
            return True
        tried, began = 0, time.monotonic()
        while self.folder.exists():
            sender.rescan()
            if not (sender.ending or stopping.is_set()):
                return False
            self.look(sender)
            readable = {box.id for box in sender.outboxes.values() if not box.broken}
            if (self.whole and self._ended >= readable) or (sender.transport and sender.delivered):
                break
            if stopping.is_set() and (tried := tried + 1) > 20:
                break
            if time.monotonic() - began > limits.GIVE_UP_SECONDS:  # a spool that never came back: the next sender on this folder tries
                break
            self._wake.set()
            time.sleep(limits.TICK_SECONDS)
        self._over = True
        self._wake.set()
        self._thread.join(timeout=5)
        return True

    # In the thread --------------------------------------------------------------------------------------------------------------

    def _delivering(self) -> bool:
        return time.monotonic() - self._delivered_at < _spool.DRAIN_SECONDS + 1

    def _work(self) -> None:
        wait = 0.0
        while not self._over:
            if self._wake.wait(wait):
                self._wake.clear()
            began = time.monotonic()
            try:
                self._pass()
                self.error = None
                wait = max(0.1, self._every - (time.monotonic() - began))
            except Exception as error:  # a full, read-only or vanished spool: the journal here stays, and is tried again
                self.error = f"the spool {self.spool}: {getattr(error, 'strerror', None) or error or type(error).__name__}"
                if not isinstance(error, OSError):
                    print(f"encore: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                wait = min(limits.LONGEST_WAIT_SECONDS, max(_spool.DRAIN_SECONDS, wait * 2))
                self._copy = _spool.RunCopy(self.folder, self.spool) if self.spool else None
                self._whole = set()
            self._tell()

    def _pass(self) -> None:
        copy = self._copy
        if copy is None or (self._delivering() and not copy.writers):
            return
        if not self._now()["writers"]:
            return
        if not self._delivering():
            self._drained_at = time.monotonic()
            copy.copy(self._now, self._due)
            self._whole = set(copy.whole)
        answer = copy.answer()
        if answer is not None:
            with self._lock:
                self._answer = answer

    def _now(self) -> dict[str, Any]:
        with self._lock:
            return self._seen

    def _due(self) -> bool:
        if self._copy is not None and self._copy.whole - self._whole:
            self._whole = set(self._copy.whole)
            self._tell()
        if time.monotonic() - self._drained_at < self._every:
            return False
        self._drained_at = time.monotonic()
        return True

    def _tell(self) -> None:
        copy = self._copy
        state = {
            "spool": str(self.spool),
            "writers": {name: each.next for name, each in copy.writers.items()} if copy is not None else {},
            "whole": sorted(self._whole),
            "delivering": self._delivering(),
            "error": self.error,
        }
        if state != self._state:
            self._state = state
            with contextlib.suppress(OSError):
                write_json(self.folder / _spool.STATE, state)


def adopt(root: Path, own: Path, stopping: threading.Event) -> None:
    """What a death left on this node goes into its spool. What has been there for an hour, or with the server for a day, goes from here."""
    from .process import run_folders
    from .run import RunSender

    for folder in run_folders(root):
        if folder == own or stopping.is_set() or sweep(folder) or keeping.sweep(folder):
            continue
        if not any((read_json(path) or {}).get("spool") for path in folder.glob("*/writer.json")) or _all_there(folder):
            continue
        sender = RunSender(folder, None, None)
        if not sender.elect():
            continue
        drain = Drain(folder)
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and not stopping.is_set() and not drain.error:
                sender.step()
                drain.look(sender)
                if sender.done and drain.whole:
                    sender.tell_end()
                    break
                time.sleep(limits.TICK_SECONDS)
        except Exception as error:  # one broken folder does not keep the others
            print(f"encore: {folder}: {type(error).__name__}: {error}", file=sys.stderr)
        finally:
            stopped = threading.Event()
            stopped.set()
            drain.close(sender, stopped)
            sender.resign()


def _all_there(folder: Path) -> bool:
    state = read_json(folder / _spool.STATE) or {}
    return set(state.get("whole") or ()) >= {path.parent.name for path in folder.glob("*/writer.json")}


def sweep(folder: Path) -> bool:
    """Removes a run's folder from this node an hour after all of it lay in the spool."""
    from . import at_work

    try:
        old = time.time() - (folder / _spool.STATE).stat().st_mtime > KEEP_DRAINED_SECONDS
    except OSError:
        return False
    if not old or not _all_there(folder) or at_work(folder):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return True
