"""Console output becomes ``log`` documents, without changing what the user sees.

The stream objects stay the same objects: their ``write`` is wrapped in place, so a logging handler that took ``sys.stderr`` before
``init`` is heard as well, and ``isatty``, ``fileno`` and ``buffer`` are the stream's own. What C code or a child process writes to the
descriptor is not seen here.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ._secrets import mask_text

FLUSH_BYTES = 4096
FLUSH_SECONDS = 0.3
# A program that prints without end is cut into documents that a journal record can hold.
MAX_TEXT = 128 * 1024

_local = threading.local()


class _Tee:
    """Wraps one stream's ``write`` in place and gathers what passes."""

    def __init__(self, stream: Any, name: str, owner: _Console) -> None:
        self.stream, self.name, self.owner = stream, name, owner
        self.parts: list[str] = []
        self.size = 0
        self.since = 0.0
        self.originals: list[tuple[Any, str, Any]] = []
        self._wrap(stream, "write", self._text)
        buffer = getattr(stream, "buffer", None)
        if buffer is not None:
            # Bytes that the text layer hands down must not be counted twice: while it runs, the buffer's writes are known.
            for method in ("flush", "reconfigure"):
                if hasattr(stream, method):
                    self._wrap(stream, method, None)
            with contextlib.suppress(AttributeError, TypeError):
                self._wrap(buffer, "write", self._bytes)

    def _wrap(self, target: Any, method: str, heard: Callable[[Any], None] | None) -> None:
        original = getattr(target, method)
        is_text_layer = target is self.stream

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            depth = getattr(_local, "depth", 0)
            if is_text_layer:
                _local.depth = depth + 1
            try:
                result = original(*args, **kwargs)
            finally:
                if is_text_layer:
                    _local.depth = depth
            if heard is not None and depth == 0 and args:
                with contextlib.suppress(Exception):  # the console must work whatever happens to our copy of it
                    heard(args[0])
            return result

        wrapped.__name__ = method
        setattr(target, method, wrapped)
        self.originals.append((target, method, wrapped))

    def _text(self, text: Any) -> None:
        if isinstance(text, str) and text:
            self.add(text)

    def _bytes(self, data: Any) -> None:
        text = bytes(data).decode(getattr(self.stream, "encoding", None) or "utf-8", "replace")
        if text:
            self.add(text)

    def add(self, text: str) -> None:
        owner = self.owner
        with owner.lock:
            if not self.parts:
                self.since = time.monotonic()
            self.parts.append(text)
            self.size += len(text)
            due = self.size >= FLUSH_BYTES or time.monotonic() - self.since >= FLUSH_SECONDS
        if due:
            owner.flush(self)
        else:
            owner.wake()

    def take(self, whole: bool) -> str:
        """What has gathered, up to the last line end unless `whole`: a secret cut in two by a batch would not be seen."""
        parts, self.parts = self.parts, []  # a signal handler that prints from here on finds a list of its own
        text = "".join(parts)
        end = len(text) if whole else max(text.rfind("\n"), text.rfind("\r")) + 1
        if not end and len(text) >= MAX_TEXT:
            end = len(text)
        rest = text[end:]
        if rest:
            self.parts.insert(0, rest)
        self.size = sum(map(len, self.parts))
        self.since = time.monotonic()
        return text[:end]

    def release(self) -> None:
        for target, method, wrapped in self.originals:
            if getattr(target, "__dict__", {}).get(method) is wrapped:  # somebody wrapped ours since: theirs stays
                with contextlib.suppress(AttributeError):
                    delattr(target, method)


class _Console:
    def __init__(self, emit: Callable[[dict[str, Any]], Any], heard: Callable[[str, str], Any] | None = None) -> None:
        self.emit, self.heard = emit, heard
        self.pid = os.getpid()
        self.stopped = False
        self._fresh()
        self.tees: list[_Tee] = []
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name, None)
            if stream is None or any(tee.stream is stream for tee in self.tees):
                continue
            try:
                self.tees.append(_Tee(stream, name, self))
            except (AttributeError, TypeError):
                continue  # a stream whose class forbids it: left alone
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _fresh(self) -> None:
        # Re-entrant: a signal handler may print while its own thread is in here.
        self.lock = threading.RLock()
        # A queue and not an event: its put may be interrupted by a signal handler that puts, an event's lock would never come free.
        self.waiting: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.woken = False
        self.thread: threading.Thread | None = None

    def _after_fork(self) -> None:
        """The child starts empty: what had gathered is the parent's to send."""
        self.pid = os.getpid()
        self._fresh()
        _local.depth = 0
        for tee in self.tees:
            tee.parts, tee.size = [], 0

    def wake(self) -> None:
        """See that the rest goes out within FLUSH_SECONDS even if nothing is printed any more."""
        if not self.woken:
            self.woken = True
            self.waiting.put(None)
        if self.thread is None and not self.stopped:
            self.thread = thread = threading.Thread(target=self._follow, args=(self.waiting,), name="encore-console", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter is going down; stop() flushes
                self.thread = None

    def _follow(self, waiting: queue.SimpleQueue[None]) -> None:
        while not self.stopped and waiting is self.waiting:
            waiting.get()
            self.woken = False
            time.sleep(FLUSH_SECONDS)
            for tee in self.tees:
                self.flush(tee, whole=True)

    def flush(self, tee: _Tee, whole: bool = False) -> None:
        if getattr(_local, "emitting", False):
            return  # what we print ourselves while handing on waits for the next round
        with self.lock:
            text = tee.take(whole)
        if not text:
            return
        _local.emitting = True
        try:
            if self.heard is not None:
                with contextlib.suppress(Exception):
                    self.heard(tee.name, text)
            text = mask_text(_settle(text))
            for start in range(0, len(text), MAX_TEXT):
                self.emit({"type": "log", "stream": tee.name, "text": text[start : start + MAX_TEXT]})
        except Exception:  # noqa: S110 - the journal counts what it cannot take
            pass
        finally:
            _local.emitting = False

    def stop(self) -> None:
        if self.stopped:
            return
        self.stopped = True
        self.waiting.put(None)
        for tee in self.tees:
            tee.release()
            self.flush(tee, whole=True)


def _settle(text: str) -> str:
    """A progress bar's states within one batch become its last one; the leading `\\r` stays, so a page knows that it overwrites."""
    if "\r" not in text:
        return text
    lines = text.replace("\r\n", "\n").split("\n")
    for index, line in enumerate(lines):
        if line.count("\r") > 1:
            states = line.split("\r")
            last = next((state for state in reversed(states) if state), "")
            lines[index] = (
                "\r" if line.startswith("\r") else states[0] + "\r" if states[0] and last != states[0] and index == 0 else "\r"
            ) + last
    return "\n".join(lines)


def start(emit: Callable[[dict[str, Any]], Any], heard: Callable[[str, str], Any] | None = None) -> Callable[[], None]:
    """Begin to copy sys.stdout and sys.stderr into ``emit({"type": "log", "stream", "text"})``, masked. ``heard``: gets it as it was.

    Returns what ends it; never raises.
    """
    try:
        console = _Console(emit, heard)
    except Exception:
        return lambda: None
    return console.stop
