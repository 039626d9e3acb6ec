"""Fields of a question as a program sends it, each checked by one small function: a wrong one is named, with what is allowed.

The chart API and the exports take the same fields; both read them here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from tracker.domain.errors import Invalid

KEY_LENGTH = 500
Query = Mapping[str, Any]


def wrong(name: str, why: str, message: str) -> Invalid:
    """The error of a field: ``why`` in a word, for programs; ``message`` for people."""
    error = Invalid(message)
    error.fields = {name: why}
    return error


def known(query: Any, names: Collection[str], what: str = "The query") -> Query:
    """``query`` if it is an object that has none but these fields. Raises Invalid with the first that is unknown."""
    if not isinstance(query, dict):
        raise Invalid(f"{what} is a JSON object with {', '.join(list(names)[:2])} and more (docs/series.md).")
    for name in query:
        if name not in names:
            shown = name if len(name) <= 50 else name[:50] + "…"
            raise wrong(shown, "unknown field", f"{what} has no field {shown!r}; it may have {', '.join(names)}.")
    return query


def texts(query: Query, name: str, most: int, longest: int = KEY_LENGTH) -> tuple[str, ...]:
    """A list of texts, each once."""
    found = query.get(name)
    if not isinstance(found, list) or not all(isinstance(item, str) and "\0" not in item and len(item) <= longest for item in found):
        raise wrong(name, "malformed", f"{name} is a list of texts of at most {longest} characters.")
    if len(found) > most:
        raise wrong(name, "too many", f"{name} has more than {most} entries: ask in portions.")
    return tuple(dict.fromkeys(found))


def text(query: Query, name: str, longest: int = 4000) -> str | None:
    found = query.get(name)
    if found is not None and (not isinstance(found, str) or "\0" in found or len(found) > longest):
        raise wrong(name, "malformed", f"{name} is a text of at most {longest} characters.")
    return found


def choice(query: Query, name: str, allowed: Collection[str], default: str) -> str:
    found = query.get(name)
    if found is None:
        return default
    if not isinstance(found, str) or found not in allowed:
        raise wrong(name, "unknown", f"{name} is one of {', '.join(allowed)}.")
    return found


def number(query: Query, name: str) -> float | None:
    """A number or None; infinities are none at all: leave the field out."""
    found = query.get(name)
    if found is None:
        return None
    if not isinstance(found, int | float) or isinstance(found, bool) or not math.isfinite(_float(found)):
        raise wrong(name, "malformed", f"{name} is a finite number.")
    return found if abs(found) < 2**63 else float(found)


def whole(query: Query, name: str, low: int, high: int, default: int | None = None) -> int | None:
    found = query.get(name)
    if found is None:
        return default
    if not isinstance(found, int) or isinstance(found, bool) or not low <= found <= high:
        raise wrong(name, "out of range", f"{name} is a whole number from {low} to {high}.")
    return found


def flag(query: Query, name: str) -> bool | None:
    found = query.get(name)
    if found is not None and not isinstance(found, bool):
        raise wrong(name, "malformed", f"{name} is true, false or null.")
    return found


def rank_list(found: Any) -> tuple[int, ...] | None:
    """``found`` as ranks, or None if it is no list of ranks."""
    if isinstance(found, list) and len(found) <= 10_000 and all(isinstance(r, int) and not isinstance(r, bool) for r in found):
        return tuple(dict.fromkeys(found)) if all(0 <= r < 2**31 for r in found) else None
    return None


def branch(query: Query) -> str | int:
    """What the store calls the branch that was asked for: "current", "all", or the number of an attempt. Raises Invalid."""
    return branch_of(query.get("branch"), query.get("attempt"))


def branch_of(branch: Any, attempt: Any) -> str | int:
    if attempt is not None:
        if not isinstance(attempt, int) or isinstance(attempt, bool) or not 1 <= attempt < 2**31:
            raise Invalid("attempt is the number of an attempt, from 1.", attempt="malformed")
        if branch is not None:
            raise Invalid("attempt and branch exclude each other.", attempt="with branch")
        return attempt
    if not (branch is None or isinstance(branch, str)) or branch not in (None, "current", "all"):
        raise Invalid('branch is "current" or "all".', branch="unknown")
    return branch or "current"


def _float(found: float) -> float:
    try:
        return float(found)
    except OverflowError:
        return math.inf
