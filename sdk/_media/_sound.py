"""sdk.Audio: samples become a WAV file; files are taken as they are."""

from __future__ import annotations

import struct
import sys
from typing import Any

from . import _sniff
from ._arrays import Snapshot, is_array, torch_of
from ._base import Encoded, Media, Refused, given_bytes, is_path
from ._image import Taken, _of_bytes, _of_file

MOST_CHANNELS = 8


class Audio(Media):
    """A sound: `Audio(samples, rate=16000)` of floats from -1 to 1, int16 or int32, mono or channels × samples (or samples × channels);
    or a path or the bytes of a WAV, MP3, FLAC, Ogg or M4A."""

    kind = "audio"

    def __init__(self, value: Any, rate: int | None = None, caption: Any = None) -> None:
        super().__init__(lambda: _take(value, rate), caption)


def _take(value: Any, rate: Any) -> Taken:
    if (data := given_bytes(value)) is not None:
        return _of_bytes(data, _sniff.SOUNDS)
    if is_path(value):
        return _of_file(value, _sniff.SOUNDS)
    if not is_array(value):
        raise Refused(f"a sound cannot be made of {type(value).__name__}; give samples and rate=, a path or bytes")
    if rate is None or isinstance(rate, bool) or not 1 <= int(rate) <= 1_000_000:
        raise Refused("samples need their rate: sdk.Audio(samples, rate=16000)")
    snapshot = Snapshot(value)
    _layout(snapshot.shape)
    return snapshot.size, lambda keep: _wave(snapshot.get(), int(rate))


def _layout(shape: tuple[int, ...]) -> tuple[int, int, bool]:
    """(samples, channels, channels stand first)."""
    if len(shape) == 1 and shape[0]:
        return shape[0], 1, False
    if len(shape) == 2 and min(shape) and min(shape) <= MOST_CHANNELS:
        return (shape[1], shape[0], True) if shape[0] <= shape[1] else (shape[0], shape[1], False)
    raise Refused(f"a sound is samples, or channels × samples of at most {MOST_CHANNELS} channels, not {'×'.join(map(str, shape))}")


def _wave(array: Any, rate: int) -> Encoded:
    samples, channels, is_first = _layout(tuple(array.shape))
    if is_first:
        array = array.T
    data, width, meta = (_torch if torch_of(array) is not None else _numpy)(array)
    block = channels * width
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + len(data),
        b"WAVE",
        b"fmt ",
        16,
        1,
        channels,
        rate,
        rate * block,
        block,
        width * 8,
        b"data",
        len(data),
    )
    return Encoded(head + data, "audio/wav", {"rate": rate, "seconds": round(samples / rate, 6), "channels": channels, **meta})


def _numpy(array: Any) -> tuple[bytes, int, dict[str, Any]]:
    numpy = sys.modules["numpy"]
    kind, width = array.dtype.kind, array.dtype.itemsize
    if kind == "i" and width in (2, 4):
        return numpy.ascontiguousarray(array.astype(f"<i{width}")).tobytes(), width, {}
    if kind == "u" and width == 1:
        return numpy.ascontiguousarray(array).tobytes(), 1, {}
    if kind != "f":
        raise Refused(f"samples are floats from -1 to 1, int16, int32 or uint8, not {array.dtype}")
    clipped = int((numpy.abs(array) > 1).sum())
    whole = numpy.rint(numpy.nan_to_num(array.astype("float64"), posinf=1.0, neginf=-1.0).clip(-1, 1) * 32767)
    return numpy.ascontiguousarray(whole.astype("<i2")).tobytes(), 2, {"clipped": clipped} if clipped else {}


def _torch(tensor: Any) -> tuple[bytes, int, dict[str, Any]]:
    from ._arrays import torch_bytes

    torch = sys.modules["torch"]
    if tensor.dtype in (torch.int16, torch.int32, torch.uint8):
        return torch_bytes(tensor), tensor.element_size(), {}
    if not tensor.is_floating_point():
        raise Refused(f"samples are floats from -1 to 1, int16, int32 or uint8, not {tensor.dtype}")
    clipped = int((tensor.abs() > 1).sum())
    whole = torch.nan_to_num(tensor.double(), posinf=1.0, neginf=-1.0).clamp(-1, 1).mul(32767).round()
    return torch_bytes(whole.to(torch.int16)), 2, {"clipped": clipped} if clipped else {}
