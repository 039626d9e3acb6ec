"""Which values are points, and as what. numpy and torch are known by what their scalars can do, never imported.

What is refused comes back with a reason that makes sense behind a number: "3 × str is no number".
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from ._plain import text

LEAST, GREATEST = -(2**63), 2**63 - 1
MAX_KEY_BYTES = 500
MAX_DEPTH = 16
MAX_VALUES = 100_000  # in one call

Refused = list[tuple[str, str]]


def step(value: Any) -> int | None:
    """An int, or None for what is none. numpy's integers are ints, floats never are: 0.5 has no step, and 1e17 + 1 is 1e17."""
    if isinstance(value, (bool, float)):
        return None
    try:
        if str(getattr(value, "dtype", "")).endswith("bool"):
            return None
        number = int(value.__index__())
    except Exception:
        return None
    return number if LEAST < number <= GREATEST else None


def short(value: Any) -> str:
    try:
        return f"{value!r:.40}"
    except Exception:
        return "without a repr"


def numbers(data: Mapping[Any, Any]) -> tuple[dict[str, Any], Refused, int]:
    """(key -> float or int of 64 bits, refused as (key, reason), how many ints lost digits). Nested dicts join their keys by "/"."""
    leaves, refused = leaves_of(data)
    if "torch" in sys.modules or "jax" in sys.modules:
        from . import _device

        leaves = _device.fetched(leaves)
    values: dict[str, Any] = {}
    inexact = 0
    for key, value in leaves.items():
        number, lost = _exact(value)
        if number is None:
            refused.append((key, f"{_kind(value)} is no number"))
        else:
            values[key] = number
            inexact += lost
    return values, refused, inexact


def leaves_of(data: Mapping[Any, Any]) -> tuple[dict[str, Any], Refused]:
    """(key -> value as given, refused): the nested dicts laid flat."""
    leaves: dict[str, Any] = {}
    refused: Refused = []
    _collect(data, "", leaves, refused, (id(data),))
    return leaves, refused


def _collect(data: Mapping[Any, Any], prefix: str, leaves: dict[str, Any], refused: Refused, inside: tuple[int, ...]) -> None:
    for raw, value in list(data.items()):
        try:
            key = prefix + _key(raw)
        except Exception:
            refused.append((f"{prefix}<{type(raw).__name__}>", "a key has no text"))
            continue
        if isinstance(value, Mapping):
            if id(value) in inside:
                refused.append((key, "a dict contains itself"))
            elif len(inside) > MAX_DEPTH:
                refused.append((key, "a dict is nested too deeply"))
            else:
                try:
                    _collect(value, key + "/", leaves, refused, (*inside, id(value)))
                except Exception as error:  # a mapping whose methods raise
                    refused.append((key, f"{type(value).__name__} raised {type(error).__name__}"))
        elif not key or (len(key) > MAX_KEY_BYTES // 4 and len(key.encode()) > MAX_KEY_BYTES):
            refused.append((key[:60], "a key of more than 500 bytes" if key else "an empty key"))
        elif key in leaves:  # {"a/b": 1, "a": {"b": 2}}, or 1 and "1"
            refused.append((key, "a key is there twice"))
        elif len(leaves) >= MAX_VALUES:
            refused.append((key, f"more than {MAX_VALUES:,} values in a call"))
        else:
            leaves[key] = value


def _key(raw: Any) -> str:
    """The text of a key. A str's subclass (an enum, numpy's) is what it holds, whatever its str() says."""
    return text(str.__str__(raw) if isinstance(raw, str) else str(raw))


def _exact(value: Any) -> tuple[float | int | None, int]:
    """(the number of 64 bits a value stands for, or None; 1 if digits were lost)."""
    number = number_of(value)
    if type(number) is not int or LEAST <= number <= GREATEST:
        return number, 0
    try:
        return float(number), 1
    except OverflowError:
        return (math.inf if number > 0 else -math.inf), 1


def number_of(value: Any) -> float | int | None:
    """The float or int a value stands for; None if it is no single number."""
    kind = type(value)
    if kind is float or kind is int:
        return value
    if kind is bool:
        return int(value)
    if isinstance(value, (str, bytes, bytearray, memoryview)) or value is None:
        return None
    try:
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, int):
            return int.__int__(value)
        item = getattr(value, "item", None)
        if callable(item):
            if getattr(getattr(value, "dtype", None), "kind", "") in ("M", "m", "V", "S", "U"):  # numpy's times are no numbers, nor is text
                return None
            value = item()
            if type(value) is float or type(value) is int:
                return value
            if type(value) is bool:
                return int(value)
        if isinstance(value, (complex, str, bytes)) or value is None:
            return None
        if hasattr(value, "__index__"):
            return int(value.__index__())
        if hasattr(value, "__float__"):
            try:
                return float(value)
            except OverflowError:  # a Fraction or Decimal beyond all floats, as the int of that size
                return 10**400 if value > 0 else -(10**400)
    except Exception:
        return None
    return None


def _kind(value: Any) -> str:
    kind = type(value)
    name = kind.__name__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__.split('.')[0]}.{kind.__name__}"
    try:
        shape = getattr(value, "shape", None)
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
