"""Arrays as pixels of 8 or 16 bits: what a shape means, and which values are which colour."""

from __future__ import annotations

from typing import Any, NamedTuple

from ._arrays import torch_of
from ._base import Refused

CHANNELS = (1, 3, 4)


class Pixels(NamedTuple):
    array: Any  # uint8, height × width × channels (big-endian pairs when depth is 16)
    height: int
    width: int
    channels: int
    depth: int
    meta: dict[str, Any]


def layout(shape: tuple[int, ...], first: bool) -> tuple[int, int, int, bool]:
    """(height, width, channels, channels stand first). first: what to believe when both are possible (torch's habit)."""
    if len(shape) == 2:
        height, width, channels, is_first = shape[0], shape[1], 1, False
    elif len(shape) == 3 and (shape[0] in CHANNELS if first else shape[2] in CHANNELS):
        height, width, channels, is_first = (shape[1], shape[2], shape[0], True) if first else (*shape, False)
    elif len(shape) == 3 and (shape[2] in CHANNELS if first else shape[0] in CHANNELS):
        height, width, channels, is_first = (*shape, False) if first else (shape[1], shape[2], shape[0], True)
    else:
        hint = "; log a batch as a list: [sdk.Image(x) for x in batch]" if len(shape) == 4 else ""
        raise Refused(f"an image is H×W, H×W×C or C×H×W with 1, 3 or 4 channels, not {'×'.join(map(str, shape)) or 'a scalar'}{hint}")
    if height < 1 or width < 1:
        raise Refused("an image without pixels")
    return height, width, channels, is_first


def pixels(array: Any, span: Any = None, channels_first: bool = False) -> Pixels:
    """array: what Snapshot gave, or a frame of it.

    span: the values that are black and white, or "fit" for the array's own least and greatest; None: 0 and 1 for floats.
    """
    torch = torch_of(array)
    height, width, channels, is_first = layout(tuple(array.shape), channels_first)
    if is_first:
        array = array.permute(1, 2, 0) if torch is not None else array.transpose(1, 2, 0)
    convert = _torch if torch is not None else _numpy
    data, depth, meta = convert(array, span)
    return Pixels(data, height, width, channels, depth, meta)


def _span(span: Any, low: float, high: float) -> tuple[float, float]:
    if span == "fit":
        return low, high
    low, high = float(span[0]), float(span[1])
    if not low < high:
        raise Refused(f"range=({low}, {high}) is empty")
    return low, high


def _numpy(array: Any, span: Any) -> tuple[Any, int, dict[str, Any]]:
    import sys

    numpy = sys.modules["numpy"]
    kind = array.dtype.kind
    if kind == "b":
        return numpy.ascontiguousarray(array).astype("uint8") * 255, 8, {}
    if kind not in "uif":
        raise Refused(f"pixels are numbers, not {array.dtype}")
    if span is None and kind in "ui":
        if array.dtype == numpy.uint16:
            return numpy.ascontiguousarray(array.astype(">u2")).view("uint8"), 16, {}
        if array.dtype == numpy.uint8:
            return numpy.ascontiguousarray(array), 8, {}
        clipped = int(((array < 0) | (array > 255)).sum())
        return numpy.ascontiguousarray(array.clip(0, 255).astype("uint8")), 8, _clipped(clipped)
    floats = array.astype("float32" if array.dtype.itemsize <= 4 else "float64")
    finite = numpy.isfinite(floats)
    odd = int(finite.size - finite.sum())
    known = floats[finite] if odd else floats
    low, high = (
        (0.0, 1.0) if span is None else _span(span, float(known.min()) if known.size else 0.0, float(known.max()) if known.size else 1.0)
    )
    scaled = (floats - low) * (255.0 / ((high - low) or 1.0))
    clipped = int(((floats < low) | (floats > high)).sum())
    with numpy.errstate(invalid="ignore"):
        out = numpy.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255)
        return numpy.ascontiguousarray(numpy.rint(out).astype("uint8")), 8, _clipped(clipped, odd) | _ranged(span, low, high)


def _torch(tensor: Any, span: Any) -> tuple[Any, int, dict[str, Any]]:
    import sys

    torch = sys.modules["torch"]
    if tensor.dtype == torch.bool:
        return tensor.to(torch.uint8).contiguous() * 255, 8, {}
    if tensor.is_complex():
        raise Refused(f"pixels are numbers, not {tensor.dtype}")
    if span is None and not tensor.is_floating_point():
        if tensor.dtype == torch.uint8:
            return tensor.contiguous(), 8, {}
        clipped = int(((tensor < 0) | (tensor > 255)).sum())
        return tensor.clamp(0, 255).to(torch.uint8).contiguous(), 8, _clipped(clipped)
    floats = tensor.to(torch.float32 if tensor.element_size() <= 4 else torch.float64)
    finite = torch.isfinite(floats)
    odd = int(finite.numel() - finite.sum())
    known = floats[finite] if odd else floats
    some = known.numel() > 0
    low, high = (0.0, 1.0) if span is None else _span(span, float(known.min()) if some else 0.0, float(known.max()) if some else 1.0)
    scaled = (floats - low) * (255.0 / ((high - low) or 1.0))
    clipped = int(((floats < low) | (floats > high)).sum())
    out = torch.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0).clamp(0, 255).round()
    return out.to(torch.uint8).contiguous(), 8, _clipped(clipped, odd) | _ranged(span, low, high)


def _clipped(count: int, odd: int = 0) -> dict[str, Any]:
    """Said with the image: an image of values in 0…255 as floats would else be white without a word."""
    return ({"clipped": count} if count else {}) | ({"not_finite": odd} if odd else {})


def _ranged(span: Any, low: float, high: float) -> dict[str, Any]:
    return {} if span is None else {"range": [low, high]}
