"""Compressing an answer where the client can undo it and it pays."""

from __future__ import annotations

import zlib

import zstandard
from django.http import HttpRequest

SMALL_BYTES = 4096
PAYS = 0.9
_TRIAL_BYTES = 65536


def choose(request: HttpRequest) -> str:
    """zstd, gzip or nothing, by Accept-Encoding."""
    accepted = {}
    for part in request.headers.get("Accept-Encoding", "").lower().split(","):
        name, _, parameters = part.partition(";")
        accepted[name.strip()] = parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return next((name for name in ("zstd", "gzip") if accepted.get(name)), "")


def packed(body: bytes, encoding: str) -> tuple[bytes, str]:
    """(body, its encoding): unchanged where it is small, or a trial at its middle shows that numbers of noise stay as long as they are."""
    if not encoding or len(body) < SMALL_BYTES:
        return body, ""
    if len(body) > 4 * _TRIAL_BYTES:
        middle = len(body) // 2
        trial = body[middle : middle + _TRIAL_BYTES]
        if len(_pack(trial, encoding)) > PAYS * len(trial):
            return body, ""
    found = _pack(body, encoding)
    return (found, encoding) if len(found) < PAYS * len(body) else (body, "")


def _pack(raw: bytes, encoding: str) -> bytes:
    if encoding == "zstd":
        return zstandard.ZstdCompressor(level=1).compress(raw)
    compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
    return compressor.compress(raw) + compressor.flush()
