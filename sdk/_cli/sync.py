"""`encore sync`: sends journals that a death, a cut or an offline machine left behind. Any number of times; also while the run goes on."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from .. import _settings
from .._sender import limits
from .._sender.process import run_folders
from .._sender.run import RunSender
from ..errors import UsageError

IDLE_ROUNDS = 3  # rounds in which a whole run had nothing left


def register(commands: Any) -> None:
    parser = commands.add_parser("sync", help="send journals to the server", description=__doc__)
    parser.add_argument("folder", nargs="?", help="a journal root, a run's folder or a writer's folder (default: this user's journals)")
    parser.add_argument("--watch", action="store_true", help="go on as journals grow")
    parser.add_argument(
        "--capture", action="store_true", help="also capture source, environment and data for the trainers found (as the sender does)"
    )
    parser.add_argument(
        "--until-finished", action="store_true", help="with --watch: exit when every writer has finished and is acknowledged"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=None,
        help="give up after so long without an answer from the server (default 60; with --watch never)",
    )
    parser.set_defaults(perform=perform)


def perform(options: argparse.Namespace) -> int:
    settings = _settings.read()
    if settings.url is None:
        raise UsageError("no server is known: encore login, or set ENCORE_URL and ENCORE_TOKEN")
    root = Path(options.folder).absolute() if options.folder else settings.journal
    if not root.exists() and not options.watch:
        raise UsageError(f"{root} does not exist")
    stopping = threading.Event()
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    patience = options.seconds if options.seconds is not None else (None if options.watch else 60.0)
    return Sync(root, settings, options.watch, options.capture, options.until_finished, patience).run(stopping)


class Sync:
    def __init__(
        self, root: Path, settings: _settings.Settings, watch: bool, capture: bool, until_finished: bool, patience: float | None
    ) -> None:
        self.root, self.settings, self.watch, self.until_finished, self.patience = root, settings, watch, until_finished, patience
        self.capture = capture
        self.senders: dict[Path, RunSender] = {}
        self.idle: dict[Path, int] = {}
        self.told: set[Path] = set()

    def find(self) -> list[tuple[Path, str | None]]:
        """(run folder, only this writer) of what the given folder is."""
        root = self.root
        if (root / "writer.json").exists():
            return [(root.parent, root.name)]
        if any(root.glob("*/writer.json")):
            return [(root, None)]
        return [(folder, None) for folder in run_folders(root)]

    def run(self, stopping: threading.Event) -> int:
        failing_since: float | None = None
        while True:
            for folder, only in self.find():
                if folder not in self.senders:
                    self._add(folder, only)
            busy = False
            for folder, sender in self.senders.items():
                if sender.done or (self.idle.get(folder, 0) >= IDLE_ROUNDS and not self.watch):
                    self._tell(folder, sender)
                    continue
                moved = sender.step()
                busy |= moved
                self.idle[folder] = 0 if moved or not sender.delivered else self.idle.get(folder, 0) + 1
            failing = [sender.error for sender in self.senders.values() if sender.error]
            failing_since = (failing_since or time.monotonic()) if failing else None
            if self._over():
                return self._end()
            if failing_since is not None and self.patience is not None and time.monotonic() - failing_since > self.patience:
                print(f"encore sync: {failing[0]}", file=sys.stderr)
                return self._end()
            if stopping.is_set() and all(sender.delivered or sender.error for sender in self.senders.values()):
                return self._end()
            if not busy:
                time.sleep(limits.TICK_SECONDS)

    def _add(self, folder: Path, only: str | None) -> None:
        sender = RunSender(
            folder,
            self.settings.url,
            self.settings.token,
            capture=self.capture,
            sample=self.capture,
            liveness=self.watch,
            trust_acks=False,  # the folder may have been sent to another server before
        )
        if not sender.elect():  # a live sender is at work: ours only sends beside it, which the record ranges make harmless
            sender.capture = sender.sample = sender.liveness = False
        sender.only = only
        self.senders[folder] = sender

    def _over(self) -> bool:
        if self.watch and not self.until_finished:
            return False
        if not self.senders:
            return not self.watch
        if self.until_finished:
            return all(sender.done for sender in self.senders.values())
        return all(sender.done or self.idle.get(folder, 0) >= IDLE_ROUNDS for folder, sender in self.senders.items())

    def _tell(self, folder: Path, sender: RunSender) -> None:
        if folder in self.told:
            return
        self.told.add(folder)
        records = sum(box.next for box in sender.outboxes.values())
        where = sender.run_url or folder.name
        print(f"{where}: {records} records of {len(sender.outboxes)} writers are with the server")
        for box in sender.outboxes.values():
            if box.deleted:
                print(f"  writer {box.id}: refused ({box.deleted}); its journal stays in {box.folder}", file=sys.stderr)

    def _end(self) -> int:
        whole = True
        for folder, sender in self.senders.items():
            if sender.delivered:
                self._tell(folder, sender)
            else:
                whole = False
                print(
                    f"encore sync: {folder}: {sender.unsent} records and {sender.blobs_waiting()} files are not sent: {sender.error}",
                    file=sys.stderr,
                )
            sender.resign()
            if any(box.deleted for box in sender.outboxes.values()):
                whole = False
        if not self.senders:
            print(f"encore sync: no journal in {self.root}")
        return 0 if whole else 1
