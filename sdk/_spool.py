"""The spool: a run's journal once more, in a shared folder, for machines that have no way to the server.

`$ENCORE_SPOOL/<run>/<writer>/` is itself a journal: whole records appended at the offsets that they have on the node, each file by one
process of one node, without locks and without maps; `encore sync` sends it like any other. `drained-<node>.json` says how far a node has
come (after an fsync of what it speaks of) and, since it changes with every look, that the node lives. `answer.json` goes the other way:
what the server last said, Stop included, put there by `encore sync --watch`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

from . import _process
from ._journal import write_json
from ._reader import first_record, read_json
from ._records import MAGIC, MAX_RECORD_BYTES, RECORD_BYTES, SEGMENT_BYTES, SEGMENT_HEADER, SEGMENT_MAGIC, segment_name
from .errors import FormatError

MARK = "drained-"
ANSWER = "answer.json"
STATE = "drain.json"  # on the node, in the run's folder: the sender's word to finish() and to `encore status`
DRAIN_SECONDS = 2.0
FIRST_LOOK_BYTES = 64 << 10
_HEAD = struct.Struct("<IHBBIIQ")


def node_name() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "-", _process.host())[:80] + "-" + _process.boot_id()[:8]


def whole_records(data: bytes, at_start: bool) -> tuple[int, int | None]:
    """How many bytes of whole records `data` begins with, and the number behind the last of them.

    Only the last one may still be being written: that there is another one behind it shows that a record is whole.
    """
    position = 0
    marks: list[tuple[int, int, int]] = []  # of the last two: where, number, checksum
    if at_start:
        if len(data) < SEGMENT_HEADER.size or data[:7] != SEGMENT_MAGIC[:7]:
            return 0, None
        position = SEGMENT_HEADER.size
    while position + RECORD_BYTES <= len(data):
        crc, magic, _, _, length, _, number = _HEAD.unpack_from(data, position)
        if magic != MAGIC or length % 8 or not RECORD_BYTES <= length <= MAX_RECORD_BYTES or position + length > len(data):
            break
        marks = [*marks[-1:], (position, number, crc)]
        position += length
    if marks and crc32(data[marks[-1][0] + 4 : position]) != marks[-1][2]:
        position = marks.pop()[0]
    return position, marks[-1][1] + 1 if marks else None


def _is_empty(fd: int, position: int) -> bool:
    """Whether nothing was ever written from here on. A mapped segment is MiBs of zeros, which the 64 ranks of a node have 64 times:
    holes are asked for, not read."""
    piece = os.pread(fd, FIRST_LOOK_BYTES, position)
    if piece.strip(b"\0"):
        return False
    try:
        return len(piece) < FIRST_LOOK_BYTES or os.lseek(fd, position + len(piece), os.SEEK_DATA) < 0
    except AttributeError:  # a system without holes
        return False
    except OSError as error:
        return error.errno == errno.ENXIO


class WriterCopy:
    """One writer's folder on its way into the spool."""

    def __init__(self, source: Path, target: Path, mark: Mapping[str, Any] | None = None) -> None:
        self.source, self.target = source, target
        mark = mark or {}
        self.segment, self.bytes, self.next = int(mark.get("segment", -1)), int(mark.get("bytes", 0)), int(mark.get("next", 0))
        self._blobs: set[str] | None = None
        self.closed = False  # its end lies there too
        self.is_node = (read_json(source / "writer.json") or {}).get("kind") == "node"

    def begin(self) -> None:
        (self.target / "blobs").mkdir(parents=True, exist_ok=True)
        if not (self.target / "writer.json").exists():
            put_file(self.source / "writer.json", self.target / "writer.json")

    def points(self, settled: bool, acknowledged: int = 0) -> bool:
        """Appends what is new; True if anything was. settled: the writer has ended, so what cannot be read goes along as it is."""
        if self.closed:
            return False
        numbers = sorted(int(name[:-4]) for name in os.listdir(self.source) if name.endswith(".seg") and name[:-4].isdigit())
        if self.segment < 0 and acknowledged:  # what the server already has stays out
            while len(numbers) > 1 and _first(self.source / segment_name(numbers[1])) <= acknowledged:
                numbers.pop(0)
        moved = False
        for number in numbers:
            if number < self.segment:
                continue
            if number > self.segment:
                self.segment, self.bytes = number, 0
            moved |= self._append(number, settled or number != numbers[-1])
        self.closed = settled
        return moved

    def _append(self, number: int, closed: bool) -> bool:
        begun, look = False, FIRST_LOOK_BYTES
        with contextlib.ExitStack() as stack:
            hot = stack.enter_context(open(self.source / segment_name(number), "rb", buffering=0))
            fd = -1
            while not (closed and _is_empty(hot.fileno(), self.bytes)):
                data = os.pread(hot.fileno(), look, self.bytes)
                size, following = whole_records(data, self.bytes == 0)
                if not size and len(data) == look and look < SEGMENT_BYTES:
                    look = SEGMENT_BYTES  # a record longer than the look
                    continue
                if not size and closed:  # damaged: the reader over there knows how to look behind it
                    data = os.pread(hot.fileno(), SEGMENT_BYTES, self.bytes)
                    size = (len(data.rstrip(b"\0")) + 7) // 8 * 8
                if not size:
                    break
                if fd < 0:
                    fd = os.open(self.target / segment_name(number), os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
                    stack.callback(os.close, fd)
                    if os.fstat(fd).st_size < self.bytes:  # it was taken away, or never reached the disk
                        self.bytes = 0
                        continue
                view = memoryview(data)[:size]
                while view:
                    done = os.pwrite(fd, view, self.bytes)
                    self.bytes, view, begun = self.bytes + done, view[done:], True
                self.next = following if following is not None else self.next
                if not closed and not any(data[size + 4 : size + 8]) and size + 8 <= len(data):
                    break  # zeros: not written yet
                look = SEGMENT_BYTES // 4
            if begun:
                os.fsync(fd)
        return begun

    def blobs(self, between: Callable[[], None], known: Iterable[str] = ()) -> None:
        """Copies what is new of `blobs/`. between: called after each and within long ones, so that they hold nothing back."""
        if self._blobs is None:
            self._blobs = {name for name in os.listdir(self.target / "blobs") if len(name) == 64}
        for name in sorted(os.listdir(self.source / "blobs")):
            if len(name) == 64 and name not in self._blobs and name not in known:
                put_file(self.source / "blobs" / name, self.target / "blobs" / name, between)
                self._blobs.add(name)
                between()

    def mark(self) -> dict[str, int]:
        return {"segment": self.segment, "bytes": self.bytes, "next": self.next}


class RunCopy:
    """A run's folder on its way into the spool: all writers of this node."""

    def __init__(self, folder: Path, spool: Path) -> None:
        self.source, self.target = folder, spool / folder.name
        self.path = self.target / f"{MARK}{node_name()}.json"
        self.count = 0
        self.writers: dict[str, WriterCopy] = {}
        self.whole: set[str] = set()  # ended writers that lie here to the last record and file
        self._seen: Any = None
        self._marks: Mapping[str, Any] = {}
        self._settled: set[str] = set()
        self._known: Iterable[str] = ()

    def copy(self, seen: Callable[[], Mapping[str, Any]], due: Callable[[], bool] = lambda: False) -> None:
        """One look: points and documents first, then the mark, then blobs. OSError if the spool fails.

        seen: what there is now, asked again whenever points are due within long blobs: `writers` (id -> acknowledged), `settled`, `alive`,
        `gone`, `blobs` (known to be in the store).
        """
        if not self.writers:
            self.target.mkdir(parents=True, exist_ok=True)
            self._marks = read_json(self.path) or {}
            self.count = int(self._marks.get("count", 0))
            with contextlib.suppress(OSError):  # what the server said to an earlier start is not for this one
                self._seen = os.stat(self.target / ANSWER).st_mtime_ns
        self._points(seen())

        def between() -> None:
            if due():
                self._points(seen())

        # Who has ended comes first, since its finish() waits; a node's own files, which are many, come last.
        for name in sorted(self.writers, key=lambda name: (name not in self._settled, self.writers[name].is_node)):
            settled = name in self._settled
            self.writers[name].blobs(between, self._known)
            if settled:
                self.whole.add(name)

    def _points(self, seen: Mapping[str, Any]) -> None:
        settled = set(seen["settled"])
        self._known = seen["blobs"]
        for name, acknowledged in seen["writers"].items():
            if name not in self.writers:
                made = WriterCopy(self.source / name, self.target / name, (self._marks.get("writers") or {}).get(name))
                made.begin()
                self.writers[name] = made
            self.writers[name].points(name in settled, acknowledged)
        self._settled = settled
        self.count += 1
        write_json(
            self.path,
            {
                "format": 1,
                "node": node_name(),
                "count": self.count,
                "time_us": time.time_ns() // 1000,
                "inode": os.stat(self.target).st_ino,
                "alive": sorted(seen["alive"]),
                "gone": sorted(seen["gone"]),
                "writers": {name: copy.mark() for name, copy in self.writers.items()},
            },
        )

    def answer(self) -> dict[str, Any] | None:
        """What the server said, if it is new to us."""
        path = self.target / ANSWER
        try:
            fd = os.open(path, os.O_RDONLY)  # opened, not only looked at: NFS then asks its server
            stamp = os.fstat(fd).st_mtime_ns
            os.close(fd)
        except OSError:
            return None
        if stamp == self._seen:
            return None
        said = read_json(path)
        if said is None:
            return None
        self._seen = stamp
        found = said.get("answer")
        return found if isinstance(found, dict) else None


def put_file(source: Path, target: Path, between: Callable[[], None] = lambda: None) -> None:
    """Copies whole or not at all, and on the disk before it has its name."""
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(source, "rb") as read, open(aside, "wb") as write:
            while piece := read.read(4 << 20):
                write.write(piece)
                between()
            write.flush()
            os.fsync(write.fileno())
        os.replace(aside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise


def _first(segment: Path) -> int:
    """Of its first record, as the records say; far ahead if that cannot be told, so that nothing is left out."""
    try:
        found = first_record(segment)
    except (OSError, FormatError):
        found = None
    return 1 << 62 if found is None else found


# The other side ---------------------------------------------------------------------------------------------------------------------


def marks(run_folder: Path) -> list[dict[str, Any]]:
    """What each node last said of its drain; empty for a folder that is no spool."""
    try:
        names = sorted(name for name in os.listdir(run_folder) if name.startswith(MARK) and name.endswith(".json"))
    except OSError:
        return []
    return [found for name in names if (found := read_json(run_folder / name)) is not None]


def is_spool(run_folder: Path) -> bool:
    return any(run_folder.glob(f"{MARK}*.json"))


def put_answer(run_folder: Path, answer: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):
        write_json(run_folder / ANSWER, {"by": node_name(), "time_us": time.time_ns() // 1000, "answer": dict(answer)})


# finish() ---------------------------------------------------------------------------------------------------------------------------


def wait_until_drained(run: Any, writer: Any) -> bool:
    """At finish: until the spool has all of this writer. False where the server takes it, so that its word is worth waiting for."""
    from . import _finish, _sender

    folder = writer.folder.parent
    began = time.monotonic()
    deadline, next_look, next_word = began + run.settings.finish_seconds, began, began + _finish.SAY_AFTER_SECONDS
    drained_since = None
    while True:
        now = time.monotonic()
        state, status = read_json(folder / STATE) or {}, read_json(folder / _sender.STATUS) or {}
        if run.url is not None and (state.get("delivering") or (status.get("url") and not status.get("error"))):
            return False
        if writer.id in state.get("whole", ()):
            drained_since = drained_since or now
            if run.url is None or status.get("error") or now - drained_since > DRAIN_SECONDS:
                break
        if now >= deadline:
            break
        if now >= next_look:
            next_look = now + _finish.RESTART_SECONDS
            _sender.start(folder, run.settings)
        if now >= next_word and run.launch.local_rank == 0:
            next_word = now + _finish.SAY_EVERY_SECONDS * 5
            _finish._say(
                f"draining to {run.settings.spool}{': ' + state['error'] if state.get('error') else ''}, {deadline - now:.0f} s left"
            )
        time.sleep(_finish.pause(now - began))
    if drained_since is not None and run.rank == 0:
        _finish._say(f"run {run.id} lies in {run.settings.spool / run.id}; `encore sync` (or `encore sync --watch`) sends it from there")
    elif drained_since is None:
        _finish._say(
            f"not all of run {run.id} has reached {run.settings.spool}; the rest is in {folder}. Send it with: encore sync {folder}"
        )
    return True
