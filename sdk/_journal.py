"""The journal's writer: ``log()`` appends a record to a mapped file and returns. Nothing here waits for anything.

The hot path is one closure (`_hot`) over local cells: no attribute look-ups, one dictionary look-up that proves keys and types at once,
two calls of precompiled structs, one checksum. All that is not the common case (a new key list, an odd value, a segment's end, a full
disk) raises inside it and is done by `Writer._slow`. Figures: benchmarks/log_cost.py.

The lock is a list with one token: `pop` takes it, `append` gives it back, both atomic and half the price of a lock's acquire(False).
Who finds it taken (another thread, a signal handler, a `__del__` inside log) leaves the record in a deque for the holder.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic_ns
from typing import Any
from zlib import crc32

from . import _values
from ._files import hold, put_blob, write_json
from ._ids import id_bytes, new_id
from ._losses import Losses
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
    segment_name,
)
from ._segments import Segments, load, store, write_record
from .errors import ValueRefused

TAIL_BYTES = 16 << 10  # kept free at a segment's end, so that a full disk can still be told by the last documents
TAIL_EVENTS = 40  # of losses, in that tail
RETRY_SECONDS = 5.0
STALE_SECONDS = 0.5
LOOK_SECONDS = 2.0  # between looks whether the folder is still there
FINISH_SECONDS = 1.0  # for another thread's log() to come back
MAX_PENDING_CALLS, MAX_PENDING_VALUES = 100_000, 1_000_000  # left by those who found the journal taken
MAX_SIGNATURES = 1024  # of key lists as given: numpy's and Python's floats of one list can be mixed in 2**n ways
MAX_NAMES = 100_000  # of sparse keys that are remembered beyond a segment

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
        self.mode = "write" if getattr(settings, "journal_mode", "map") == "write" and hasattr(os, "pwrite") else "map"
        self.losses = Losses()
        self.say = self.losses.say
        self.pid = os.getpid()
        mono = monotonic_ns()
        # Times are monotonic ns as they are: the anchor's monotonic half is 0, its wall half the wall time of that instant.
        self.anchor_wall_us = time.time_ns() // 1000 - mono // 1000
        self.about = {"format": 1, "writer": self.id, "kind": "trainer", "run": dict(run), "rank": 0, **(about or {})}
        self.about |= {"started_us": self.anchor_wall_us + mono // 1000, "anchor_wall_us": self.anchor_wall_us, "anchor_mono_ns": 0}
        if self.mode == "write":
            self.about["journal_mode"] = "write"
        self.finished = False
        self.waiting: deque[Any] = deque()  # device values on their way (`_later`)
        self.turn = [None]  # of who looks after them
        self._forward: LogCall | None = None
        self._forward_emit: Callable[..., None] | None = None
        self._tokens = [None]
        self._pending: deque[tuple[Any, ...]] = deque()
        self._pending_since, self._pending_values = 0.0, 0
        self._lists: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self._signatures = 0
        self._key_ids: dict[str, int] = {}
        self._next_key_id = 0
        self._declared: set[Any] = set()
        self.closing: list[Callable[[], None]] = []  # called before the last word: what still works in the background ends
        self._full_until = 0.0
        self._no_room: str | None = None
        self._tail_events = 0
        self._look_after = 0.0
        self._open()

    def _open(self) -> None:
        self._make_folder()
        self._segments = Segments(self.folder, id_bytes(self.id), self.anchor_wall_us, self.mode)
        self._hot(self._segments.next(0))

    def _make_folder(self) -> None:
        """At the start; and again when somebody has deleted it while the run goes on: what comes from now on is kept."""
        (self.folder / "blobs").mkdir(parents=True, mode=0o700, exist_ok=True)
        write_json(self.folder / "writer.json", self.about)
        self._alive = hold(self.folder / "alive")

    # The hot path ---------------------------------------------------------------------------------------------------------------

    def _hot(self, segment: Any) -> None:
        """Makes `self.log` and the few doors into its cells."""
        tokens, pending, waiting, slow, defer, drain = self._tokens, self._pending, self.waiting, self._slow, self._defer, self.drain
        take, give, room = tokens.pop, tokens.append, len(tokens)
        assert room == 1
        ones: dict[Any, Any] = {}  # key of a one-value call -> (type, pack, put, prefix, bytes)
        many: dict[Any, Any] = {}  # tuple of keys and types of a longer one -> (pack, put, prefix, bytes, keys, types)
        last_keys: Any = None
        last_kinds: Any = None
        last_entry: Any = None
        position, record, last_step = SEGMENT_HEADER.size, 0, -1
        limit, no_step = SEGMENT_BYTES // 2, NO_STEP

        def log(data: Mapping[str, Any], step: int | None = None) -> None:
            """Append a point for each key of `data` at `step` (an int; without it, this writer's last step plus one)."""
            nonlocal position, record, last_step, last_keys, last_kinds, last_entry
            try:
                token = take()
            except IndexError:
                defer(data, step)
                return
            try:
                if step is None:
                    step = last_step + 1
                elif type(step) is not int or step == no_step:
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
                    view = data.values()
                    # Both copies in one breath: between two calls another thread may change the dict, and values would change their names.
                    keys, values = [*data], [*view]
                    kinds = [*map(type, values)]
                    if keys == last_keys and kinds == last_kinds:
                        pack, put, prefix, size, _, _ = last_entry
                    else:
                        last_entry = many[(*keys, *kinds)]
                        pack, put, prefix, size, last_keys, last_kinds = last_entry
                    end = position + size
                    if end > limit:
                        raise _Miss
                    body = pack(prefix, record, step, monotonic_ns(), *values)
                put(segment, position, crc32(body), body)
                position = end
                record += 1
                last_step = step
            except Exception:
                slow(data, step)
            finally:
                give(token)
            if pending or waiting:
                drain()

        def where() -> tuple[Any, int, int, int, int]:
            return segment, position, record, last_step, limit

        def move(to_segment: Any, to_position: int, to_record: int, to_last: int, to_limit: int) -> None:
            nonlocal segment, position, record, last_step, limit
            segment, position, record, last_step, limit = to_segment, to_position, to_record, to_last, to_limit

        def forget() -> None:
            """In a new segment every key list is declared again before its first use."""
            nonlocal last_keys, last_kinds, last_entry
            last_keys = last_kinds = last_entry = None
            ones.clear()
            many.clear()

        def learn(keys: list[str], kinds: list[type], entry: tuple[Any, ...]) -> None:
            if len(keys) == 1:
                ones[keys[0]] = (kinds[0], *entry)
            elif len(many) < MAX_SIGNATURES:
                many[(*keys, *kinds)] = (*entry, keys, kinds)

        self.log: LogCall = log
        self._where, self._move, self._forget, self._learn = where, move, forget, learn

    # The rest of log ------------------------------------------------------------------------------------------------------------

    def _slow(self, data: Any, step: Any, at: int | None = None, moves_step: bool = True) -> None:
        """All that is not the common case, with the token held."""
        if self._forward is not None:
            return self._forward(data, step)
        try:
            self._repair()
            self._append_points(data, step, monotonic_ns() if at is None else at, moves_step)
        except ValueRefused as refused:  # only under ENCORE_STRICT=1
            raise refused from None
        except Exception as error:
            self._drop(type(error).__name__, f"log() met {type(error).__name__}: {error}")
        finally:
            if self.losses.due():
                self._emit_losses(monotonic_ns())

    def log_at(self, data: Any, step: int, at: int) -> None:
        """A call of an earlier instant (`_later`): its step and time are its own, and "the last step" stays what it is."""
        try:
            token = self._tokens.pop()
        except IndexError:
            return self._defer(data, step, at=at)
        try:
            self._slow(data, step, at, moves_step=False)
        finally:
            self._tokens.append(token)

    def next_step(self, step: Any) -> int | None:
        """The step that a call has now, as log() would number it: the last one moves on. None: it is none, and counted."""
        number = self.last_step + 1 if step is None else _values.step(step)
        if number is None or number > _values.GREATEST:
            self._drop("step is no int", _no_int(step))
            return None
        self.last_step = number
        return number

    def _append_points(self, data: Any, step: Any, at: int, moves_step: bool) -> None:
        if self.finished:
            return self._drop("after finish", "log() after finish() has nowhere to go; call sdk.init() for a new run", _count(data))
        number = self._where()[3] + 1 if step is None else _values.step(step)
        if number is None or number > _values.GREATEST:
            return self._drop("step is no int", _no_int(step), _count(data))
        if not isinstance(data, Mapping):
            return self._drop("data is no dict", f"log() takes a dict of numbers, not {type(data).__name__}")
        values, refused, inexact = _values.numbers(data)
        self.losses.inexact += inexact
        if values:
            items = list(values.items())
            as_given = not refused and len(values) == len(data)
            for start in range(0, len(items), MAX_KEYS_A_RECORD):
                part = dict(items[start : start + MAX_KEYS_A_RECORD])
                try:
                    self._append_dense(part, number, at, data if as_given else None)
                except OSError as error:  # in mode "write": nothing of the record counts, and its bytes are written over
                    self._lost(part, _reason(error))
        if moves_step:
            segment, position, record, _, limit = self._where()
            self._move(segment, position, record, number, limit)
        if refused:
            from ._media._desk import take

            refused = take(self, data, refused, number)
        for key, kind in refused:
            self._drop(kind, f"log() cannot take {key!r}: {kind}")

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
                write_record if self.mode == "write" else struct.Struct(f"<I{size - 4}s").pack_into,
                PREFIX.pack(MAGIC, DENSE, 0, size, list_id),
                size,
                list_id,
                dumps({"keys": list(values), "types": types}),
            )
        pack, put, prefix, size, list_id, declaration = entry
        if not self._make_room(size + RECORD_BYTES + len(declaration) + 8, values):
            return
        if list_id not in self._declared:
            self._put(KEYLIST, list_id, NO_STEP, at, padded(declaration))
            self._declared.add(list_id)
        segment, position, record, last_step, limit = self._where()
        body = pack(prefix, record, step, at, *values.values())
        store(segment, position, crc32(body), body)
        self._move(segment, position + size, record + 1, last_step, limit)
        if given is not None:  # it may change any time: its names are looked at once
            names, kinds, keys = [*given], [*map(type, given.values())], [*values]
            plainly = names == keys and len(kinds) == len(types) and all(type(name) is str for name in names)
            if plainly and all(_values.packs_directly(kind, code) for kind, code in zip(kinds, types, strict=True)):
                self._learn(keys, kinds, (pack, put, prefix, size))

    def _append_sparse(self, values: dict[str, Any], step: int, at: int) -> None:
        ids = self._key_ids
        new = {}
        entries = []
        for key, value in values.items():
            number = ids.get(key)
            if number is None:
                number = ids[key] = self._next_key_id
                self._next_key_id += 1
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
            if not ids:  # and they were forgotten
                return self._append_sparse(values, step, at)
            new = {str(ids[key]): key for key in values}
            declaration = padded(dumps(new))
            if not self._make_room(len(payload) + len(declaration) + 2 * RECORD_BYTES, values):
                return
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
            if self.losses.due():
                self._emit_losses(monotonic_ns())
        finally:
            self._tokens.append(token)
        if self._pending or self.waiting:
            self.drain()

    def _emit(self, doc: Mapping[str, Any], step: int | None, at: int) -> None:
        if self.finished:
            return self.losses.add("after finish")
        try:
            self._repair()
            self._look_at_folder()
            body = dumps(plain(doc))
            if len(body) > DOC_BYTES:
                digest = self.put_blob(body)
                body = dumps({"type": doc.get("type"), "blob": digest})
            payload = padded(body)
            if self._make_room(RECORD_BYTES + len(payload), None, last=self._may_use_tail(doc)):
                self._put(DOC, 0, NO_STEP if step is None else int(step), at, payload)
        except OSError as error:
            self._lost(None, _reason(error))
        except Exception as error:
            self.losses.add("documents")
            self.say(f"a {doc.get('type')} could not be written: {type(error).__name__}: {error}", "document")

    def _may_use_tail(self, doc: Mapping[str, Any]) -> bool:
        """What a full disk must not keep from being told."""
        if doc.get("type") != "event":
            return False
        if doc.get("name") == "dropped":
            self._tail_events += 1
            return self._tail_events <= TAIL_EVENTS
        return doc.get("name") == "finish"

    def _emit_losses(self, at: int) -> None:
        """So that the run's page shows them while the run goes on."""
        if not self.finished:
            self._emit({"type": "event", "name": "dropped", "data": self.losses.all()}, None, at)

    def put_blob(self, data: bytes | bytearray | memoryview | str | os.PathLike[str]) -> str:
        """Keep bytes (or a copy of a file) under their digest in `blobs/`; returns "blake3:<hex>". OSError if the disk is full."""
        return put_blob(self.folder / "blobs", data)

    # Deferred calls -------------------------------------------------------------------------------------------------------------

    def _defer(self, data: Any, step: Any, doc: dict[str, Any] | None = None, at: int | None = None) -> None:
        """The journal is in somebody's hands: leave the call for them. The data is copied, since the caller may change it."""
        try:
            copied = dict(data) if isinstance(data, Mapping) else data
        except Exception as error:
            return self._drop(type(error).__name__, f"log() met {type(error).__name__}: {error}")
        if not self._pending:
            self._pending_since, self._pending_values = time.monotonic(), 0
        self._pending_values += _count(copied)
        if len(self._pending) >= MAX_PENDING_CALLS or self._pending_values > MAX_PENDING_VALUES:
            self.losses.add("the journal was busy" if doc is None else "documents", _count(copied))
        else:
            self._pending.append((copied, step, doc, monotonic_ns() if at is None else at, at is None))
        if self._tokens:  # given back between our try and our append
            self.drain()
        elif time.monotonic() - self._pending_since > STALE_SECONDS and self._abandoned():
            self._tokens.append(None)
            self.drain()

    def drain(self) -> None:
        """Write what was deferred, and device values that have arrived."""
        if self.waiting:
            from . import _later

            _later.settle(self)
        while self._pending:
            try:
                token = self._tokens.pop()
            except IndexError:
                return
            try:
                while self._pending:
                    data, step, doc, at, moves_step = self._pending.popleft()
                    if doc is not None:
                        self._emit(doc, step, at)
                    else:
                        self._slow(data, step, at, moves_step)
            finally:
                self._tokens.append(token)

    def _abandoned(self) -> bool:
        """An exception raised by a signal handler can hit between taking the token and the `try`: then nobody holds it."""
        codes = {self.log.__code__, Writer.emit.__code__, Writer.drain.__code__, Writer.log_at.__code__}
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
        store(segment, position, crc32(body), body)
        self._move(segment, position + length, record + 1, last_step, limit)

    def _repair(self) -> None:
        """An interrupt (Ctrl-C caught by the user) can strike between a record's last byte and the counters: then it counts."""
        segment, position, record, last_step, limit = self._where()
        if segment is not None and self._segments.current is not segment:
            self._go_on_in(self._segments.current)
            segment, position, record, last_step, limit = self._where()
        if segment is None or position + RECORD_BYTES > SEGMENT_BYTES:
            return
        head = load(segment, position, RECORD_BYTES)
        if len(head) < RECORD_BYTES:
            return
        crc, magic, _, _, length, _, number, _, _ = RECORD.unpack(head)
        if magic != MAGIC or number != record or not RECORD_BYTES <= length <= SEGMENT_BYTES - position:
            return
        if crc32(load(segment, position + 4, length - 4)) == crc:
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
        self._move(segment, position, record, last_step, 0)  # whoever comes after an interrupt in here looks first (`_repair`)
        try:
            following = self._segments.next(record + 1)
        except FileNotFoundError:
            self._move(segment, position, record, last_step, limit)
            return self._restore(values) and self._make_room(size, values, last)
        except (OSError, ValueError) as error:
            self._move(segment, position, record, last_step, limit)
            self._full_until = time.monotonic() + RETRY_SECONDS
            self._no_room = _reason(error)
            return self._lost(values, self._no_room)
        self._go_on_in(following)
        was_full, self._full_until = self._full_until, 0.0
        if was_full:
            self._emit_losses(monotonic_ns())
        return self._make_room(size, values, last)

    def _restore(self, values: Any) -> bool:
        """The folder was deleted under us: make it again and put what this process still holds, the current segment, back into it."""
        segment, _, record, _, _ = self._where()
        number = self._segments.number
        held = os.dup(segment) if type(segment) is int else segment
        try:
            self._make_folder()
            self._segments.clear()  # the spares went with it
            self._go_on_in(self._segments.next(record + 1))
            aside = self.folder / f".{segment_name(number)}"
            aside.write_bytes(load(held, 0, SEGMENT_BYTES))
            os.replace(aside, self.folder / segment_name(number))
            return True
        except (OSError, ValueError) as error:
            self._full_until, self._no_room = time.monotonic() + RETRY_SECONDS, _reason(error)
            return self._lost(values, self._no_room)
        finally:
            if type(segment) is int:
                os.close(held)

    def _look_at_folder(self) -> None:
        """Somebody may delete it long before the next segment would meet that. Not in log(): a document's way has the time."""
        now = time.monotonic()
        if now < self._look_after or self._where()[0] is None:
            return
        self._look_after = now + LOOK_SECONDS
        if not (self.folder / segment_name(self._segments.number)).exists() and not self.folder.exists():
            self._restore(None)

    def _go_on_in(self, following: Any) -> None:
        self._declared.clear()
        self._forget()
        if len(self._key_ids) > MAX_NAMES:
            self._key_ids.clear()
        self._tail_events = 0
        segment, position, record, _, _ = self._where()
        ended = position + RECORD_BYTES <= SEGMENT_BYTES
        try:
            if ended:
                self._put(END, 0, NO_STEP, monotonic_ns(), b"")
        except OSError:
            ended = False
        if not ended:  # no room even for the end record: the next header's first number says so
            self._segments.write_header(following, self._segments.number, record)
        _, _, record, last_step, _ = self._where()
        self._move(following, SEGMENT_HEADER.size, record, last_step, SEGMENT_BYTES // 2)
        self._segments.release(segment)

    def _lost(self, values: Any, reason: str) -> bool:
        sentence = f"{reason}; training goes on, what is logged is lost and counted until there is room ({self.folder})"
        if values is None:
            self.losses.add(f"documents: {reason}")
        else:
            self.losses.add(reason, len(values))
            if self.strict:
                raise ValueRefused(sentence)
        self.say(sentence, reason)
        return False

    def _drop(self, reason: str, sentence: str, count: int = 1) -> None:
        self.losses.add(reason, count)
        if self.strict:
            raise ValueRefused(sentence)
        self.say(f"{sentence} (dropped and counted; said once)", reason)

    # End ------------------------------------------------------------------------------------------------------------------------

    @property
    def dropped(self) -> dict[str, int]:
        return self.losses.counts

    def dropped_counts(self) -> dict[str, int]:
        return self.losses.all()

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
        if self.waiting:
            from . import _later

            _later.settle(self, last=True)
        self.drain()
        deadline = time.monotonic() + FINISH_SECONDS
        while not self._tokens and time.monotonic() < deadline:  # a thread is inside log(): it is back in a moment
            time.sleep(0.001)
        self._look_after = 0.0
        self.emit({"type": "event", "name": "finish", "data": {**data, "dropped": self.dropped_counts()}})
        if self._pending:  # it hangs in there, on a disk that does not answer: it writes this too when it comes back
            return
        self.finished = True
        segment, position, record, last_step, _ = self._where()
        self._move(None, position, record, last_step, 0)  # every later log() takes the slow path
        self._segments.release(segment)
        self._segments.close()

    def settle(self) -> None:
        """What works in the background for this writer comes to its end."""
        while self.closing:
            last = self.closing.pop()
            try:
                last()
            except Exception as error:
                self.say(f"{type(error).__name__}: {error} (at the end of the run)")

    def abandon(self, forward: LogCall, emit: Callable[..., None]) -> None:
        """In a forked child: this journal belongs to the parent. Whoever kept its `log` or `emit` is led to the child's own."""
        self._tokens[:] = [None]
        self._pending.clear()
        self.waiting.clear()
        self.turn[:] = [None]
        self._forward, self._forward_emit = forward, emit
        self._forget()
        self._move(None, 0, 0, self._where()[3], -1)


def _count(data: Any) -> int:
    """Points of a call that is lost as a whole."""
    try:
        return max(1, len(data)) if isinstance(data, Mapping) else 1
    except Exception:
        return 1


def _no_int(step: Any) -> str:
    return f"step must be an int of 64 bits, not {type(step).__name__} {_values.short(step)}: the call is not logged"


def _reason(error: Exception) -> str:
    return f"disk: {error.strerror or error}" if isinstance(error, OSError) else "disk"


__all__ = ["Writer", "hold", "key_text", "put_blob", "write_json"]
