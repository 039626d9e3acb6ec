"""The one sentence of a verdict, and the small words it is made of."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Mapping
from typing import Any

from tracker.domain.compare import Gap, ulps

NOT_RUNNABLE = frozenset(
    [
        "source_missing",
        "source_differs",
        "python_missing",
        "package_missing",
        "environment_failed",
        "data_missing",
        "data_differs",
        "would_overwrite",
        "secret_missing",
    ]
)
"""Failures of a job that say the recipe cannot be played here (docs/formats.md, Failure)."""


def count(number: int, noun: str, plural: str | None = None) -> str:
    """1 point, 1,200 points."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def of(compared: int, logged: int, noun: str = "point") -> str:
    return f"{compared:,} of {count(logged, noun)}"


def two_values(a: int | float, b: int | float) -> tuple[str, str]:
    """Both as short as still tells them apart, at least three digits."""
    if isinstance(a, int) and isinstance(b, int):
        return f"{a:,}", f"{b:,}"
    if isinstance(a, int) != isinstance(b, int) and float(a) == float(b):
        return _typed(a), _typed(b)
    for digits in range(3, 18):
        x, y = number(a, digits), number(b, digits)
        if x != y:
            return x, y
    return number(a, 17), number(b, 17)


def _typed(value: int | float) -> str:
    return f"{value:,} (an integer)" if isinstance(value, int) else repr(value)


def number(value: int | float, digits: int) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    shortest = repr(value)
    text = f"{value:.{digits}g}"
    return shortest if len(shortest) <= len(text) else text


def percent(gap: float) -> str:
    if math.isinf(gap):
        return "no finite gap"
    return f"{gap * 100:.2g} %" if gap >= 1e-6 else f"{gap:.1e}".replace("e-0", "e-")


def change(gap: Gap) -> str:
    """2.31 became 2.32 (1 ULP) | 2.31 was not logged | 2.31 was logged where nothing was expected."""
    if gap.found is None:
        return f"{number(gap.expected, 6)} was not logged" if gap.expected is not None else "nothing was logged"
    if gap.expected is None:
        return f"{number(gap.found, 6)} was logged where nothing was expected"
    if gap.expected == gap.found == 0.0 and isinstance(gap.expected, float) and isinstance(gap.found, float):
        return f"{gap.expected!r} became {gap.found!r}"
    before, after = two_values(gap.expected, gap.found)
    distance = ulps(gap.expected, gap.found)
    if distance is not None and distance[0] <= 9999:
        # A torch loss is a float32, whose neighbours are half a billion float64 apart: the unit must be said.
        return f"{before} became {after} ({distance[0]:,} ULP{' of float32' if distance[1] == 'float32' else ''})"
    relative = gap.relative
    return f"{before} became {after}" + (f" ({percent(relative)})" if relative and math.isfinite(relative) else "")


def place(key: str, rank: int | None) -> str:
    return f"{key}, reduced over ranks" if rank is None else f"{key}, rank {rank}"


def first_line(text: Any, limit: int = 200) -> str:
    line = next((part.strip() for part in str(text or "").splitlines() if part.strip()), "")
    return line if len(line) <= limit else line[: limit - 1] + "…"


def short_digest(digest: Any) -> str:
    algorithm, _, hexes = str(digest).partition(":")
    return f"{algorithm}:{hexes[:12]}…" if len(hexes) > 16 else str(digest)


def exception(error: Mapping[str, Any]) -> str:
    kind, message = error.get("type") or "an error", first_line(error.get("message"))
    return f"{kind}: {message}" if message else str(kind)


def died_of(number_: int) -> str:
    try:
        return f"killed by {signal.Signals(number_).name}"
    except ValueError:
        return f"killed by signal {number_}"


def not_runnable(failure: Mapping[str, Any]) -> str:
    code, missing, message = str(failure.get("code")), str(failure.get("missing") or ""), first_line(failure.get("message"))
    both = f"{short_digest(failure['expected'])} expected, {short_digest(failure.get('found'))} found" if failure.get("expected") else ""
    if code == "environment_failed":
        what = "the environment could not be built" + (f": {message}" if message else "")
    elif code == "source_differs" and both:
        what = f"the restored source differs: {both}"
    elif code == "data_differs" and missing and both:
        what = f"{missing} has changed: {both}"
    elif code in _WHAT and re.fullmatch(_WHAT[code][0], missing):
        what = _WHAT[code][1].format(missing)
    else:
        what = message or missing or code
    return f"Not runnable: {what}"


_WHAT = {
    # code → how the name of a missing thing looks (else the failure's own message is said), and the words around it
    "source_missing": (r"\S*[/.]\S*", "source file {} is missing"),
    "python_missing": (r"\d+(\.\d+)*\S*", "Python {} is not there"),
    "package_missing": (r"\S+", "package {} cannot be had"),
    "data_missing": (r"[^\n]*[/.][^\n]*", "data file {} is missing"),
    "would_overwrite": (r"[^\n]+", "it would write over {}"),
    "secret_missing": (r"\S+", "secret {} is not given"),
}


def listed(names: list[str], most: int = 2) -> str:
    """a | a and b | a, b and 3 more."""
    if len(names) <= most:
        return " and ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most:,} more"
