"""Bodies as they travel: bounded inflation, so that a small hostile body cannot become a large one in memory."""

from __future__ import annotations

import zlib

import zstandard

from tracker.domain.errors import Refused, TooLarge
from tracker.domain.limits import INFLATED_BYTES, WINDOW_BYTES

ENCODINGS = ("", "identity", "deflate", "zstd")
_STEP = 2**20


def inflate(body: bytes, encoding: str, most: int = INFLATED_BYTES) -> bytes:
    """The body without its content encoding. Raises TooLarge beyond ``most`` bytes, Refused for damaged or unknown encodings."""
    if encoding in ("", "identity"):
        if len(body) > most:
            raise _too_large(most)
        return body
    if encoding == "deflate":
        return _deflate(body, most)
    if encoding == "zstd":
        return _zstd(body, most)
    raise Refused(f"Content-Encoding {encoding[:40]!r} is not known here: send deflate, zstd or none.", code="encoding")


def _deflate(body: bytes, most: int) -> bytes:
    machine = zlib.decompressobj()
    try:
        # max_length bounds what is made, whatever the body claims.
        out = machine.decompress(body, most + 1)
    except zlib.error as problem:
        raise Refused(f"The body is no whole deflate (zlib) stream: {problem}.", code="damaged") from None
    if len(out) > most:
        raise _too_large(most)
    if not machine.eof or machine.unused_data:
        raise Refused("The body is no whole deflate (zlib) stream: it is cut short or followed by other bytes.", code="damaged")
    return out


def _zstd(body: bytes, most: int) -> bytes:
    # An object per call: shared between threads they fail on valid bodies. The window is bounded too, it is memory as well.
    try:
        size = zstandard.frame_content_size(body)
        if size > most:
            raise _too_large(most)
        machine = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES)
        if size >= 0:
            return _whole_frame(machine, body, most)
        parts, total = [], 0
        with machine.stream_reader(body, read_across_frames=False) as reader:
            while part := reader.read(_STEP):
                total += len(part)
                if total > most:
                    raise _too_large(most)
                parts.append(part)
        return b"".join(parts)
    except (zstandard.ZstdError, MemoryError) as problem:
        raise Refused(f"The body is no whole zstd frame: {problem}.", code="damaged") from None


def _whole_frame(machine: zstandard.ZstdDecompressor, body: bytes, most: int) -> bytes:
    out = machine.decompress(body, max_output_size=most, allow_extra_data=False)
    if len(out) > most:
        raise _too_large(most)
    return out


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"The body inflates to more than {most // 2**20} MiB: cut the batch into smaller ranges.")
