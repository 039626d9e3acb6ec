"""sdk.Text and sdk.Html."""

from __future__ import annotations

import os
from typing import Any

from .._plain import text
from ._base import Encoded, HeldFile, Media, Refused, given_bytes
from ._image import Taken

IN_THE_DOCUMENT = 4096  # bytes of text that travel in the document itself
MOST_TEXT_BYTES = 4 << 20
MOST_HTML_BYTES = 16 << 20


class Text(Media):
    """Words: `Text("…")`, or `Text("# …", markdown=True)`. Shown as text, never as markup."""

    kind = "text"

    def __init__(self, value: Any, caption: Any = None, markdown: bool = False) -> None:
        super().__init__(lambda: _words(value, markdown), caption)

    @property
    def quick(self) -> bool:
        return self.cost <= IN_THE_DOCUMENT


def _words(value: Any, markdown: bool) -> Taken:
    words = text(value.decode("utf-8", "replace") if isinstance(value, (bytes, bytearray)) else str(value))
    size = len(words.encode())
    if size > MOST_TEXT_BYTES:
        raise Refused(f"a text of {size / 2**20:.0f} MiB; one may have {MOST_TEXT_BYTES >> 20}")
    mime = "text/markdown" if markdown else "text/plain"
    if size <= IN_THE_DOCUMENT:
        return size, lambda keep: Encoded(None, mime, {"text": words})
    return size, lambda keep: Encoded(words.encode(), mime, {"start": words[:500]})


class Html(Media):
    """A page of your own, whole in itself: markup, a path, or bytes. Shown in a frame that can reach neither the network nor Encore."""

    kind = "html"

    def __init__(self, value: Any, caption: Any = None) -> None:
        super().__init__(lambda: _page(value), caption)


def _page(value: Any) -> Taken:
    if isinstance(value, os.PathLike) or (isinstance(value, str) and "<" not in value and len(value) < 4096 and os.path.isfile(value)):
        held = HeldFile(value, MOST_HTML_BYTES)
        return 0, lambda keep: Encoded(held.read(MOST_HTML_BYTES), "text/html", {})
    data = given_bytes(value)
    if data is None:
        data = text(str(value)).encode()
    if len(data) > MOST_HTML_BYTES:
        raise Refused(f"a page of {len(data) / 2**20:.0f} MiB; one may have {MOST_HTML_BYTES >> 20}")
    return len(data), lambda keep: Encoded(data, "text/html", {})
