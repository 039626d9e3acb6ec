"""How ranks keep pace, in small arrays: the last points of one key that all ranks log. Times are those of each rank's own host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_NONE = np.zeros(0, "i8")


@dataclass
class Rank:
    """What is known of one rank. ``steps`` rise strictly, ``times`` (µs, its host's clock) and ``values`` (seconds it logged itself,
    of a key of kind time) lie beside them."""

    rank: int
    host: str = ""
    attempt: int = 1
    coordinates: dict[str, int] = field(default_factory=dict)
    steps: np.ndarray = field(default_factory=lambda: _NONE)
    times: np.ndarray = field(default_factory=lambda: _NONE)
    values: np.ndarray | None = None
    last_step: int | None = None
    heard_seconds: float | None = None
    ended: str | None = None
    skew_seconds: float | None = None


@dataclass
class Row:
    """One line of the table. Seconds; None where nothing can be said."""

    rank: int
    host: str
    attempt: int
    coordinates: dict[str, int]
    state: str
    last_step: int | None
    behind: int | None
    behind_seconds: float | None
    quiet_seconds: float | None
    heard_seconds: float | None
    step_seconds: float | None
    step_p90: float | None
    late_seconds: float | None
    own_seconds: float | None
    skew_seconds: float | None
    odd: list[str] = field(default_factory=list)


@dataclass
class Finding:
    """``level`` is "error", "warn" or "info"; ``text`` a sentence."""

    kind: str
    level: str
    ranks: list[int]
    text: str


def grid(ranks: Sequence[Rank], most: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The last steps that any rank has, and each rank's times (seconds) and values at them; NaN where it has none."""
    there = [one.steps for one in ranks if len(one.steps)]
    steps = np.unique(np.concatenate(there))[-most:] if there else _NONE
    times, values = np.full((len(ranks), len(steps)), np.nan), np.full((len(ranks), len(steps)), np.nan)
    zero = min((int(one.times[0]) for one in ranks if len(one.times)), default=0)  # so that microseconds survive in a float
    for at, one in enumerate(ranks):
        keep = one.steps >= steps[0] if len(steps) else _NONE
        where = np.searchsorted(steps, one.steps[keep]) if len(steps) else _NONE
        times[at, where] = (one.times[keep] - zero) / 1e6 if len(steps) else 0
        if one.values is not None and len(steps):
            values[at, where] = one.values[keep]
    return steps, times, values


def gaps(steps: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Seconds a step, between a rank's neighbouring points; in the place of the later one."""
    gaps = np.full(times.shape, np.nan)
    for at in range(len(times)):
        there = np.flatnonzero(~np.isnan(times[at]))
        if len(there) > 1:
            gaps[at, there[1:]] = np.diff(times[at, there]) / np.diff(steps[there])
    return gaps


def each(how: Any, rows: np.ndarray) -> list[float | None]:
    if not rows.shape[1]:
        return [None] * len(rows)
    return [None if np.isnan(found) else float(found) for found in how(rows, axis=1)]


def median(found: Sequence[float | None]) -> float | None:
    known = [value for value in found if value is not None]
    return float(np.median(known)) if known else None


def behind_seconds(steps: np.ndarray, times: np.ndarray, last: int | None, front: int | None, pace: float | None) -> float | None:
    """How long ago the first rank had done what this one has done last, when the first reached the front."""
    if last is None or front is None:
        return None
    if last >= front:
        return 0.0
    at = int(np.searchsorted(steps, last))
    if at < len(steps) and steps[at] == last:
        firsts = np.nanmin(times[:, [at, len(steps) - 1]], axis=0)
        return max(0.0, float(firsts[1] - firsts[0]))
    return None if pace is None else (front - last) * pace


def quiet(one: Rank, now_us: int) -> float | None:
    """Since its last point, by the server's clock; the skew of the host's is taken out where it is known."""
    if not len(one.times):
        return None
    return max(0.0, (now_us - int(one.times[-1])) / 1e6 - (one.skew_seconds or 0.0))
