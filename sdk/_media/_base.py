"""What all media have in common: a kind, a caption, and a job that turns the private copy into bytes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .._plain import text

MOST_RAW_BYTES = 256 << 20  # of one array before it is encoded
MOST_FILE_BYTES = 256 << 20  # of one file that is logged by its path
MOST_CAPTION = 2000

Keep = Callable[[Any], str]  # bytes or a path -> digest, in the journal's blobs


class Refused(Exception):
    """What was given cannot be logged; the sentence says why and what can."""


class Encoded(NamedTuple):
    data: bytes | Path | None  # None: all of it is in `meta`
    mime: str
    meta: dict[str, Any]


class Media:
    """One rich value. `caption` is shown below it."""

    kind = ""

    def __init__(self, take: Callable[[], tuple[int, Callable[[Keep], Encoded]]], caption: Any = None) -> None:
        """take: makes the private copy; returns (bytes it holds in memory, the job that encodes it)."""
        self.caption = None if caption is None else text(str(caption))[:MOST_CAPTION]
        self.problem: str | None = None
        self.cost = 0
        self.job: Callable[[Keep], Encoded] = _nothing
        try:
            self.cost, self.job = take()
        except Refused as refused:
            self.problem = str(refused)
        except Exception as error:  # a broken object of somebody's library must not end training
            self.problem = f"{type(error).__name__}: {error}"
        if self.cost > MOST_RAW_BYTES:
            self.problem = f"{self.cost / 2**20:.0f} MiB are more than the {MOST_RAW_BYTES >> 20} MiB that one value may have"
            self.job = _nothing

    @property
    def quick(self) -> bool:
        """Encoded at once, since a thread would cost more than the work."""
        return False

    def encode(self, keep: Keep) -> dict[str, Any]:
        """The fields of the media document (docs/formats.md). Raises Refused."""
        if self.problem is not None:
            raise Refused(self.problem)
        data, mime, meta = self.job(keep)
        size, digest = 0, None
        if data is not None:
            size = len(data) if isinstance(data, bytes) else os.stat(data).st_size
            digest = keep(data)
        meta = {**meta, **({"caption": self.caption} if self.caption else {})}
        return {"kind": self.kind, "digest": digest, "bytes": size, "mime": mime, "meta": meta}

    def __repr__(self) -> str:
        return f"<sdk.{type(self).__name__}{' ' + self.caption[:40] if self.caption else ''}>"


def _nothing(keep: Keep) -> Encoded:
    raise Refused("there is nothing in it")


class HeldFile:
    """A file opened where it is logged: it may be removed or replaced before it is copied."""

    def __init__(self, path: Any, most: int = MOST_FILE_BYTES) -> None:
        self.path = os.fspath(path)
        found = os.stat(self.path)  # before it is opened: opening a pipe would wait for its other end
        if not stat.S_ISREG(found.st_mode):
            raise Refused(f"{self.path} is no regular file")
        if found.st_size > most:
            raise Refused(f"{self.path} has {found.st_size / 2**20:.0f} MiB; one value may have {most >> 20} (log it as a file instead)")
        self.file = open(self.path, "rb")  # noqa: SIM115 - held until it is copied

    def head(self, size: int = 512) -> bytes:
        return self.file.read(size)

    def read(self, most: int) -> bytes:
        self.file.seek(0)
        data = self.file.read(most + 1)
        self.file.close()
        if len(data) > most:
            raise Refused(f"{self.path} has grown beyond {most >> 20} MiB")
        return data

    def content(self) -> bytes:
        return self.read(MOST_FILE_BYTES)


def given_bytes(value: Any) -> bytes | None:
    """Bytes as they are; of a file-like object what it holds."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    getvalue = getattr(value, "getvalue", None)
    if callable(getvalue):
        found = getvalue()
        return found if isinstance(found, bytes) else str(found).encode()
    return None


def is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))
