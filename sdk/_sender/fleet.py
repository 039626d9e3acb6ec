"""Many runs brought to the server by one process: `encore sync`. A few at a time; with `watch`, all that grow, and new ones."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .. import _liveness, _place, _spool
from .._reader import Reader
from . import keeping, limits
from .elsewhere import LOOK_EVERY_SECONDS, CopyReader, CopySender, SpoolSender, SyncSender
from .process import run_folders

AT_ONCE = 8
STUCK_ROUNDS = 40
ENDING_SECONDS = limits.CAPTURE_END_SECONDS + 10.0  # the longest that a sender on this machine takes to end its capture
IDLE_ROUNDS = 3  # rounds in which a run that may still grow had nothing left
TURN_SECONDS = 1.0  # so long one run is served before the others have their turn
SPOOL_SILENT_SECONDS = 30.0  # a node that said nothing for so long is told as silent by `encore status`
AGAIN_SECONDS = 10.0  # a finished run is looked at for new writers so often
SWEEP_SECONDS = 600.0
PROGRESS_SECONDS = 10.0
NOTE_SECONDS = 30.0
_REFUSED = re.compile(r"\((400|401|403|404|409|410|422) [a-z_]+\)$")  # an answer that waiting does not change


class Item:
    """One run on its way."""

    def __init__(self, folder: Path, sender: SyncSender) -> None:
        self.folder, self.sender = folder, sender
        self.due, self.idle, self.stuck = 0.0, 0, 0
        self.served = False  # a thread of the pool has it
        self.blobs = 0  # of it in the store
        self.over = False  # nothing more to do for it now
        self.sent: bool | None = None  # whether all that there was by then is with the server: a run that goes on has more a moment later
        self.goes_on = False  # by then it was being written
        self.mark: tuple[dict[str, int], set[str]] | None = None  # what there was some time ago: records of each writer, files
        self.ending_since: float | None = None
        self.noted = 0.0
        self.writers: set[str] = set()
        self.said: str | None = None

    @property
    def whole(self) -> bool:
        return self.sender.delivered and self._taken

    @property
    def _taken(self) -> bool:
        """The server refuses nothing of it, and it can be read."""
        refused = self.sender.blobs is not None and self.sender.blobs.refused
        return not any(box.deleted or box.broken for box in self.sender.outboxes.values()) and not self.torn and not refused

    def reached(self) -> bool:
        """Whether all that there was at the mark is with the server; then the mark is moved to now."""
        boxes, blobs = list(self.sender.outboxes.values()), self.sender.blobs
        if self.mark is not None:
            records, files = self.mark
            if any(box.next < records.get(box.id, 0) for box in boxes) or (blobs is not None and files - blobs.done):
                return False
        first, waiting = self.mark is None, blobs.waiting(box.folder / "blobs" for box in boxes) if blobs is not None else ()
        self.mark = {box.id: box.eyes.next for box in boxes}, set(waiting)
        return not first

    @property
    def error(self) -> str | None:
        return self.sender.error or self.sender.blobs_error

    @property
    def torn(self) -> dict[str, int]:
        return getattr(self.sender, "torn", {})

    @property
    def records(self) -> int:
        return sum(box.next for box in self.sender.outboxes.values())

    def judge(self) -> bool:
        """Once, when we leave it: of a run that is being written, what there was by then counts, and the rest is for the next sync."""
        self.goes_on = _may_grow(self, surely=True)
        self.sent = self.whole or (self.goes_on and self.idle > 0 and self._taken)
        return self.sent

    def why(self) -> str:
        if self.torn:
            name, record = next(iter(self.torn.items()))
            return (
                f"this copy breaks off at record {record} of writer {name}, as one does that is made while a run writes;"
                " copy it again, or, if the original is gone, send what lies behind the gap with --with-holes"
            )
        if deleted := next((box.deleted for box in self.sender.outboxes.values() if box.deleted), None):
            return f"refused ({deleted}); the journal is kept"
        if self.sender.delivered and self.sender.blobs is not None:
            return f"{len(self.sender.blobs.refused)} files are refused: {next(iter(self.sender.blobs.refused.values()), None)}"
        left = f"{self.sender.unsent} records and {self.sender.blobs_waiting()} files are not sent"
        return f"{left}: {self.error}" if self.error else left

    def close(self) -> None:
        for transport in (self.sender.transport, self.sender.blobs.transport if self.sender.blobs else None):
            if transport is not None:
                transport.close()


class Fleet:
    def __init__(
        self,
        roots: list[Path],
        settings: Any,
        *,
        watch: bool = False,
        capture: bool = False,
        until_finished: bool = False,
        patience: float | None = None,
        at_once: int = AT_ONCE,
        with_holes: bool = False,
    ) -> None:
        self.roots, self.settings, self.watch, self.capture = roots, settings, watch, capture
        self.until_finished, self.patience, self.at_once, self.with_holes = until_finished, patience, at_once, with_holes
        self.items: dict[Path, Item] = {}
        self.waiting: list[tuple[Path, str | None]] = []
        self.failed: str | None = None
        self._failing_since: float | None = None
        self._failing: str | None = None
        self._stopping = threading.Event()
        self._turned = threading.Event()
        self._began = time.monotonic()
        self._next_word, self._next_find, self._next_sweep = self._began + 1.0, 0.0, 0.0
        self._seen: set[Path] = set()

    # Which ----------------------------------------------------------------------------------------------------------------------

    def find(self) -> Iterator[tuple[Path, str | None]]:
        """(run folder, only this writer) of what the given folders are."""
        for root in self.roots:
            if (root / "writer.json").exists():
                yield root.parent, root.name
            elif any(root.glob("*/writer.json")):
                yield root, None
            else:
                for folder in run_folders(root):
                    yield folder, None

    def _open(self, folder: Path, only: str | None) -> Item:
        url, token = self.settings.url, self.settings.token
        sender: SyncSender
        marks = _spool.marks(folder)
        if marks and any(mark.get("inode") == os.stat(folder).st_ino for mark in marks):
            sender = SpoolSender(folder, url, token, self.watch)
        elif (marks or _place.is_copy(folder)) and not self.with_holes:
            sender = CopySender(folder, url, token, liveness=False, trust_acks=False)
        else:
            # trust_acks: the folder may have been sent to another server before
            sender = SyncSender(folder, url, token, capture=self.capture, sample=self.capture, liveness=self.watch, trust_acks=False)
        if not sender.elect():  # a live sender is at work: ours only sends beside it, which the record ranges make harmless
            sender.capture = sender.sample = sender.liveness = False
        sender.only = only
        return Item(folder, sender)

    # Going round ----------------------------------------------------------------------------------------------------------------

    def run(self, stopping: threading.Event) -> int:
        self._stopping = stopping
        with ThreadPoolExecutor(self.at_once, "encore-sync") as pool:
            try:
                while not self._round(pool):
                    self._turned.wait(0.05 if self._busy() else limits.TICK_SECONDS)
                    self._turned.clear()
            finally:
                stopping.set()
        return self._end()

    def _round(self, pool: ThreadPoolExecutor) -> bool:
        """True when all is over."""
        now = time.monotonic()
        if now >= self._next_find:
            self._next_find = now + LOOK_EVERY_SECONDS if self.watch else float("inf")
            for folder, only in self.find():
                if folder not in self._seen:
                    self._seen.add(folder)
                    self.waiting.append((folder, only))
        while self.waiting and (self.watch or sum(not item.over for item in self.items.values()) < self.at_once):
            folder, only = self.waiting.pop(0)
            try:
                self.items[folder] = self._open(folder, only)
            except OSError as error:
                print(f"encore sync: {folder}: {error}", file=sys.stderr)
        for item in self.items.values():
            if not item.served and now >= item.due and (not item.over or self.watch):
                item.served = True  # before it is handed over: a quick turn is done before submit returns
                pool.submit(self._turn, item)
        self._words(now)
        if self.watch and now >= self._next_sweep:
            self._next_sweep = now + SWEEP_SECONDS
            self._sweep()
        return self._over(now)

    def _turn(self, item: Item) -> None:
        """In a thread of the pool: this run's next steps."""
        try:
            self._serve(item)
        except Exception as error:  # one broken folder does not keep the others
            item.sender.error = f"{type(error).__name__}: {error}"
            item.due = time.monotonic() + limits.LONGEST_WAIT_SECONDS
            item.over = not self.watch
        finally:
            item.served = False
            self._turned.set()

    def _serve(self, item: Item) -> None:
        sender = item.sender
        if item.over:  # watched, and finished some time ago: has it been taken up again?
            sender.rescan()
            item.due = time.monotonic() + AGAIN_SECONDS
            if set(sender.outboxes) <= item.writers:
                return
            item.over, item.idle, item.sent, item.mark, item.ending_since = False, 0, None, None, None
        until = time.monotonic() + TURN_SECONDS
        while True:
            moved = sender.step()
            self._note(item, moved)
            if not moved or time.monotonic() > until or self._stopping.is_set():
                break
        delivered = sender.delivered
        so_far = item.reached() and _may_grow(item, surely=True)  # a program that logs without a pause is never delivered
        item.idle = item.idle + 1 if so_far or (delivered and not moved) else 0
        uploading = sender._uploads is not None and sender._uploads.is_alive()
        item.stuck = 0 if moved or delivered or so_far or item.error or uploading else item.stuck + 1
        if not self.watch and (item.idle or item.stuck >= IDLE_ROUNDS) and self._settle(item):
            item.idle = item.stuck = 0
            return
        refused = not self.watch and sender.error is not None and bool(_REFUSED.search(sender.error))
        quiet = item.idle >= (IDLE_ROUNDS if _may_grow(item) else 1) or item.stuck >= STUCK_ROUNDS
        if refused or item.torn or ((sender.done or (quiet and not self.watch)) and not _ends_soon(item)):
            if not item.judge() and item.idle and item._taken:  # it wrote and ended since we looked
                item.idle, item.sent = 0, None
                return
            item.over, item.writers = True, set(sender.outboxes)
            if item.sent:
                keeping.note_delivered(sender)
            self._tell(item)
            item.close()
        item.due = 0.0 if moved else time.monotonic() + limits.TICK_SECONDS
        if isinstance(sender, SpoolSender) and item.whole and time.monotonic() - item.noted > NOTE_SECONDS:
            item.noted = time.monotonic()
            keeping.note_delivered(sender)  # for `encore status`, while the run goes on
        if isinstance(sender, SpoolSender) and not moved:
            item.due = time.monotonic() + LOOK_EVERY_SECONDS

    def _settle(self, item: Item) -> bool:
        """What can be read no further, though more lies behind: nobody goes on writing it, so look there. True if that opens a way."""
        found = False
        for box in item.sender.outboxes.values():
            if box.dead or box.deleted or box.finish is not None or _liveness.alive(box.folder, box.about) is True:
                continue
            behind = Reader(box.folder)
            behind.seek(box.reader.next)
            if behind.read(settled=True) is None:
                continue
            if isinstance(box.reader, CopyReader):
                box.reader.torn_at = box.reader.next
            else:
                box.dead = found = True
        return found

    def _note(self, item: Item, moved: bool) -> None:
        """Patience ends when errors come and nothing moves any more, in no run."""
        blobs = len(item.sender.blobs.done) if item.sender.blobs is not None else 0
        if moved or item.sender.delivered or blobs > item.blobs:
            self._failing_since = None
        elif item.error:
            self._failing_since, self._failing = self._failing_since or time.monotonic(), item.error
        item.blobs = blobs

    def _busy(self) -> bool:
        return any(item.served for item in self.items.values())

    def _over(self, now: float) -> bool:
        if self._busy():
            return False
        items = list(self.items.values())
        if self.watch and self.until_finished:
            if items and all(item.over and item.sender.done for item in items) and not self.waiting:
                return True
        elif not self.watch and not self.waiting and all(item.over for item in items):
            return True
        if self._failing_since is not None and self.patience is not None and now - self._failing_since > self.patience:
            self.failed = self._failing
            return True
        if not self._stopping.is_set() or not all(item.idle or item.sender.delivered or item.error or item.torn for item in items):
            return False
        for item in items:
            if not item.over:
                item.judge()
        return True

    # Words ----------------------------------------------------------------------------------------------------------------------

    def _words(self, now: float) -> None:
        if now < self._next_word or self.watch or len(self.items) + len(self.waiting) < 2:
            return
        terminal = sys.stderr.isatty()
        self._next_word = now + (1.0 if terminal else PROGRESS_SECONDS)
        print(f"encore sync: {self._figures()}", end="\r" if terminal else "\n", file=sys.stderr, flush=True)

    def _figures(self) -> str:
        items = list(self.items.values())
        done = sum(item.over and bool(item.sent) for item in items)
        records = sum(item.records for item in items)
        took = time.monotonic() - self._began
        return f"{done} of {len(items) + len(self.waiting)} runs, {records:,} records, {took:.0f} s"

    def _tell(self, item: Item) -> None:
        if item.sent:
            on = "; the run goes on" if item.goes_on else ""
            word = f"{item.records} records of {len(item.sender.outboxes)} writers are with the server{on}"
            if word != item.said:
                print(f"{item.sender.run_url or item.folder.name}: {word}", flush=True)
        else:
            word = item.why()
            if word != item.said:
                print(f"encore sync: {item.folder}: {word}", file=sys.stderr, flush=True)
        item.said = word

    def _end(self) -> int:
        left = []
        for item in self.items.values():
            if item.sent if item.sent is not None else item.judge():
                keeping.note_delivered(item.sender)
            else:
                left.append(item)
            self._tell(item)
            item.sender.resign()
            item.close()
        missing = len(left) + len(self.waiting)
        if self.failed:
            print(f"encore sync: {self.failed}", file=sys.stderr)
        if not self.items:
            print(f"encore sync: no journal in {', '.join(map(str, self.roots))}")
        elif len(self.items) + len(self.waiting) > 1:
            print(f"{self._figures()}: {f'{missing} are not whole with the server' if missing else 'all is with the server'}", flush=True)
        self._sweep()
        return 1 if missing else 0

    def _sweep(self) -> None:
        for folder, item in list(self.items.items()):
            if item.over and not item.served and item.whole and not item.sender.only and self._swept(item):
                del self.items[folder]

    def _swept(self, item: Item) -> bool:
        held = item.sender._lock is not None
        item.sender.resign()
        if keeping.sweep(item.folder):
            return True
        if held and self.watch:
            item.sender.elect()
        return False


def _may_grow(item: Item, surely: bool = False) -> bool:
    signs = (_liveness.alive(box.folder, box.about) for box in list(item.sender.outboxes.values()) if not box.ended)
    return any(sign is True or (sign is None and not surely) for sign in signs)


def _ends_soon(item: Item) -> bool:
    """Its program has ended, and the sender on this machine is saying its last words: what it captured, how a killed process ended.

    They are worth waiting for, at most as long as a sender takes.
    """
    trainers = item.sender.trainers
    last = [box for box in item.sender.outboxes.values() if box.kind == "node" and not box.child and not box.ended]
    if (
        not trainers
        or any(not box.ended and _liveness.alive(box.folder, box.about) is not False for box in trainers)
        or not any(_liveness.alive(box.folder, box.about) for box in last)
    ):
        item.ending_since = None
        return False
    item.ending_since = item.ending_since or time.monotonic()
    return time.monotonic() - item.ending_since < ENDING_SECONDS


__all__ = ["AT_ONCE", "SPOOL_SILENT_SECONDS", "Fleet"]
