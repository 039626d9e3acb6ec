"""sdk.Video: files as they are; frames become an animated PNG, which every browser plays and which needs no encoder of anybody."""

from __future__ import annotations

from typing import Any

from . import _png, _sniff
from ._arrays import Snapshot, is_array
from ._base import Encoded, Media, Refused, given_bytes, is_path
from ._image import Taken, _of_bytes, _of_file
from ._pixels import CHANNELS, pixels

MOST_FRAMES = 2000


class Video(Media):
    """A clip: a path or the bytes of an MP4, WebM or GIF; or frames T×H×W×C (numpy) or T×C×H×W (torch), uint8 or floats from 0 to 1,
    which become an animated PNG (lossless: for long clips encode an MP4 yourself, with imageio or torchvision, and give its path)."""

    kind = "video"

    def __init__(self, value: Any, fps: float = 8, caption: Any = None) -> None:
        super().__init__(lambda: _take(value, fps), caption)


def _take(value: Any, fps: Any) -> Taken:
    if (data := given_bytes(value)) is not None:
        return _of_bytes(data, _sniff.VIDEOS)
    if is_path(value):
        return _of_file(value, _sniff.VIDEOS)
    if not is_array(value):
        raise Refused(f"a video cannot be made of {type(value).__name__}; give a path or bytes of an MP4, WebM or GIF, or frames")
    if not 0.1 <= float(fps) <= 240:
        raise Refused(f"fps is from 0.1 to 240, not {fps}")
    snapshot = Snapshot(value)
    shape = snapshot.shape
    if len(shape) not in (3, 4) or not 1 <= shape[0] <= MOST_FRAMES:
        raise Refused(f"frames are T×H×W, T×H×W×C or T×C×H×W, at most {MOST_FRAMES}, not {'×'.join(map(str, shape))}")
    if len(shape) == 4 and shape[1] not in CHANNELS and shape[3] not in CHANNELS:
        raise Refused(f"frames have 1, 3 or 4 channels, not {'×'.join(map(str, shape))}")
    return snapshot.size, lambda keep: _frames(snapshot.get(), float(fps), snapshot.channels_first)


def _frames(array: Any, fps: float, channels_first: bool) -> Encoded:
    frames: list[bytes] = []
    meta: dict[str, Any] = {}
    last = None
    for at in range(array.shape[0]):
        last = pixels(array[at], None, channels_first)
        if last.depth != 8:
            raise Refused("frames of 16 bits cannot be shown; give uint8")
        frames.append(_png.packed(_png.filtered(last.array, last.height, last.width, last.channels)))
        for name, count in last.meta.items():
            meta[name] = meta.get(name, 0) + count
    assert last is not None
    data = _png.animation(last.width, last.height, last.channels, frames, fps)
    return Encoded(data, "image/apng", {"width": last.width, "height": last.height, "frames": len(frames), "fps": fps, **meta})
