"""In the sender: the event files that a trainer writes become points of its rank, exactly once, also across senders that die.

One writer per trainer (`"of"` it, `"follows": "tensorboard"`), made when its first file is seen. Where a file stands is kept in
`followed.json` beside that writer's journal, written after the points and before the sender delivers any of them. What a killed sender
logged after that lies undelivered in its journal, behind a `followed` document that names file and place: the next sender counts those
points and goes on behind them.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .. import _liveness, _process
from .._journal import Writer, write_json
from .._reader import Reader, read_json
from .._records import RECORD_BYTES
from .._sender.outbox import Outbox
from . import is_event_file
from .events import Malformed, decode
from .names import Names
from .records import RecordFile

NOTE = "followed.json"
OPENED = "opened.jsonl"  # where children of the trainer tell what they open (`_capture/hook.py`)
FOLLOWS = "tensorboard"
ROUND_SECONDS = 0.15  # of one round of the sender: deliveries and heartbeats go on between
LOOK_SECONDS = 2.0  # at what the process and its children hold open: what C++ opens, or a program without our hook, is told by nobody
EARLY_SECONDS = 10.0  # as long a look is taken each round
SETTLE_SECONDS = 0.25  # after the trainer's last word, as long as its process lives
MOST_FILES = 1000
_ENDED: dict[str, Any] = {"state": "finished", "exit_code": None, "signal": None, "error": None, "dropped": {}}


class Followers:
    """Those of one run on this host: one for each trainer that asked for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.by_trainer: dict[str, Follower] = {}

    def opened(self, box: Outbox, doc: dict[str, Any]) -> None:
        """The trainer's hook heard of a file."""
        path = str(doc.get("path") or "")
        if is_event_file(path) and doc.get("mode") != "r" and not box.child and _asked(box):
            self._of(box).add(path)

    def step(self, trainers: list[Outbox]) -> bool:
        """One round; True if more is there right now. Never raises."""
        busy = False
        for box in trainers:
            if not box.child and _asked(box):
                busy |= self._of(box).step(box.ended or box.deleted is not None)
        return busy

    def done(self, delivered: dict[str, Outbox]) -> bool:
        return all(one.closed and (one.writer is None or one.writer.id in delivered) for one in self.by_trainer.values())

    def _of(self, box: Outbox) -> Follower:
        found = self.by_trainer.get(box.id)
        if found is None:
            found = self.by_trainer[box.id] = Follower(box.folder, box.about)
        return found


def _asked(box: Outbox) -> bool:
    return bool(box.about.get("tensorboard")) and box.about.get("host") == _process.host()


class Follower:
    """Reads one trainer's event files."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder, self.about = folder, about
        self.writer: Writer | None = None
        self.closed = False
        self.files: dict[str, RecordFile] = {}
        self.skip: dict[str, int] = {}  # values of a file that are in the journal already
        self.names = Names()
        self.others: dict[str, int] = {}
        self._children = 0  # bytes read of opened.jsonl
        self._began = time.monotonic()
        self._next_look = 0.0
        self._ended_at: float | None = None
        self._told: dict[str, Any] = {}
        try:
            self._resume()
        except Exception as error:
            self._failed(error)

    # What there is --------------------------------------------------------------------------------------------------------------

    def add(self, path: str, offset: int = 0, inode: int | None = None) -> None:
        if path in self.files or len(self.files) >= MOST_FILES or self.closed:
            return
        self.names.place(path)
        self.files[path] = RecordFile(path, offset, inode)

    def _look(self) -> None:
        """Files that children opened, and those that the process and its children hold open."""
        with contextlib.suppress(OSError), open(self.folder / OPENED, "rb") as file:
            file.seek(self._children)
            text = file.read(1 << 20)
            whole = text.rfind(b"\n") + 1
            self._children += whole
            for line in text[:whole].splitlines():
                with contextlib.suppress(ValueError, AttributeError):
                    doc = json.loads(line)
                    if doc.get("mode") != "r" and is_event_file(str(doc.get("path") or "")):
                        self.add(doc["path"])
        if time.monotonic() < self._next_look:
            return
        now = time.monotonic()
        self._next_look = now if now - self._began < EARLY_SECONDS else now + LOOK_SECONDS
        if self.about.get("pid_namespace", _process.pid_namespace()) != _process.pid_namespace():
            return
        for pid in _family(int(self.about.get("pid") or 0)):
            with contextlib.suppress(OSError):
                for descriptor in os.listdir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        path = os.readlink(f"/proc/{pid}/fd/{descriptor}")
                        if is_event_file(path) and os.path.isfile(path) and _writes(pid, descriptor):
                            self.add(path)

    # A round --------------------------------------------------------------------------------------------------------------------

    def step(self, ended: bool) -> bool:
        if self.closed:
            return False
        try:
            return self._step(ended)
        except Exception as error:
            self._failed(error)
            return False

    def _step(self, ended: bool) -> bool:
        self._look()
        until, more, news = time.monotonic() + ROUND_SECONDS, False, False
        for path, file in self.files.items():
            if time.monotonic() > until:
                more = True
                break
            took, left = self._read(path, file, until)
            news, more = news or took, more or left
        if news or (self.files and self._told.get("files", {}).keys() != self.files.keys()):
            self._note()
        if ended and not news and not more and (not self.files or self._settled()):
            self._end()
        return more

    def _settled(self) -> bool:
        """After the trainer's last word its process may still flush a writer on its way out."""
        now = time.monotonic()
        if self._ended_at is None:
            self._ended_at = now
            self._next_look = 0.0
            return False
        return _liveness.alive(self.folder, self.about) is False or now - self._ended_at >= SETTLE_SECONDS

    def _read(self, path: str, file: RecordFile, until: float) -> tuple[bool, bool]:
        """(whether anything was there, whether more is)."""
        try:
            if not file.grown():
                return False, False
            writer = self._open_writer()
            writer.emit({"type": "followed", "path": path, "offset": file.offset, "skip": max(0, self.skip.get(path, 0))})
            before = file.offset
            for count, (_, data) in enumerate(file.read(), 1):
                self._take(path, data, writer)
                if count % 64 == 0 and time.monotonic() > until:
                    return True, True
            return file.offset != before, False
        except FileNotFoundError:
            return False, False

    def _take(self, path: str, data: memoryview, writer: Writer) -> None:
        try:
            event = decode(data)
        except (Malformed, ValueError, IndexError) as error:
            self.others[f"unreadable ({error})"] = self.others.get(f"unreadable ({error})", 0) + 1
            return
        for kind in event.others:
            self.others[kind] = self.others.get(kind, 0) + 1
        if event.hparams:
            writer.emit({"type": "config", "value": event.hparams, "update": True})
        if not event.scalars:
            return
        skip = self.skip.get(path, 0)
        if skip > 0:
            self.skip[path] = skip - len(event.scalars)
            return
        values = {self.names.key(path, tag): value for tag, value in event.scalars.items()}
        writer.log_at(values, event.step, (int(event.wall_time * 1e6) - writer.anchor_wall_us) * 1000)

    # Remembering ----------------------------------------------------------------------------------------------------------------

    def _note(self) -> None:
        writer = self._open_writer()
        files = {
            path: {"offset": file.offset, "inode": file.inode, "skip": max(0, self.skip.get(path, 0))} for path, file in self.files.items()
        }
        self._told = {"format": 1, "record": writer.next_record, "root": self.names.root, "files": files}
        write_json(writer.folder / NOTE, self._told)

    def _open_writer(self) -> Writer:
        if self.writer is None:
            settings = SimpleNamespace(strict=False, journal_mode=self.about.get("journal_mode", "map"))
            self.writer = Writer(self.folder.parent.parent, self.about["run"], settings, self._facts())
        return self.writer

    def _facts(self) -> dict[str, Any]:
        told = ("rank", "local_rank", "world_size", "launch", "mode", "url", "sdk_version", "spool")
        return {
            **{name: self.about[name] for name in told if name in self.about},
            "kind": "node",
            "of": self.about["writer"],
            "follows": FOLLOWS,
            "host": _process.host(),
            "boot": _process.boot_id(),
            "pid_namespace": _process.pid_namespace(),
            "pid": os.getpid(),
            "pid_started": _process.started(os.getpid()),
        }

    def _resume(self) -> None:
        """What a sender before this one has read of this trainer's files."""
        before = []
        for told in self.folder.parent.glob("*/writer.json"):
            about = read_json(told)
            if about is not None and about.get("of") == self.about["writer"] and about.get("follows") == FOLLOWS:
                before.append((about.get("started_us") or 0, str(told.parent), about))
        if not before:
            return
        before.sort(key=lambda one: one[:2])
        # One that died before its first note made points only if it was the very first.
        noted = [one for one in before if (Path(one[1]) / NOTE).exists()]
        _, name, about = noted[-1] if noted else before[0]
        folder = Path(name)
        newest = Outbox(folder, about)
        newest.look()
        if newest.finish is not None:
            self.closed = True
            return
        note = read_json(folder / NOTE) or {}
        self.names.root = note.get("root") or self.names.root
        for path, at in (note.get("files") or {}).items():
            self.add(path, int(at.get("offset") or 0), at.get("inode"))
            self.skip[path] = int(at.get("skip") or 0)
        for path, offset, values in _tail(folder, int(note.get("record") or 0)):
            self.add(path)
            self.files[path].offset = offset
            self.skip[path] = values
        self._note()  # first: whoever is killed here leaves a journal that says where to go on
        for _, name, about in before:
            old = Outbox(Path(name), about)
            old.look()
            if old.finish is None:
                old.complete(_ENDED)

    # The end --------------------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        writer = self.writer
        if writer is not None:
            broken = [f"{path}: {file.broken}" for path, file in self.files.items() if file.broken]
            cut = [f"{path}: {file.rest} bytes at its end are no whole record" for path, file in self.files.items() if file.rest]
            bad, long = (sum(getattr(file, name) for file in self.files.values()) for name in ("bad", "long"))
            left = {
                **self.others,
                **({"records of a wrong checksum": bad} if bad else {}),
                **({"records over 1 MiB": long} if long else {}),
            }
            if left or broken or cut:
                data = {"source": FOLLOWS, "not_taken": left, "files": broken + cut}
                writer.emit({"type": "event", "name": "note", "data": data})
            writer.finish(_ENDED)
            self._note()
        self.closed = True

    def _failed(self, error: BaseException) -> None:
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__)
        writer, self.closed = self.writer, True
        if writer is not None and not writer.finished:
            with contextlib.suppress(Exception):
                gap = {"what": "TensorBoard's event files", "why": f"{type(error).__name__}: {error}", "mend": "see sender.log"}
                writer.emit({"type": "recipe", "section": "sdk", "value": {"errors": [gap]}, "merge": True})
                writer.finish(_ENDED)


def _tail(folder: Path, record: int) -> list[tuple[str, int, int]]:
    """(file, place, values that are logged of what follows it) by what the journal holds from `record` on."""
    reader = Reader(folder)
    reader.seek(record)
    found: list[tuple[int, Any]] = []
    while (chunk := reader.read(settled=True)) is not None:
        for list_id, rows in chunk.dense.items():
            width = len(chunk.lists[list_id][0])
            found += [(int.from_bytes(row[16:24], "little"), width) for row in rows]
        found += [(number, len(payload) // 16) for number, _, _, payload in chunk.sparse]
        found += [(number, doc) for number, _, _, doc in chunk.docs if doc.get("type") == "followed"]
    places: dict[str, tuple[int, int]] = {}
    path = None
    for number, what in sorted(found, key=lambda one: one[0]):
        if number < record:
            continue
        if isinstance(what, dict):
            path = str(what["path"])
            places[path] = (int(what["offset"]), int(what.get("skip") or 0))
        elif path is not None:
            offset, values = places[path]
            places[path] = (offset, values + what)
    return [(path, offset, values) for path, (offset, values) in places.items()]


def _family(pid: int) -> list[int]:
    from .._capture.node import family

    return family(pid) if pid > 1 and _process.started(pid) is not None else []


def _writes(pid: int, descriptor: str) -> bool:
    with open(f"/proc/{pid}/fdinfo/{descriptor}") as info:
        flags = next((int(line.split()[1], 8) for line in info if line.startswith("flags:")), 0)
    return bool(flags & os.O_ACCMODE)


assert RECORD_BYTES == 40  # a row's number stands at 16 (`_tail`)
