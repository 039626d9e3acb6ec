"""Ids: 26 characters of lower-case base32 of 128 random bits (docs/formats.md)."""

from __future__ import annotations

import base64
import hashlib
import os
import re

ID = re.compile(r"[a-z2-7]{26}")


def new_id() -> str:
    return id_from_bytes(os.urandom(16))


def derived_id(*parts: object) -> str:
    """The same id for the same parts, on every rank, with no word exchanged."""
    text = "\0".join(str(part) for part in parts)
    return id_from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest())


def is_id(text: object) -> bool:
    return isinstance(text, str) and bool(ID.fullmatch(text))


def id_bytes(text: str) -> bytes:
    return base64.b32decode(text.upper() + "======")


def id_from_bytes(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=").lower()
