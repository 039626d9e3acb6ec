"""Least-recently-used memory bounded by bytes, for what never changes: objects by their key, segments by writer and first record.

One for the process, safe for threads. Several threads that miss the same thing at once have it made once (``Claims``).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any

WAIT_SECONDS = 120
"""Longer than any read of one object takes; whoever waited in vain makes it himself."""


class ByteCache:
    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._held: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self._making: dict[Hashable, _Making] = {}
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        return self._bytes

    def get(self, key: Hashable) -> Any | None:
        with self._lock:
            return self._get(key)

    def _get(self, key: Hashable) -> Any | None:
        found = self._held.get(key)
        if found is None:
            return None
        self._held.move_to_end(key)
        return found[0]

    def put(self, key: Hashable, value: Any, bytes_: int) -> None:
        with self._lock:
            self._put(key, value, bytes_)

    def _put(self, key: Hashable, value: Any, bytes_: int) -> None:
        if bytes_ > self.most_bytes // 2:
            return  # it alone would push out all that others use
        if key in self._held:
            self._bytes -= self._held.pop(key)[1]
        self._held[key] = value, bytes_
        self._bytes += bytes_
        while self._bytes > self.most_bytes:
            self._bytes -= self._held.popitem(last=False)[1][1]

    def claim(self, keys: Iterable[Hashable]) -> Claims:
        """What is there of ``keys``, what the caller must make, and what others are making just now. Use it as a context."""
        claims = Claims(self)
        with self._lock:
            for key in keys:
                found = self._get(key)
                if found is not None:
                    claims.found[key] = found
                elif (making := self._making.get(key)) is not None and making.thread != threading.get_ident():
                    claims.others[key] = making
                else:
                    self._making[key] = claims.mine[key] = _Making()
        return claims

    def once(self, key: Hashable, make: Callable[[], tuple[Any, int]]) -> Any:
        """The value under ``key``; if it is not there ``make`` gives it with its bytes, called by one thread at a time."""
        with self.claim([key]) as claims:
            if key in claims.mine:
                claims.made(key, *make())
        return claims.found[key] if key in claims.found else claims.wait(key, make)

    def clear(self) -> None:
        with self._lock:
            self._held.clear()
            self._bytes = 0


class _Making:
    """A value that one thread makes and others wait for."""

    __slots__ = ("done", "thread", "value")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.thread = threading.get_ident()
        self.value: Any = None


class Claims:
    """``found``: values that are there. ``mine``: keys to make, each told with ``made``; what was not when the context ends is given up.

    Make all of ``mine`` before you ``wait``: then no two threads ever wait for each other.
    """

    def __init__(self, cache: ByteCache) -> None:
        self.cache = cache
        self.found: dict[Hashable, Any] = {}
        self.mine: dict[Hashable, _Making] = {}
        self.others: dict[Hashable, _Making] = {}

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self.mine):
            self._end(key, None)

    def made(self, key: Hashable, value: Any, bytes_: int) -> None:
        self.found[key] = value
        with self.cache._lock:
            self.cache._put(key, value, bytes_)
        self._end(key, value)

    def _end(self, key: Hashable, value: Any) -> None:
        making = self.mine.pop(key)
        with self.cache._lock:
            if self.cache._making.get(key) is making:
                del self.cache._making[key]
        making.value = value
        making.done.set()

    def wait(self, key: Hashable, make: Callable[[], tuple[Any, int]]) -> Any:
        """What another thread makes; should it fail, ``make`` does it (and raises this thread's own error)."""
        making = self.others[key]
        making.done.wait(WAIT_SECONDS)
        if making.value is None:
            value, bytes_ = make()
            self.cache.put(key, value, bytes_)
            return value
        return making.value
