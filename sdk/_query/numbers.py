"""Numbers that JSON cannot say."""

from __future__ import annotations

from typing import Any

_SPECIAL = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf"), "-0.0": -0.0}


def number(value: Any) -> int | float:
    """A value of the API as the number it was: NaN, infinities, -0.0 and integers beyond 2**53 come as text."""
    if isinstance(value, str):
        return _SPECIAL[value] if value in _SPECIAL else int(value)
    found: int | float = value
    return found


def maybe_number(value: Any) -> Any:
    """The same where text may also be text."""
    return _SPECIAL.get(value, value) if isinstance(value, str) else value
