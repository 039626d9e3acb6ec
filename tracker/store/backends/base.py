"""What every backend promises, and the one rule for keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import BinaryIO, Protocol

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
KEY_CHARACTERS = 200


class BadKey(ValueError):
    """The key could leave its store, or mean different objects in different stores."""


class MissingObject(Exception):
    """No object lies under this key."""


class StoreTrouble(OSError):
    """The store did not answer as it should: asked again it may. What it said is the message."""


def checked(key: str) -> str:
    """``key`` itself, if it is harmless everywhere: no empty, hidden or parent parts (``..``, ``a//b``, ``/a``). Raises BadKey."""
    if not isinstance(key, str) or len(key) > KEY_CHARACTERS or not _KEY.fullmatch(key):
        raise BadKey(f"{str(key)[:80]!r} is no object key: letters, digits, '.', '_', '-' in parts divided by single '/'.")
    return key


class Backend(Protocol):
    """Objects are immutable and appear whole or not at all. Every method takes a checked key and raises BadKey for others.

    Reading raises StoreTrouble where the store fails, after its own retries.
    """

    is_remote: bool
    """Whether a read costs a round trip, so that several at once and few large ones are faster."""

    def put(self, key: str, data: bytes | BinaryIO) -> int:
        """Store all of ``data``, durable when it returns; the number of bytes."""

    def open(self, key: str) -> BinaryIO:
        """The object for reading from its start. Raises MissingObject."""

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes start … end (exclusive); fewer where the object ends. Raises MissingObject."""

    def ranges(self, key: str, spans: list[tuple[int, int]]) -> list[bytes]:
        """Many reads of one object at once, in the order asked."""

    def size(self, key: str) -> int:
        """Raises MissingObject."""

    def exists(self, key: str) -> bool: ...

    def delete(self, key: str) -> None:
        """Idempotent."""

    def list(self, prefix: str) -> Iterator[tuple[str, int, datetime]]:
        """(key, bytes, stored at) of the objects below ``prefix``, a key that is a folder."""

    def presign_get(self, key: str, seconds: int) -> str | None:
        """A URL that reads the object without a login, or None where the tracker must carry the bytes itself."""

    def presign_put(self, key: str, bytes: int, seconds: int) -> tuple[str, dict[str, str]] | None:
        """(URL, headers to send) that writes an object of exactly ``bytes`` bytes, or None."""
