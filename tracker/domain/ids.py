"""Ids: 26 characters of lower-case base32 of 128 random bits (docs/formats.md)."""

import base64
import re
import secrets

ID = re.compile(r"[a-z2-7]{26}")


def new_id() -> str:
    return base64.b32encode(secrets.token_bytes(16)).decode().rstrip("=").lower()


def is_id(text: str) -> bool:
    return bool(ID.fullmatch(text))


def id_bytes(text: str) -> bytes:
    """The 128 bits behind an id, as binary formats carry them."""
    return base64.b32decode(text.upper() + "======")


def id_from_bytes(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=").lower()
