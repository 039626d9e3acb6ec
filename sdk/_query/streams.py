"""Streamed answers, read as they come.

One that breaks off is asked for again from its last cursor; half an answer is never taken for all.
"""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from zlib import crc32

from ..errors import FormatError, ServerRefused, ServerUnreachable

TRIES = 4
FIRST_WAIT_SECONDS = 0.5
PIECE = 1 << 16
MAGIC, VERSION = b"ENCH", 1

Open = Callable[[str | None], Any]  # from a cursor on: an open answer with `read1`, `read` and `close`


class _BrokenOff(ServerUnreachable):
    """The answer ended before it said that it is complete."""


def lines(opened: Any) -> Iterator[dict[str, Any]]:
    """The objects of an NDJSON answer."""
    rest = b""
    while piece := opened.read1(PIECE):
        found = (rest + piece).split(b"\n")
        rest = found.pop()
        for line in found:
            if line:
                yield json.loads(line)
    if rest:
        raise _BrokenOff("the answer broke off in the middle of a line")


def frames(opened: Any) -> Iterator[tuple[dict[str, Any], bytes]]:
    """(header, columns) of each frame of a history answer."""
    start = _exactly(opened, 8)
    if start[:4] != MAGIC:
        raise FormatError("the answer is no history; is that address an Encore server's?")
    version = int.from_bytes(start[4:6], "little")
    if version != VERSION:
        raise FormatError(f"the server answers histories of version {version}, this SDK reads {VERSION}: update the SDK")
    while True:
        head = opened.read(16)
        if not head:
            return
        if len(head) < 16:
            head += _exactly(opened, 16 - len(head))
        size, check = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:8], "little")
        body = _exactly(opened, size + int.from_bytes(head[8:], "little"))
        if crc32(body) != check:
            raise _BrokenOff("a frame's checksum is wrong")
        yield json.loads(body[:size]), body[size:]


def _exactly(opened: Any, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = opened.read(size - len(found))
        if not piece:
            raise _BrokenOff("the answer broke off in the middle of a frame")
        found = piece if not found else found + piece
    return found


def whole(open_at: Open, read: Callable[[Any], Iterator[Any]], told: Callable[[Any], tuple[dict[str, Any], Any]]) -> Iterator[Any]:
    """Every item of an answer once. `read` cuts it into items; `told` gives an item's words and its name, None for the stream's own words.

    Broken off, or busy: asked again from the last cursor, a few times; what was given already is passed over.
    """
    cursor: str | None = None
    given: set[Any] = set()  # since the last cursor
    tries = 0
    while True:
        try:
            with closing(open_at(cursor)) as opened:
                for item in read(opened):
                    words, name = told(item)
                    if name is not None:
                        if name not in given:
                            given.add(name)
                            yield item
                    elif "cursor" in words:
                        cursor, tries = words["cursor"], 0
                        given.clear()
                    elif words.get("complete") is True:
                        return
                    elif "error" in words:
                        error = words["error"]
                        raise ServerRefused(int(error.get("status") or 500), str(error.get("code")), str(error.get("message")))
            raise _BrokenOff("the answer broke off before its end")
        except (ServerUnreachable, json.JSONDecodeError, OSError, http.client.HTTPException) as error:
            tries += 1
            if tries >= TRIES:
                raise ServerUnreachable(f"{error if str(error) else type(error).__name__} (asked {tries} times)") from None
            _wait(tries, None)
        except ServerRefused as refused:
            tries += 1
            if refused.status not in (429, 502, 503, 504) or tries >= TRIES:
                raise
            _wait(tries, refused.fields.get("retry_after"))


def _wait(tries: int, seconds: Any) -> None:
    wait = float(seconds) if isinstance(seconds, (int, float)) else FIRST_WAIT_SECONDS * 2 ** (tries - 1)
    time.sleep(wait * random.uniform(0.7, 1.3))  # noqa: S311 - jitter
