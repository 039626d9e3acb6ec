"""Any Python value as strict JSON: what a user puts into config, summary or an event must never fail and never lie."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 32


def text(value: str) -> str:
    """UTF-8 and PostgreSQL take neither lone surrogates nor NUL."""
    if "\0" in value:
        value = value.replace("\0", "\ufffd")
    try:
        value.encode()
    except UnicodeEncodeError:
        value = value.encode("utf-8", "surrogateescape" if _escaped(value) else "replace").decode("utf-8", "replace")
    return value


def _escaped(value: str) -> bool:
    return all(not 0xD800 <= ord(c) <= 0xDFFF or 0xDC80 <= ord(c) <= 0xDCFF for c in value)


def scalar(value: Any) -> Any:
    """A numpy or torch scalar as the Python number it stands for, by duck typing; anything else unchanged."""
    item = getattr(value, "item", None)
    if callable(item) and not isinstance(value, (int, float, str, bytes, Mapping)):
        try:
            return item()
        except Exception:
            return value
    return value


def plain(value: Any, depth: int = 0) -> Any:
    """JSON-able copy of any value. NaN and Inf become strings, unknown objects their repr; never raises."""
    if value is None or value is True or value is False:
        return value
    if type(value) is int:
        return value if -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, float):
        value = float(value)
        return value if math.isfinite(value) else ("NaN" if value != value else "Infinity" if value > 0 else "-Infinity")
    if isinstance(value, str):
        return text(str(value))
    if depth >= MAX_DEPTH:
        return "…"
    try:
        return _plain_object(value, depth)
    except Exception:
        return f"<{type(value).__name__}>"


def _plain_object(value: Any, depth: int) -> Any:
    import enum

    if isinstance(value, enum.Enum):
        return plain(value.value, depth + 1)
    if isinstance(value, int):
        return plain(int(value))
    if isinstance(value, Mapping):
        return {key_text(k): plain(v, depth + 1) for k, v in list(value.items())}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v, depth + 1) for v in list(value)]
    if isinstance(value, (bytes, bytearray)):
        return text(bytes(value).decode("utf-8", "backslashreplace"))
    number = scalar(value)
    if number is not value:
        return plain(number, depth + 1)
    tolist = getattr(value, "tolist", None)
    if callable(tolist):
        size = getattr(value, "size", None)
        size = size() if callable(size) else size
        if isinstance(size, int) and size <= 1000:
            return plain(tolist(), depth + 1)
        return text(repr(value)[:1000])
    fields = getattr(value, "__dataclass_fields__", None)
    if fields and not isinstance(value, type):
        return {name: plain(getattr(value, name, None), depth + 1) for name in fields}
    if hasattr(value, "__fspath__"):
        return text(str(value))
    if type(value).__name__ in ("Namespace", "SimpleNamespace"):
        return {key_text(k): plain(v, depth + 1) for k, v in vars(value).items()}
    return text((str(value) if isinstance(value, (complex, type)) else repr(value))[:1000])


def key_text(key: Any) -> str:
    return text(key) if type(key) is str else text(str(key))


def dumps(value: Any) -> bytes:
    """Compact UTF-8 JSON of something already plain."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
