"""Objects in memory, for tests."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import BinaryIO

from tracker.store.backends.base import MissingObject, checked


class Stub:
    is_remote = False

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, datetime]] = {}

    def put(self, key: str, data: bytes | BinaryIO) -> int:
        raw = bytes(data) if isinstance(data, bytes | bytearray | memoryview) else data.read()
        self.objects[checked(key)] = (raw, datetime.now(timezone.utc))
        return len(raw)

    def _raw(self, key: str) -> bytes:
        try:
            return self.objects[checked(key)][0]
        except KeyError:
            raise MissingObject(key) from None

    def open(self, key: str) -> BinaryIO:
        return io.BytesIO(self._raw(key))

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        return self._raw(key)[start:end]

    def ranges(self, key: str, spans: list[tuple[int, int]]) -> list[bytes]:
        return [self.read(key, start, end) for start, end in spans]

    def size(self, key: str) -> int:
        return len(self._raw(key))

    def exists(self, key: str) -> bool:
        return checked(key) in self.objects

    def delete(self, key: str) -> None:
        self.objects.pop(checked(key), None)

    def list(self, prefix: str) -> Iterator[tuple[str, int, datetime]]:
        for key, (raw, at) in sorted(self.objects.items()):
            if key.startswith(checked(prefix) + "/"):
                yield key, len(raw), at

    def presign_get(self, key: str, seconds: int) -> str | None:
        checked(key)

    def presign_put(self, key: str, bytes: int, seconds: int) -> tuple[str, dict[str, str]] | None:
        checked(key)
