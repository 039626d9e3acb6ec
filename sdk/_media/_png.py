"""PNG and animated PNG by zlib alone: the same bytes for the same pixels on every machine, and no library to wait for."""

from __future__ import annotations

import struct
from typing import Any
from zlib import compress, crc32

LEVEL = 1  # 4 times as fast as the default, a tenth larger
COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> PNG's colour type
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc32(data, crc32(name)))


def _header(width: int, height: int, channels: int, depth: int) -> bytes:
    return _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, COLOUR[channels], 0, 0, 0))


def image(width: int, height: int, channels: int, depth: int, rows: bytes) -> bytes:
    """rows: for each row its filter byte and its filtered bytes."""
    return SIGNATURE + _header(width, height, channels, depth) + _chunk(b"IDAT", compress(rows, LEVEL)) + _chunk(b"IEND", b"")


def animation(width: int, height: int, channels: int, frames: list[bytes], fps: float) -> bytes:
    """frames: `rows` of each, compressed already by `packed`."""
    delay = struct.pack(">HH", *_ratio(fps))
    out = [SIGNATURE, _header(width, height, channels, 8), _chunk(b"acTL", struct.pack(">II", len(frames), 0))]
    number = 0
    for at, frame in enumerate(frames):
        out.append(_chunk(b"fcTL", struct.pack(">IIIII", number, width, height, 0, 0) + delay + b"\0\0"))
        number += 1
        if at == 0:
            out.append(_chunk(b"IDAT", frame))
        else:
            out.append(_chunk(b"fdAT", struct.pack(">I", number) + frame))
            number += 1
    return b"".join([*out, _chunk(b"IEND", b"")])


def packed(rows: bytes) -> bytes:
    return compress(rows, LEVEL)


def _ratio(fps: float) -> tuple[int, int]:
    """Seconds of one frame as a fraction of 16-bit numbers."""
    return max(1, min(65535, round(1000 / fps))), 1000


def filtered(array: Any, height: int, width: int, pixel_bytes: int) -> bytes:
    """Rows of uint8 (numpy or torch, height × width·pixel_bytes) with PNG's "Sub" filter before each: differences compress better."""
    row = width * pixel_bytes
    array = array.reshape(height, row)
    if hasattr(array, "new_empty"):  # torch
        from ._arrays import torch_bytes

        out = array.new_empty((height, row + 1))
    else:
        import sys

        out = sys.modules["numpy"].empty((height, row + 1), dtype="uint8")
    out[:, 0] = 1
    out[:, 1 : 1 + pixel_bytes] = array[:, :pixel_bytes]
    out[:, 1 + pixel_bytes :] = array[:, pixel_bytes:] - array[:, :-pixel_bytes]  # modulo 256, as PNG wants it
    return torch_bytes(out) if hasattr(out, "new_empty") else out.tobytes()


def unfiltered(raw: bytes, height: int, row: int) -> bytes:
    return b"".join(b"\0" + raw[at : at + row] for at in range(0, height * row, row))
