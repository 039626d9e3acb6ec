"""Which values are points, and as what. numpy and torch are known by what their scalars can do, never imported."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from ._plain import key_text

LEAST, GREATEST = -(2**63), 2**63 - 1
MAX_KEY_BYTES = 500
MAX_DEPTH = 16


def step(value: Any) -> int | None:
    """An int, or None for what is none. numpy's integers are ints, floats never are: 0.5 has no step, and 1e17 + 1 is 1e17."""
    if isinstance(value, (bool, float)):
        return None
    try:
        number = value.__index__()
    except Exception:
        return None
    return number if LEAST < number <= GREATEST else None


def numbers(data: Mapping[Any, Any]) -> tuple[dict[str, Any], list[tuple[str, str]], int]:
    """(key -> float or int of 64 bits, refused as (key, kind of value), how many ints lost digits). Nested dicts join their keys by "/"."""
    values: dict[str, Any] = {}
    refused: list[tuple[str, str]] = []
    inexact = _collect(data, "", values, refused, 0)
    return values, refused, inexact


def _collect(data: Mapping[Any, Any], prefix: str, values: dict[str, Any], refused: list[tuple[str, str]], depth: int) -> int:
    inexact = 0
    for raw, value in list(data.items()):
        key = prefix + key_text(raw)
        if isinstance(value, Mapping):
            if depth >= MAX_DEPTH:
                refused.append((key, "too deeply nested"))
            else:
                inexact += _collect(value, key + "/", values, refused, depth + 1)
            continue
        if len(key) > MAX_KEY_BYTES // 4 and len(key.encode()) > MAX_KEY_BYTES:
            refused.append((key[:60] + "…", "a key of more than 500 bytes"))
            continue
        number = number_of(value)
        if number is None:
            refused.append((key, _kind(value)))
        elif type(number) is int and not LEAST <= number <= GREATEST:
            try:
                values[key] = float(number)
            except OverflowError:
                values[key] = math.inf if number > 0 else -math.inf
            inexact += 1
        else:
            values[key] = number
    return inexact


def number_of(value: Any) -> float | int | None:
    """The float or int a value stands for; None if it is no single number."""
    kind = type(value)
    if kind is float or kind is int:
        return value
    if kind is bool:
        return int(value)
    if isinstance(value, (str, bytes, bytearray)) or value is None:
        return None
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        return int(value)
    try:
        item = getattr(value, "item", None)
        if callable(item):
            value = item()
            if type(value) is float or type(value) is int:
                return value
            if type(value) is bool:
                return int(value)
        if isinstance(value, complex):
            return None
        if hasattr(value, "__index__"):
            return int(value.__index__())
        if hasattr(value, "__float__"):
            return float(value)
    except Exception:
        return None
    return None


def _kind(value: Any) -> str:
    kind = type(value)
    name = kind.__name__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__.split('.')[0]}.{kind.__name__}"
    shape = getattr(value, "shape", None)
    try:
        return f"{name} of shape {tuple(shape)}" if shape is not None and len(shape) else name
    except Exception:
        return name


def packs_directly(kind: type, code: str) -> bool:
    """Whether struct packs values of this type by itself, exactly, as "d" or "q"."""
    if code == "d":
        if kind is float:
            return True
        numpy = sys.modules.get("numpy")
        return numpy is not None and kind in (numpy.float64, numpy.float32, numpy.float16)
    if kind is int or kind is bool:
        return True
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(kind, type) and issubclass(kind, numpy.integer)
