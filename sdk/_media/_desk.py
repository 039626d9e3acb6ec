"""Where media are encoded and written: one thread a writer, with so many bytes waiting and no more."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from .._plain import key_text
from .._values import MAX_DEPTH, MAX_KEY_BYTES
from ._base import Media, Refused
from ._figure import Plotly, is_plotly
from ._image import Image, is_figure, is_pil
from ._table import Table, is_frame

MOST_WAITING_BYTES = 256 << 20
MOST_WAITING = 10_000
MOST_IN_A_LIST = 256
SETTLE_SECONDS = 30.0


def take(writer: Any, data: Any, refused: list[tuple[str, str]], step: int) -> list[tuple[str, str]]:
    """Of what is no number, take what is media. Returns what stays refused. Called with the journal in hand: never waits."""
    left = dict(refused)
    for key, value in _find(data, "", set(left), 0):
        items = _media(value)
        if items is None:
            continue
        left.pop(key)
        for at, item in enumerate(items[:MOST_IN_A_LIST]):
            _of(writer).put(key, item, step, {"index": at, "of": len(items)} if isinstance(value, (list, tuple)) else {})
        if len(items) > MOST_IN_A_LIST:
            writer._drop("media beyond a list's limit", f"{key!r}: of {len(items)} media in a list the first {MOST_IN_A_LIST} are kept")
    return list(left.items())


def _find(data: Any, prefix: str, wanted: set[str], depth: int) -> list[tuple[str, Any]]:
    """What raises when it is asked for its text or items is no media, and stays refused for its own reason."""
    found = []
    for raw, value in list(data.items()):
        with contextlib.suppress(Exception):
            key = prefix + key_text(raw)
            if isinstance(value, Mapping) and depth < MAX_DEPTH:
                found += _find(value, key + "/", wanted, depth + 1)
            elif key in wanted and len(key.encode()) <= MAX_KEY_BYTES:
                found.append((key, value))
    return found


def _media(value: Any) -> list[Media] | None:
    """The media a value stands for: itself, a list of them, a figure, an image, a data frame. None: it is none."""
    if isinstance(value, Media):
        return [value]
    if isinstance(value, (list, tuple)):
        items = [found for each in value if (found := _media(each)) is not None and not isinstance(each, (list, tuple))]
        return [one[0] for one in items] if items and len(items) == len(value) else None
    if is_figure(value) or is_pil(value):
        return [Image(value)]
    if is_frame(value):
        return [Table(value)]
    return [Plotly(value)] if is_plotly(value) and hasattr(value, "to_json") else None


def _of(writer: Any) -> Desk:
    desk = getattr(writer, "desk", None)
    if desk is None:
        desk = writer.desk = Desk(writer)
        writer.closing.append(desk.settle)
    return desk


class Desk:
    def __init__(self, writer: Any) -> None:
        self.writer = writer
        self.changed = threading.Condition()
        self.waiting: deque[tuple[str, Media, int, dict[str, Any]]] = deque()
        self.bytes = 0
        self.busy = False
        self.thread: threading.Thread | None = None

    def put(self, key: str, item: Media, step: int, place: dict[str, Any]) -> None:
        if item.problem is not None:
            return self.writer._drop(f"media {item.kind}", f"{key!r} is not logged: {item.problem}")
        if isinstance(item, Table):
            item = item.frozen()
        if item.quick:
            return self._write(key, item, step, place)
        with self.changed:
            room = not self.waiting or (self.bytes + item.cost <= MOST_WAITING_BYTES and len(self.waiting) < MOST_WAITING)
            if room:
                self.bytes += item.cost
                self.waiting.append((key, item, step, place))
                self.changed.notify()
        if not room:
            return self.writer._drop(
                "media waiting",
                f"{key!r} is not logged: {self.bytes / 2**20:.0f} MiB of media wait to be encoded already; log them less often or smaller",
            )
        if self.thread is None or not self.thread.is_alive():
            self._start()

    def _start(self) -> None:
        self.thread = threading.Thread(target=self._work, name="encore-media", daemon=True)
        try:
            self.thread.start()
        except RuntimeError:  # the interpreter is ending: no thread can be had any more
            self.thread = None
            self._empty()

    def _work(self) -> None:
        while True:
            with self.changed:
                self.busy = False
                self.changed.notify_all()
                while not self.waiting:
                    self.changed.wait()
                self.busy = True
            try:
                self._one()
            except Exception as error:  # ENCORE_STRICT=1 raises where nobody could catch it
                self._lost("media", f"media: {error}")

    def _one(self) -> None:
        with self.changed:
            key, item, step, place = self.waiting.popleft()
        try:
            self._write(key, item, step, place)
        finally:
            with self.changed:
                self.bytes -= item.cost

    def _empty(self) -> None:
        while self.waiting:
            self._one()

    def _write(self, key: str, item: Media, step: int, place: dict[str, Any]) -> None:
        try:
            doc = item.encode(self.writer.put_blob)
        except Refused as refused:
            return self._lost(f"media {item.kind}", f"{key!r} is not logged: {refused}")
        except OSError as error:
            return self._lost("media disk", f"{key!r} could not be written: {error}")
        except Exception as error:
            return self._lost(f"media {item.kind}", f"{key!r} could not be encoded: {type(error).__name__}: {error}")
        doc["meta"] = {**doc["meta"], **place}
        self.writer.emit({"type": "media", "key": key, **doc}, step)

    def _lost(self, reason: str, sentence: str) -> None:
        self.writer.losses.add(reason)
        self.writer.say(f"{sentence} (dropped and counted; said once)", reason)

    def settle(self) -> None:
        """Before the writer's last word: what waits is encoded, for so long and no longer."""
        seconds = min(SETTLE_SECONDS, float(getattr(self.writer.settings, "finish_seconds", 60.0)) / 2)
        deadline = time.monotonic() + seconds
        with self.changed:
            alive = self.thread is not None and self.thread.is_alive()
            while alive and (self.waiting or self.busy) and time.monotonic() < deadline:
                self.changed.wait(0.1)
            left = list(self.waiting)
            if alive:
                self.waiting.clear()
        if not alive:
            with contextlib.suppress(IndexError):
                self._empty()
        elif left:
            self.writer.losses.add("media at the end", len(left))
            self.writer.say(f"{len(left)} media were not encoded within {seconds:.0f} s of the end and are lost (counted)")
