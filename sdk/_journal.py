"""The journal's writer: ``log()`` appends a record to a mapped file and returns. Nothing here waits for anything.

The hot path is one closure (`_hot`) over local cells: no attribute look-ups, one dictionary look-up that proves keys and types at once,
two calls of precompiled structs, one checksum. All that is not the common case (a new key list, an odd value, a segment's end, a full
disk) raises inside it and is done by `Writer._slow`. Figures: benchmarks/log_cost.py.

The lock is a list with one token: `pop` takes it, `append` gives it back, both atomic and half the price of a lock's acquire(False).
Who finds it taken (another thread, a signal handler, a `__del__` inside log) leaves the record in a deque for the holder.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic_ns
from typing import Any
from zlib import crc32

from . import _values
from ._ids import id_bytes, new_id
from ._plain import dumps, key_text, plain
from ._records import (
    DENSE,
    DOC,
    DOC_BYTES,
    END,
    KEYLIST,
    KEYS,
    MAGIC,
    MAX_KEY_LISTS,
    MAX_KEYS_A_RECORD,
    MAX_PAYLOAD_BYTES,
    NO_STEP,
    PREFIX,
    RECORD,
    RECORD_BYTES,
    SEGMENT_BYTES,
    SEGMENT_HEADER,
    SPARSE,
    SPARSE_ENTRY,
    padded,
)
from ._segments import Segments
from .errors import ValueRefused

TAIL_BYTES = 16 << 10  # kept free at a segment's end, so that a full disk can still be told by the last documents
RETRY_SECONDS = 5.0
STALE_SECONDS = 0.5

LogCall = Callable[..., None]


class _Miss(Exception):
    """Not the common case; never leaves this module."""


class Writer:
    """One writer of a run: its folder, its journal, its blobs. `log` and `emit` never raise (but under ENCORE_STRICT=1)."""

    def __init__(self, root: Path, run: Mapping[str, Any], settings: Any, about: Mapping[str, Any] | None = None) -> None:
        """Makes `<root>/<run id>/<writer id>/` with writer.json and the first segment. OSError if that cannot be written.

        about: fields laid over writer.json (kind, rank, launch, …).
        """
        self.id = new_id()
        self.settings = settings
        self.folder = Path(root) / str(run["id"]) / self.id
        self.rank = int((about or {}).get("rank", 0))
        self.strict = bool(getattr(settings, "strict", False))
        self.dropped: dict[str, int] = {}
        self.inexact = 0
        self.pid = os.getpid()
        mono = monotonic_ns()
        # Times are monotonic ns as they are: the anchor's monotonic half is 0, its wall half the wall time of that instant.
        self.anchor_wall_us = time.time_ns() // 1000 - mono // 1000
        self.about = {"format": 1, "writer": self.id, "kind": "trainer", "run": dict(run), "rank": 0, **(about or {})}
        self.about |= {"started_us": self.anchor_wall_us + mono // 1000, "anchor_wall_us": self.anchor_wall_us, "anchor_mono_ns": 0}
        self.finished = False
        self._forward: LogCall | None = None
        self._forward_emit: Callable[..., None] | None = None
        self._tokens = [None]
        self._pending: deque[tuple[Any, ...]] = deque()
        self._pending_since = 0.0
        self._lists: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self._key_ids: dict[str, int] = {}
        self._declared: set[str] = set()
        self._said: set[str] = set()
        self.closing: list[Callable[[], None]] = []  # called before the last word: what still works in the background ends
        self._full_until = 0.0
        self._no_room: str | None = None
        self._open()

    def _open(self) -> None:
        (self.folder / "blobs").mkdir(parents=True, mode=0o700)
        write_json(self.folder / "writer.json", self.about)
        self._alive = hold(self.folder / "alive")
        self._segments = Segments(self.folder, id_bytes(self.id), self.anchor_wall_us)
        segment = self._segments.next(0)
        self._hot(segment)
        self._segments.prepare(segment)

    # The hot path ---------------------------------------------------------------------------------------------------------------

    def _hot(self, segment: Any) -> None:
        """Makes `self.log` and the few doors into its cells."""
        tokens, pending, slow, defer, drain = self._tokens, self._pending, self._slow, self._defer, self.drain
        take, give, room = tokens.pop, tokens.append, len(tokens)
        assert room == 1
        ones: dict[Any, Any] = {}  # key of a one-value call -> (type, pack, put, prefix, bytes)
        many: dict[Any, Any] = {}  # tuple of keys and types of a longer one -> (pack, put, prefix, bytes, keys, types)
        last_keys: Any = None
        last_entry: Any = None
        position, record, last_step = SEGMENT_HEADER.size, 0, -1
        limit = SEGMENT_BYTES // 2

        def log(data: Mapping[str, Any], step: int | None = None) -> None:
            """Append a point for each key of `data` at `step` (an int; without it, this writer's last step plus one)."""
            nonlocal position, record, last_step, last_keys, last_entry
            try:
                token = take()
            except IndexError:
                defer(data, step)
                return
            try:
                if step is None:
                    step = last_step + 1
                elif type(step) is not int:
                    raise _Miss
                if len(data) == 1:
                    for key in data:  # noqa: B007 - the cheapest way to the only key
                        pass
                    value = data[key]
                    kind, pack, put, prefix, size = ones[key]
                    if type(value) is not kind:
                        raise _Miss
                    end = position + size
                    if end > limit:
                        raise _Miss
                    body = pack(prefix, record, step, monotonic_ns(), value)
                else:
                    if [*data] == last_keys:
                        pack, put, prefix, size, _, types = last_entry
                        if [*map(type, data.values())] != types:
                            raise _Miss
                    else:
                        last_entry = many[(*data, *map(type, data.values()))]
                        pack, put, prefix, size, last_keys, types = last_entry
                    end = position + size
                    if end > limit:
                        raise _Miss
                    body = pack(prefix, record, step, monotonic_ns(), *data.values())
                put(segment, position, crc32(body), body)
                position = end
                record += 1
                last_step = step
            except Exception:
                slow(data, step)
            finally:
                give(token)
            if pending:
                drain()

        def where() -> tuple[Any, int, int, int, int]:
            return segment, position, record, last_step, limit

        def move(to_segment: Any, to_position: int, to_record: int, to_last: int, to_limit: int) -> None:
            nonlocal segment, position, record, last_step, limit
            segment, position, record, last_step, limit = to_segment, to_position, to_record, to_last, to_limit

        def forget() -> None:
            """In a new segment every key list is declared again before its first use."""
            nonlocal last_keys, last_entry
            last_keys = last_entry = None
            ones.clear()
            many.clear()

        def learn(signature: Any, key: Any, entry: tuple[Any, ...]) -> None:
            if key is not None:
                ones[key] = entry
            else:
                many[signature] = entry

        self.log: LogCall = log
        self._where, self._move, self._forget, self._learn = where, move, forget, learn

    # The rest of log ------------------------------------------------------------------------------------------------------------

    def _slow(self, data: Any, step: Any, at: int | None = None) -> None:
        """All that is not the common case, with the token held."""
        if self._forward is not None:
            return self._forward(data, step)
        try:
            self._repair()
            self._append_points(data, step, monotonic_ns() if at is None else at)
        except ValueRefused as refused:  # only under ENCORE_STRICT=1
            raise refused from None
        except Exception as error:
            self._drop(f"{type(error).__name__}", f"log() met {type(error).__name__}: {error}")

    def _append_points(self, data: Any, step: Any, at: int) -> None:
        if self.finished:
            return self._drop("after finish", "log() after finish() has nowhere to go; call sdk.init() for a new run")
        last_step = self._where()[3]
        if step is None:
            number = last_step + 1
        else:
            number_or_none = _values.step(step)
            if number_or_none is None:
                return self._drop("step", f"step must be an int, not {type(step).__name__} {step!r:.40}: the call is not logged")
            number = number_or_none
        if not isinstance(data, Mapping):
            return self._drop("data", f"log() takes a dict of numbers, not {type(data).__name__}")
        values, refused, inexact = _values.numbers(data)
        self.inexact += inexact
        if refused:
            from ._media._desk import take

            refused = take(self, data, refused, number)
        for key, kind in refused:
            self._drop(kind, f"log() takes numbers; {key!r} is {kind}")
        if values:
            items = list(values.items())
            as_given = not refused and len(values) == len(data)
            for start in range(0, len(items), MAX_KEYS_A_RECORD):
                self._append_dense(dict(items[start : start + MAX_KEYS_A_RECORD]), number, at, data if as_given else None)
        segment, position, record, _, limit = self._where()
        self._move(segment, position, record, number, limit)

    def _append_dense(self, values: dict[str, Any], step: int, at: int, given: Mapping[str, Any] | None) -> None:
        types = "".join("d" if type(value) is float else "q" for value in values.values())
        signature = (types, *values)
        entry = self._lists.get(signature)
        if entry is None:
            if len(self._lists) >= MAX_KEY_LISTS:
                return self._append_sparse(values, step, at)
            list_id = len(self._lists) + 1
            size = RECORD_BYTES + 8 * len(values)
            entry = self._lists[signature] = (
                struct.Struct(f"<12sQqq{types}").pack,
                struct.Struct(f"<I{size - 4}s").pack_into,
                PREFIX.pack(MAGIC, DENSE, 0, size, list_id),
                size,
                list_id,
                dumps({"keys": list(values), "types": types}),
            )
        pack, put, prefix, size, list_id, declaration = entry
        if not self._make_room(size + RECORD_BYTES + len(declaration) + 8, values):
            return
        if ("list", list_id) not in self._declared:
            self._put(KEYLIST, list_id, NO_STEP, at, padded(declaration))
            self._declared.add(("list", list_id))  # type: ignore[arg-type]
        segment, position, record, last_step, limit = self._where()
        body = pack(prefix, record, step, at, *values.values())
        put(segment, position, crc32(body), body)
        self._move(segment, position + size, record + 1, last_step, limit)
        if given is not None and [*given] == [*values] and all(type(key) is str for key in given):
            kinds = [*map(type, given.values())]
            if all(_values.packs_directly(kind, code) for kind, code in zip(kinds, types, strict=True)):
                if len(given) == 1:
                    (key,) = given
                    self._learn(None, key, (kinds[0], pack, put, prefix, size))
                else:
                    self._learn((*given, *kinds), None, (pack, put, prefix, size, [*given], kinds))

    def _append_sparse(self, values: dict[str, Any], step: int, at: int) -> None:
        ids = self._key_ids
        new = {}
        entries = []
        for key, value in values.items():
            number = ids.get(key)
            if number is None:
                number = ids[key] = len(ids)
            if key not in self._declared:
                new[str(number)] = key
            real = type(value) is float
            entries.append(SPARSE_ENTRY.pack(number, 0 if real else 1, struct.pack("<d" if real else "<q", value)))
        payload = b"".join(entries)
        declaration = padded(dumps(new)) if new else b""
        if len(declaration) > MAX_PAYLOAD_BYTES and len(values) > 1:
            items = list(values.items())
            self._append_sparse(dict(items[: len(items) // 2]), step, at)
            return self._append_sparse(dict(items[len(items) // 2 :]), step, at)
        before = self._segments.number
        if not self._make_room(len(payload) + len(declaration) + 2 * RECORD_BYTES, values):
            return
        if self._segments.number != before:  # a new segment: all of this record's keys are declared in it
            declaration = padded(dumps({str(ids[key]): key for key in values}))
            if not self._make_room(len(payload) + len(declaration) + 2 * RECORD_BYTES, values):
                return
            new = {str(ids[key]): key for key in values}
        if new:
            self._put(KEYS, 0, NO_STEP, at, declaration)
            self._declared.update(new.values())
        self._put(SPARSE, 0, step, at, payload)

    # Documents ------------------------------------------------------------------------------------------------------------------

    def emit(self, doc: Mapping[str, Any], step: int | None = None) -> None:
        """Append a document (docs/formats.md, *Documents*). Never raises."""
        if self._forward_emit is not None:
            return self._forward_emit(doc, step)
        try:
            token = self._tokens.pop()
        except IndexError:
            return self._defer(None, step, dict(doc))
        try:
            self._emit(doc, step, monotonic_ns())
        finally:
            self._tokens.append(token)
        if self._pending:
            self.drain()

    def _emit(self, doc: Mapping[str, Any], step: int | None, at: int) -> None:
        if self.finished:
            self.dropped["after finish"] = self.dropped.get("after finish", 0) + 1
            return
        try:
            self._repair()
            last = doc.get("type") == "event" and doc.get("name") in ("finish", "dropped")
            body = dumps(plain(doc))
            if len(body) > DOC_BYTES:
                digest = self.put_blob(body)
                body = dumps({"type": doc.get("type"), "blob": digest})
            payload = padded(body)
            if self._make_room(RECORD_BYTES + len(payload), None, last=last):
                self._put(DOC, 0, NO_STEP if step is None else int(step), at, payload)
        except Exception as error:
            self.dropped["document"] = self.dropped.get("document", 0) + 1
            self.say(f"a {doc.get('type')} could not be written: {type(error).__name__}: {error}", "document")

    def put_blob(self, data: bytes | bytearray | memoryview | str | os.PathLike[str]) -> str:
        """Keep bytes (or a copy of a file) under their digest in `blobs/`; returns "blake3:<hex>". OSError if the disk is full."""
        return put_blob(self.folder / "blobs", data)

    # Deferred calls -------------------------------------------------------------------------------------------------------------

    def _defer(self, data: Any, step: Any, doc: dict[str, Any] | None = None) -> None:
        """The journal is in somebody's hands: leave the call for them. The data is copied, since the caller may change it."""
        if not self._pending:
            self._pending_since = time.monotonic()
        copied = dict(data) if isinstance(data, Mapping) else data
        self._pending.append((copied, step, doc, monotonic_ns()))
        if self._tokens:  # given back between our try and our append
            self.drain()
        elif time.monotonic() - self._pending_since > STALE_SECONDS and self._abandoned():
            self._tokens.append(None)
            self.drain()

    def drain(self) -> None:
        """Write what was deferred."""
        while self._pending:
            try:
                token = self._tokens.pop()
            except IndexError:
                return
            try:
                while self._pending:
                    data, step, doc, at = self._pending.popleft()
                    if doc is not None:
                        self._emit(doc, step, at)
                    else:
                        self._slow(data, step, at)
            finally:
                self._tokens.append(token)

    def _abandoned(self) -> bool:
        """An exception raised by a signal handler can hit between taking the token and the `try`: then nobody holds it."""
        codes = {self.log.__code__, Writer.emit.__code__, Writer.drain.__code__}
        here = sys._getframe(1)
        holders = 0
        for frame in sys._current_frames().values():
            cursor: Any = frame
            while cursor is not None:
                if cursor.f_code in codes and cursor is not here.f_back:
                    holders += 1
                cursor = cursor.f_back
        return holders == 0 and not self._tokens

    # Room and records -----------------------------------------------------------------------------------------------------------

    def _put(self, kind: int, list_id: int, step: int, at: int, payload: bytes) -> None:
        segment, position, record, last_step, limit = self._where()
        length = RECORD_BYTES + len(payload)
        body = RECORD.pack(0, MAGIC, kind, 0, length, list_id, record, step, at)[4:] + payload
        segment[position + 4 : position + length] = body
        segment[position : position + 4] = crc32(body).to_bytes(4, "little")
        self._move(segment, position + length, record + 1, last_step, limit)

    def _repair(self) -> None:
        """An interrupt (Ctrl-C caught by the user) can strike between a record's last byte and the counters: then it counts."""
        segment, position, record, last_step, limit = self._where()
        if segment is None or position + RECORD_BYTES > SEGMENT_BYTES:
            return
        crc, magic, _, _, length, _, number, _, _ = RECORD.unpack_from(segment, position)
        if magic != MAGIC or number != record or not RECORD_BYTES <= length <= SEGMENT_BYTES - position:
            return
        if crc32(segment[position + 4 : position + length]) == crc:
            self._move(segment, position + length, record + 1, last_step, limit)

    def _make_room(self, size: int, values: Any, last: bool = False) -> bool:
        """True if `size` bytes fit now; opens the next segment when needed. False: the disk is full, and the loss is counted."""
        segment, position, record, last_step, limit = self._where()
        soft, hard = SEGMENT_BYTES // 2, SEGMENT_BYTES - TAIL_BYTES
        if segment is not None:
            if position + size <= (SEGMENT_BYTES - RECORD_BYTES if last else limit):
                return True
            if limit == soft:
                self._segments.prepare()
                self._move(segment, position, record, last_step, hard)
                return self._make_room(size, values, last)
        if self._full_until and time.monotonic() < self._full_until:
            return self._lost(values, self._no_room or "disk full")
        try:
            following = self._segments.next(record + 1)
        except (OSError, ValueError) as error:
            self._full_until = time.monotonic() + RETRY_SECONDS
            self._no_room = f"disk: {error.strerror or error}" if isinstance(error, OSError) else "disk"
            return self._lost(values, self._no_room)
        if segment is not None and position + RECORD_BYTES <= SEGMENT_BYTES:
            self._put(END, 0, NO_STEP, monotonic_ns(), b"")
        else:  # no room even for the end record: the next header's first number says so
            SEGMENT_HEADER.pack_into(
                following, 0, b"ENCOREJ1", SEGMENT_HEADER.size, 0, self._segments.number, record, id_bytes(self.id), self.anchor_wall_us, 0
            )
        record = self._where()[2]
        self._declared.clear()
        self._forget()
        self._move(following, SEGMENT_HEADER.size, record, last_step, soft)
        was_full, self._full_until = self._full_until, 0.0
        if was_full:
            self._emit({"type": "event", "name": "dropped", "data": dict(self.dropped)}, None, monotonic_ns())
        return self._make_room(size, values, last)

    def _lost(self, values: Any, reason: str) -> bool:
        count = len(values) if values is not None else 1
        self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.say(f"{reason}; training goes on, what is logged is lost and counted until there is room ({self.folder})", reason)
        return False

    def _drop(self, reason: str, sentence: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        if self.strict:
            raise ValueRefused(sentence)
        self.say(f"{sentence} (dropped and counted; said once)", reason)

    def say(self, sentence: str, once: str | None = None) -> None:
        if once is not None:
            if once in self._said or len(self._said) > 20:
                return
            self._said.add(once)
        with contextlib.suppress(Exception):
            print(f"encore: {sentence}", file=sys.__stderr__ or sys.stderr, flush=True)

    # End ------------------------------------------------------------------------------------------------------------------------

    @property
    def last_step(self) -> int:
        return self._where()[3]

    @last_step.setter
    def last_step(self, value: int) -> None:
        segment, position, record, _, limit = self._where()
        self._move(segment, position, record, value, limit)

    @property
    def next_record(self) -> int:
        return self._where()[2]

    def finish(self, data: Mapping[str, Any]) -> None:
        """The writer's last word. What is logged later is dropped and counted."""
        if self.finished:
            return
        self.settle()
        self.drain()
        self.emit({"type": "event", "name": "finish", "data": {**data, "dropped": self.dropped_counts()}})
        self.finished = True
        segment, position, record, last_step, _ = self._where()
        self._move(segment, position, record, last_step, 0)  # every later log() takes the slow path
        self._segments.close()

    def settle(self) -> None:
        while self.closing:
            with contextlib.suppress(Exception):
                self.closing.pop()()

    def dropped_counts(self) -> dict[str, int]:
        return self.dropped | ({"inexact": self.inexact} if self.inexact else {})

    def abandon(self, forward: LogCall, emit: Callable[..., None]) -> None:
        """In a forked child: this journal belongs to the parent. Whoever kept its `log` or `emit` is led to the child's own."""
        self._tokens[:] = [None]
        self._pending.clear()
        self._forward, self._forward_emit = forward, emit
        self._forget()
        self._move(None, 0, 0, self._where()[3], -1)


def put_blob(folder: Path, data: bytes | bytearray | memoryview | str | os.PathLike[str]) -> str:
    from blake3 import blake3

    aside = folder / f".{os.getpid()}-{threading.get_ident()}-{monotonic_ns()}"
    try:
        if isinstance(data, (bytes, bytearray, memoryview)):
            digest = blake3(data).hexdigest()
            target = folder / digest
            if target.exists():
                return f"blake3:{digest}"
            aside.write_bytes(data)
        else:
            hasher = blake3()
            with open(data, "rb") as source, open(aside, "wb") as copy:
                while chunk := source.read(1 << 20):
                    hasher.update(chunk)
                    copy.write(chunk)
            digest = hasher.hexdigest()
            target = folder / digest
        os.replace(aside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise
    return f"blake3:{digest}"


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))
    os.replace(aside, path)


def hold(path: Path) -> Any:
    """A lock that the system drops with this process, however it dies: the sender sees life and death by it, also across pid namespaces."""
    try:
        import fcntl

        file = open(path, "wb")  # noqa: SIM115 - open as long as the process
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except (ImportError, OSError):
        return None


__all__ = ["Writer", "hold", "key_text", "put_blob", "write_json"]
