"""What a chart reads from the store: whole columns, or what must be drawn anew; a block that cannot be read costs its own series alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tracker.domain.lineage import Fork
from tracker.domain.series_query import Query
from tracker.services.series_cursor import Cursor
from tracker.services.series_runs import Plan
from tracker.store import reading
from tracker.store.blobs import MissingObject
from tracker.store.blocks import DamagedBlock
from tracker.store.reading import Column, WriterInfo

Name = tuple[str, str]
"""(run, key)."""


@dataclass(frozen=True)
class Asked:
    """A question as the store is asked, whole or in part."""

    runs: list[str]
    keys: list[str]
    ranks: tuple[int, ...] | None
    window: tuple[int, int]
    forks: dict[str, tuple[Fork, ...]]
    branch: str | int
    shifts: Mapping[str, Mapping[str, int]]

    def columns(self, since: dict[str, int] | None = None) -> tuple[list[Column], dict[str, WriterInfo]]:
        return reading.read(
            self.runs, self.keys, self.ranks, lo_step=self.window[0], hi_step=self.window[1], since=since, forks=self.forks,
            branch=self.branch, shifts=self.shifts,
        )  # fmt: skip


@dataclass
class Found:
    """``broken``: why a series cannot be read. ``lowest``, in a live tail: of each series with news, from which step on it is told."""

    columns: list[Column]
    writers: dict[str, WriterInfo]
    broken: dict[Name, str]
    lowest: dict[Name, int] | None = None


def asked_of(plan: Plan, keys: list[str], shifts: Mapping[str, Mapping[str, int]]) -> Asked:
    query = plan.query
    names = keys if query.x_key is None else list(dict.fromkeys([*keys, query.x_key]))
    # A line along another metric needs that metric of any rank.
    ranks = query.ranks if isinstance(query.ranks, tuple) and query.x_key is None else None
    return Asked(plan.runs, names, ranks, _steps_to_read(query), plan.forks, query.branch, shifts)


def window_of(query: Query) -> tuple[int, int]:
    """The steps that are shown, as far as steps alone decide it."""
    if query.x != "step":
        return reading.LO, reading.HI
    lo = reading.LO if query.lo is None else min(max(math.ceil(query.lo), reading.LO), reading.HI)
    hi = reading.HI if query.hi is None else max(min(math.floor(query.hi), reading.HI), reading.LO)
    return lo, hi


def _steps_to_read(query: Query) -> tuple[int, int]:
    """Smoothing goes over what lies before the window too, so that a zoom shows the same line; and behind it, where it looks ahead."""
    lo, hi = window_of(query)
    if query.smooth is not None:
        return reading.LO, reading.HI if query.smooth.looks_ahead else hi
    return lo, hi


def read(asked: Asked, since: dict[str, int] | None = None) -> Found:
    """All of it. Where a block is damaged or gone, again in halves, until the series that it spoils is alone."""
    try:
        return Found(*asked.columns(since), {})
    except (DamagedBlock, MissingObject) as problem:
        if len(asked.runs) == 1 and len(asked.keys) == 1:
            writers = reading.writers_of(reading.with_ancestors(asked.runs, asked.forks))
            return Found([], writers, {(asked.runs[0], asked.keys[0]): _words(problem)})
    part = "runs" if len(asked.runs) > 1 else "keys"
    names = getattr(asked, part)
    middle = len(names) // 2
    first, second = (read(replace(asked, **{part: some}), since) for some in (names[:middle], names[middle:]))
    return Found(first.columns + second.columns, {**second.writers, **first.writers}, {**first.broken, **second.broken})


def _words(problem: Exception) -> str:
    why = str(problem) if isinstance(problem, DamagedBlock) else "its object is not in the store"
    return f"A block of this series cannot be read: {why}. The other series are not touched by it; restore the store from a backup."


def read_tail(plan: Plan, asked: Asked, before: Cursor) -> Found:
    """What a client that has all up to ``before`` must draw anew: of each series with news, all from its lowest step on."""
    writers = reading.writers_of(reading.with_ancestors(asked.runs, asked.forks))
    news = read(asked, before.since(writers))
    lowest: dict[Name, int] = {}
    for column in news.columns:
        name, lo = (column.run, column.key), int(column.steps.min())
        lowest[name] = min(lo, lowest.get(name, lo))
    for name in news.broken:
        lowest[name] = reading.LO
    query = plan.query
    if query.comes_whole:
        lowest = dict.fromkeys(_together(plan, asked, lowest), reading.LO)
    if not lowest:
        return Found([], news.writers, {}, {})
    lo = asked.window[0] if query.smooth is not None else max(asked.window[0], min(lowest.values()))
    names = {key for _, key in lowest}
    if query.x_key is not None:
        names.add(query.x_key)
    found = read(
        replace(
            asked,
            runs=[run for run in asked.runs if any(run == r for r, _ in lowest)],
            keys=[key for key in asked.keys if key in names],
            window=(lo, asked.window[1]),
        )
    )
    # The first look's writers: what came between the two looks is told again the next time.
    return Found(found.columns, news.writers, found.broken, lowest)


def _together(plan: Plan, asked: Asked, lowest: Mapping[Name, Any]) -> list[Name]:
    """All series whose line changes with these: those along a metric that has news, and those of one group."""
    changed = dict.fromkeys(lowest)
    x_key = plan.query.x_key
    if x_key is not None:
        changed.update(dict.fromkeys((run, key) for run, key in lowest if key == x_key for key in asked.keys))
    of_run: dict[str, list[list[str]]] = {}
    for _, members in plan.groups:
        for run in members:
            of_run.setdefault(run, []).append(members)
    for run, key in list(changed):
        changed.update(dict.fromkeys((other, key) for members in of_run.get(run, ()) for other in members))
    return list(changed)
