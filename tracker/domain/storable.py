"""What programs log, made storable in any database: JSON of theirs may hold what PostgreSQL or strict JSON refuse.

NUL characters become ``␀``, lone surrogates ``U+FFFD``, NaN and infinities their names as text, nesting beyond 64 levels its JSON text.
Integers of any size stay integers.
"""

from __future__ import annotations

import json
import math
from typing import Any

DEEPEST = 64


def text(value: object, most: int | None = None) -> str:
    """``value`` as text that every database takes, cut to ``most`` characters."""
    found = value if isinstance(value, str) else str(value)
    if "\x00" in found:
        found = found.replace("\x00", "\u2400")
    try:
        found.encode()
    except UnicodeEncodeError:
        # A pair of surrogates that arrived as two escapes is one character; only lone ones are replaced.
        found = found.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return found if most is None else found[:most]


def value(found: Any, depth: int = 0) -> Any:
    """A JSON value with the same meaning that can be stored, indexed and sent as strict JSON."""
    if isinstance(found, str):
        return text(found)
    if found is None or isinstance(found, bool | int):
        return found
    if isinstance(found, float):
        return found if math.isfinite(found) else special(found)
    if depth >= DEEPEST:
        return text(json.dumps(found, ensure_ascii=True, default=str))
    if isinstance(found, dict):
        return {text(key): value(inner, depth + 1) for key, inner in found.items()}
    if isinstance(found, list | tuple):
        return [value(inner, depth + 1) for inner in found]
    return text(found)


def special(number: float) -> str:
    return "NaN" if math.isnan(number) else ("Infinity" if number > 0 else "-Infinity")


def number_of(found: Any) -> float | None:
    """The number that sorts and filters ``found``, or None. Beyond the range of a float it is the infinity of its sign."""
    if isinstance(found, bool):
        return float(found)
    if isinstance(found, int | float):
        try:
            number = float(found)
        except OverflowError:
            number = math.inf if found > 0 else -math.inf
        return None if math.isnan(number) else number
    return None


def leaves(config: dict, most: int, prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """The first ``most`` leaves of ``config`` by dotted path: ``{"model": {"layers": 2}}`` gives ``{"model.layers": 2}``."""
    found: dict[str, Any] = {}
    for key, inner in config.items():
        if len(found) >= most:
            break
        path = f"{prefix}{key}"
        if isinstance(inner, dict) and inner and depth < DEEPEST:
            found.update(leaves(inner, most - len(found), f"{path}.", depth + 1))
        else:
            found[path] = inner
    return found
