"""sdk.Image: numpy, torch, PIL, matplotlib, paths, bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from . import _png, _sniff
from ._arrays import Snapshot, is_array
from ._base import Encoded, HeldFile, Keep, Media, Refused, given_bytes, is_path
from ._pixels import layout, pixels

Taken = tuple[int, Callable[[Keep], Encoded]]


class Image(Media):
    """An image: `Image(x, caption="…")`.

    x: an array H×W, H×W×C (numpy) or C×H×W (torch) of 1, 3 or 4 channels; a PIL image, a matplotlib figure, a path, bytes of a PNG,
    JPEG, GIF, WebP, AVIF, BMP or SVG. Floats are colours from 0 to 1 (range=(low, high) or "fit" for others), integers from 0 to 255,
    uint16 keeps its 16 bits.
    """

    kind = "image"

    def __init__(self, value: Any, caption: Any = None, range: Any = None) -> None:
        super().__init__(lambda: _take(value, range), caption)


def _take(value: Any, span: Any) -> Taken:
    if is_figure(value):
        return _of_bytes(rendered(value), ("image/png",))
    if is_pil(value):
        copied = value.copy()
        size = copied.width * copied.height * max(1, len(copied.getbands()))
        return size, lambda keep: _pil(copied)
    if (data := given_bytes(value)) is not None:
        return _of_bytes(data, _sniff.IMAGES)
    if is_path(value):
        return _of_file(value, _sniff.IMAGES)
    if is_array(value):
        snapshot = Snapshot(value)
        layout(snapshot.shape, snapshot.channels_first)  # said where it is logged, not a second later
        return snapshot.size, lambda keep: _array(snapshot.get(), span, snapshot.channels_first)
    raise Refused(f"an image cannot be made of {type(value).__name__}; give an array, a PIL image, a figure, a path or bytes")


def _array(array: Any, span: Any, channels_first: bool) -> Encoded:
    found = pixels(array, span, channels_first)
    rows = _png.filtered(found.array, found.height, found.width, found.channels * found.depth // 8)
    data = _png.image(found.width, found.height, found.channels, found.depth, rows)
    return Encoded(data, "image/png", {"width": found.width, "height": found.height, **found.meta})


def _pil(image: Any) -> Encoded:
    depth = 8
    if image.mode == "I;16":
        raw, channels, depth = image.tobytes("raw", "I;16B"), 1, 16
    else:
        if image.mode not in ("L", "LA", "RGB", "RGBA"):
            image = image.convert(
                "RGBA" if image.mode in ("P", "PA") or "transparency" in image.info else "L" if image.mode == "1" else "RGB"
            )
        raw, channels = image.tobytes(), len(image.getbands())
    rows = _png.unfiltered(raw, image.height, image.width * channels * depth // 8)
    return Encoded(
        _png.image(image.width, image.height, channels, depth, rows), "image/png", {"width": image.width, "height": image.height}
    )


def _of_bytes(data: bytes, allowed: tuple[str, ...]) -> Taken:
    found = _known(data[:512], allowed, "these bytes")
    return len(data), lambda keep: Encoded(data, found, _sniff.size_of(data[:64], found))


def _of_file(path: Any, allowed: tuple[str, ...]) -> Taken:
    held = HeldFile(path)
    head = held.head()
    found = _known(head, allowed, held.path)
    return 0, lambda keep: Encoded(held.content(), found, _sniff.size_of(head, found))


def _known(head: bytes, allowed: tuple[str, ...], what: str) -> str:
    found = _sniff.mime(head)
    if found not in allowed:
        names = ", ".join(dict.fromkeys(name.partition("/")[2].partition("+")[0] for name in allowed))
        raise Refused(f"{str(what)[:200]}: not one of {names}{f' but {found}' if found else ''}")
    return found


def is_pil(value: Any) -> bool:
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(value, pil.Image)


def is_figure(value: Any) -> bool:
    """A matplotlib figure (or what has one, such as its axes)."""
    return type(value).__module__.partition(".")[0] in ("matplotlib", "mpl_toolkits", "seaborn") and (
        hasattr(value, "savefig") or callable(getattr(value, "get_figure", None))
    )


def rendered(value: Any) -> bytes:
    """In the caller's thread: figures change, and matplotlib is not made for two threads. A figure costs 50 to 500 ms."""
    import io

    figure = value if hasattr(value, "savefig") else value.get_figure()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
