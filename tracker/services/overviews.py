"""Chart lines of series too long to be read in full, out of the blocks' pyramids (``store/pyramid.py``); the rest is read."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

from tracker.domain import odd
from tracker.domain.series_query import CURRENT, REDUCED, Query
from tracker.services import series_read, series_shape
from tracker.services.series_portions import Portion
from tracker.services.series_read import Asked, Found
from tracker.services.series_runs import Plan
from tracker.store import pyramid


@dataclass
class Overviews:
    """``entries`` of the answer, ready; ``found``: what the other series of the portion are made of."""

    portion: Portion
    entries: list[dict[str, Any]]
    found: Found

    def beside(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """All entries of the portion, as one read would have them: by run, then key."""
        run_at, key_at = ({name: at for at, name in enumerate(names)} for names in (self.portion.asked.runs, self.portion.keys))
        return sorted([*self.entries, *entries], key=lambda entry: (run_at[entry["run"]], key_at[entry["key"]]))


def of(plan: Plan, portion: Portion, lines: int | None) -> Overviews | None:
    """None where all of the portion is to be read: no series is that long, or its lines need their points. ``lines``: as many are expected.

    Lines along anything but steps, smoothed, of several ranks or runs together, and old branches need their points.
    """
    query, asked = plan.query, portion.asked
    if query.x != "step" or query.branch != CURRENT or query.smooth is not None or query.groups is not None:
        return None
    room = series_shape.room_for(query, lines or len(asked.runs) * len(asked.keys))
    if room.points > pyramid.LEAST_POINTS:
        return None
    found, writers = pyramid.look(
        asked.runs, asked.keys, asked.ranks, lo_step=asked.window[0], hi_step=asked.window[1], count=room.buckets, forks=asked.forks
    )
    together = query.ranks in REDUCED
    ranks: dict[tuple[str, str], list[int]] = defaultdict(list)
    for run, key, rank in found:
        ranks[run, key].append(rank)
    told = {name: overview for name, overview in found.items() if not together or len(ranks[name[:2]]) == 1}
    if not told:
        return None
    entries = [_entry(query, *name, together, overview) for name, overview in told.items()]
    rest = [series_read.read(part) for part in _left(asked, {name[:2] for name in told})]
    everybody = dict(writers)
    for each in rest:
        everybody = {**each.writers, **everybody}  # the first look's: what came since is told again the next time
    broken = {name: why for each in rest for name, why in each.broken.items()}
    return Overviews(portion, entries, Found([column for each in rest for column in each.columns], everybody, broken))


def _entry(query: Query, run: str, key: str, rank: int, together: bool, found: pyramid.Overview) -> dict[str, Any]:
    told: dict[str, Any] = {"run": run, "key": key, "rank": None if together else rank, "attempts": list(found.attempts)}
    if together:
        told["ranks"] = [rank]
    arrays = series_shape.arrays_of(found) | odd.marks(*found.odd, found.x)
    return {
        **told, "n": found.n, "nan": found.nan, "inf": found.inf, "drawn": len(found.x), "exact": False,
        **series_shape.chosen(query, arrays, ("x",)),
    }  # fmt: skip


def _left(asked: Asked, answered: set[tuple[str, str]]) -> list[Asked]:
    """Runs that miss the same keys are asked together."""
    runs_of: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for run in asked.runs:
        if keys := tuple(key for key in asked.keys if (run, key) not in answered):
            runs_of[keys].append(run)
    return [replace(asked, runs=runs, keys=list(keys)) for keys, runs in runs_of.items()]
