"""Two stores as one: keys with a prefix lie in the cold one. A row's object key alone says where an object is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import BinaryIO

from tracker.store.backends.base import Backend


class Tiered:
    def __init__(self, hot: Backend, cold: Backend, prefix: str) -> None:
        self.hot, self.cold, self.prefix = hot, cold, prefix

    def _of(self, key: str) -> Backend:
        # What is no key (another type, a bad name) is refused by the store itself.
        return self.cold if isinstance(key, str) and f"{key}/".startswith(self.prefix) else self.hot

    def put(self, key: str, data: bytes | BinaryIO) -> int:
        return self._of(key).put(key, data)

    def open(self, key: str) -> BinaryIO:
        return self._of(key).open(key)

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        return self._of(key).read(key, start, end)

    def ranges(self, key: str, spans: list[tuple[int, int]]) -> list[bytes]:
        return self._of(key).ranges(key, spans)

    def size(self, key: str) -> int:
        return self._of(key).size(key)

    def exists(self, key: str) -> bool:
        return self._of(key).exists(key)

    def delete(self, key: str) -> None:
        self._of(key).delete(key)

    def list(self, prefix: str) -> Iterator[tuple[str, int, datetime]]:
        return self._of(prefix).list(prefix)

    def sweep_aside(self, older_than: datetime) -> int:
        return sum(each.sweep_aside(older_than) for each in (self.hot, self.cold) if hasattr(each, "sweep_aside"))

    def presign_get(self, key: str, seconds: int) -> str | None:
        return self._of(key).presign_get(key, seconds)

    def presign_put(self, key: str, bytes: int, seconds: int) -> tuple[str, dict[str, str]] | None:
        return self._of(key).presign_put(key, bytes, seconds)
