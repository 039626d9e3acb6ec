"""Series for charts: many keys of many runs in one answer, exact where the points fit, min/max/mean of buckets where they do not.

In steps: what is asked (domain/series_query) → which runs and keys (series_runs, series_keys) → the store (series_read) → lines
(series_lines) → the answer (series_shape). Where the next poll goes on: series_cursor.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracker.domain import series_answer, series_query
from tracker.domain.asked import branch_of
from tracker.domain.errors import Invalid
from tracker.domain.series_query import MOST_SERIES, Query, parse
from tracker.models import Run
from tracker.services import (
    lineage_clock,
    overviews,
    sealed,
    series_cursor,
    series_lines,
    series_portions,
    series_read,
    series_runs,
    series_shape,
)
from tracker.services.series_keys import is_pattern, keys_of_runs
from tracker.services.series_portions import Portion
from tracker.services.series_read import Found
from tracker.services.series_runs import Plan
from tracker.store.reading import WriterInfo

MOST_SECONDS = 60
"""Of reading for one answer: who asks for ten thousand million points gets words, and the server its thread back."""
MOST_SEALED = 100
"""Of more runs it is not looked up whether their answer may be kept for good."""


def answer(*, user, query: dict[str, Any], as_json: bool = False) -> bytes | dict[str, Any]:
    """The series that ``query`` (docs/series.md) asks for, of those runs that ``user`` may see; others are as if not there.

    Raises Invalid with the field that is wrong; FilterMistake, NotFound (project).
    """
    return ask(user=user, query=query).answer(as_json=as_json)


def ask(*, user, query: Any) -> Question:
    """A question understood and planned, of which nothing is read yet."""
    asked = parse(query)
    return Question(series_runs.plan(user, asked))


@dataclass(frozen=True)
class Question:
    plan: Plan

    @functools.cached_property
    def keys(self) -> list[str]:
        return keys_of_runs(self.plan.runs, self.plan.query.keys)

    @functools.cached_property
    def shifts(self) -> Mapping[str, Mapping[str, int]]:
        is_relative = self.plan.query.x == "relative" and self.plan.forks
        return lineage_clock.shifts(self.plan.runs, self.plan.forks) if is_relative else {}

    @functools.cached_property
    def tag(self) -> str:
        """Differs whenever the answer would; made without reading a point."""
        return series_cursor.tag(self.plan, self.keys, self.shifts)

    @functools.cached_property
    def is_lasting(self) -> bool:
        """Whether the answer stays as it is for good, as far as anybody can know: runs by id, all of them sealed, no pattern."""
        query = self.plan.query
        if query.which is not None or query.since is not None or any(map(is_pattern, query.keys)) or len(self.plan.runs) > MOST_SEALED:
            return False
        names = series_read.reading.with_ancestors(self.plan.runs, self.plan.forks)
        if len(self.plan.runs) < len(query.runs) or not names:
            return False
        return all(sealed.is_sealed(run) for run in Run.objects.filter(id__in=names).defer("config", "summary", "notes"))

    def answer(self, *, as_json: bool = False) -> bytes | dict[str, Any]:
        entries, fields = _answer(self)
        return series_answer.as_json(entries, **fields) if as_json else series_answer.encode(entries, **fields)


def _answer(question: Question) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    plan = question.plan
    query = plan.query
    fields = _told(plan)
    before = None
    if query.since is not None:
        before = series_cursor.read(query.since)
        if series_cursor.nothing_came(plan, before):
            return [], {"cursor": query.since, **fields}
    asked = series_read.asked_of(plan, question.keys, question.shifts)
    portions = series_portions.portions(plan, asked, question.keys)
    entries: list[dict[str, Any]] = []
    writers: dict[str, WriterInfo] = {}
    told: dict[str, int] = {}
    until = time.monotonic() + MOST_SECONDS
    for number, portion in enumerate(portions.all):
        if number and time.monotonic() > until:
            words = f"Only {number} of {len(portions.all)} portions were read in {MOST_SECONDS} s"
            raise Invalid(f"{words}: ask for fewer runs or keys, or for a window (from, to) along steps.")
        long = overviews.of(plan, portion, portions.lines) if before is None else None  # told without their points
        if long is not None:
            found = long.found
        else:
            found = series_read.read(portion.asked) if before is None else series_read.read_tail(plan, portion.asked, before)
        if before is not None and not before.is_of(series_cursor.histories_of(plan, found.writers), portion.asked.runs):
            # An attempt went back, or an ancestor came or went: what the client has is no longer the history.
            return [], {"cursor": query.since, **fields, "reset": True}
        drawn, told = _entries(plan, portion, found, portions.lines)
        entries += drawn if long is None else long.beside(drawn)
        writers = {**found.writers, **writers}  # the first look's: what came since is told again the next time
        if len(entries) > MOST_SERIES:
            raise Invalid(
                f"This asks for more than {MOST_SERIES} series, which is the most that are answered: name fewer runs, keys or ranks."
            )
    histories = series_cursor.histories_of(plan, writers)
    for name in ("n", "drawn"):
        told[name] = sum(entry.get(name, 0) for entry in entries)
    return entries, {"cursor": series_cursor.of(plan, writers, histories).text(), **fields, **told}


def _told(plan: Plan) -> dict[str, Any]:
    """What a client could not know: which runs a question found."""
    x: Any = plan.query.x if plan.query.x_key is None else {"metric": plan.query.x_key}
    return {"x": x, "runs": plan.runs} if plan.query.which is not None else {"x": x}


def _entries(plan: Plan, portion: Portion, found: Found, expected: int | None) -> tuple[list[dict[str, Any]], dict[str, int]]:
    query = plan.query
    lines = series_lines.lines_of(plan, found, portion.keys)
    groups = len(plan.groups) * len({line.key for line in lines})
    room = series_shape.room_for(query, max(expected or 0, len(lines) if query.groups is None else groups))
    if query.groups is not None:
        window = (-math.inf if query.lo is None else query.lo, math.inf if query.hi is None else query.hi)
        lines = series_lines.together(plan, lines, window, room.buckets)
    if len(lines) > MOST_SERIES:
        raise Invalid(f"This asks for {len(lines)} series, at most {MOST_SERIES} are answered: name fewer runs, keys or ranks.")
    entries = []
    for line in lines:
        lowest = None
        if found.lowest is not None:
            names = [line.run] if line.run is not None else line.told["runs"]
            lows = [found.lowest[run, line.key] for run in names if (run, line.key) in found.lowest]
            if not lows:
                continue
            lowest = min(lows)
        if (entry := series_shape.entry(query, line, room, lowest)) is not None:
            entries.append(entry)
    return entries + _broken(query, portion.keys, found), {"buckets": room.buckets, "points": room.points}


def _broken(query: Query, keys: list[str], found: Found) -> list[dict[str, Any]]:
    """In the place of a series that cannot be read: why. Without its x no line of a run can be drawn."""
    whys: dict[tuple[str, str], str] = {}
    for (run, key), why in found.broken.items():
        for name in keys if key == query.x_key else [key]:
            whys.setdefault((run, name), why)
    return [{"run": run, "key": key, "rank": None, "error": why} for (run, key), why in whys.items()]


__all__ = ["Query", "Question", "answer", "ask", "branch_of", "keys_of_runs", "parse", "series_query"]
