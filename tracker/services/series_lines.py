"""Columns to lines: ranks put together as each key states, x put beside every point, runs put together by groups. Nothing is thinned."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tracker.domain import across, axes, coordinates, odd
from tracker.domain import buckets as thinning
from tracker.domain import keys as meanings
from tracker.domain.axes import Axis
from tracker.domain.lineage import INHERITED
from tracker.domain.series_query import REDUCED, Query
from tracker.models import KeyDefinition
from tracker.services import ranks as rank_facts
from tracker.services.series_read import Found
from tracker.services.series_runs import Plan
from tracker.store.reading import Column, WriterInfo

Series = tuple[str, str, int | None]
"""(run, key, branch)."""
Reduction = tuple[str, tuple[str, ...], list[tuple] | None]
AS_IT_IS: Reduction = ("mean", (), None)


@dataclass
class Line:
    """``told`` goes into the answer as it is. ``x`` does not fall; ``more`` runs beside it: the band's min and max, a group's lo, hi, …"""

    run: str | None
    key: str
    told: dict[str, Any]
    x: np.ndarray
    y: np.ndarray
    steps: np.ndarray
    stored: list[tuple[Column, Axis]] = field(default_factory=list)
    """What it is made of."""
    more: dict[str, np.ndarray] = field(default_factory=dict)
    odd: tuple[np.ndarray, np.ndarray] | None = None
    """(x, kind) where they are others than the line's own."""


def lines_of(plan: Plan, found: Found, keys: list[str]) -> list[Line]:
    """In the order of runs and keys, then ranks."""
    query = plan.query
    grouped: dict[Series, list[Column]] = defaultdict(list)
    for column in found.columns:
        grouped[column.run, column.key, column.branch].append(column)
    together = query.ranks in REDUCED or query.groups is not None
    wanted = set(keys)
    shown = {name: mine for name, columns in grouped.items() if name[1] in wanted and (mine := _of_ranks(columns, query.ranks))}
    reductions = _reductions(shown) if together else {}
    along = {name: columns for name, columns in grouped.items() if name[1] == query.x_key}
    x_reductions = _reductions(along) if together else {}
    starts = _starts(found.writers)
    lines = []
    for name, columns in shown.items():
        for part in [columns] if together else [[column] for column in columns]:
            axis = _axis(query, name, None if together else part[0].rank, along, x_reductions, starts)
            lines.append(_line(query, part, axis, together, reductions.get(name, AS_IT_IS)))
    return lines


def _of_ranks(columns: list[Column], ranks: str | tuple[int, ...]) -> list[Column]:
    return [column for column in columns if column.rank in ranks] if isinstance(ranks, tuple) else columns


def _line(query: Query, columns: list[Column], axis: Axis, together: bool, reduction: Reduction) -> Line:
    first = columns[0]
    how, over, groups = reduction
    parts = [winning(column) for column in columns]
    steps, times, values = thinning.reduce_ranks(parts, how, groups) if together else parts[0]
    more = {}
    if query.ranks == "band" and len(parts) > 1:
        more["min"], more["max"] = thinning.band(parts)
    told: dict[str, Any] = {
        "run": first.run,
        "key": first.key,
        "rank": None if together else first.rank,
        "attempts": sorted({attempt for column in columns for attempt, _ in column.attempts}),
    }
    if together:
        told["ranks"] = [column.rank for column in columns]
        if len(columns) > 1:
            told["reduce"] = {"how": how, "over": list(over)}
    if first.branch is not None:
        told["branch"] = first.branch
    elif (forked := _fork_x(columns, axis)) is not None:
        told["fork_x"] = forked
    x = axis(steps, times)
    if query.x_key is not None:
        there = ~np.isnan(x)
        if lost := len(x) - int(there.sum()):
            told["without_x"] = lost
            x, steps, values = x[there], steps[there], values[there]
            more = {name: array[there] for name, array in more.items()}
    if query.x != "step" and len(x) > 1 and not bool((x[1:] >= x[:-1]).all()):
        order = np.argsort(x, kind="stable")  # of equal x by step
        x, steps, values = x[order], steps[order], values[order]
        more = {name: array[order] for name, array in more.items()}
    return Line(first.run, first.key, told, x, values, steps, [(column, axis) for column in columns], more)


def winning(column: Column) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, times and float64 values of the winning points, by rising step."""
    values = column.values if column.values.dtype.kind == "f" else column.values.astype("f8")
    order = column.order
    if order is None:
        return column.steps, column.times, values
    return column.steps[order], column.times[order], values[order]


def _fork_x(columns: list[Column], axis: Axis) -> float | None:
    """Where the last inherited point of a line stands; None where it has none."""
    ends = []
    for column in columns:
        if any(attempt == INHERITED for attempt, _ in column.attempts):
            at = np.flatnonzero(column.attempt == INHERITED)
            x = axis(column.steps[at], column.times[at])
            if len(x := x[~np.isnan(x)]):
                ends.append(float(x.max()))
    return max(ends, default=None)


# -- x ---------------------------------------------------------------------------------------------------------------------------------


def _axis(query: Query, name: Series, rank: int | None, along: dict, reductions: dict, starts: dict[str, int]) -> Axis:
    run, _, branch = name
    if query.x == "step":
        return axes.by_step
    if query.x_key is None:
        return axes.by_clock(starts.get(run, 0) if query.x == "relative" else 0)
    now = _x_points(along.get((run, query.x_key, None), []), rank, reductions.get((run, query.x_key, None), AS_IT_IS))
    if branch is None:
        return axes.by_metric(*now)
    left = _x_points(along.get((run, query.x_key, branch), []), rank, reductions.get((run, query.x_key, branch), AS_IT_IS))
    shared = now[0] < left[0][0] if len(left[0]) else np.ones(len(now[0]), bool)
    return axes.by_metric(np.concatenate([now[0][shared], left[0]]), np.concatenate([now[1][shared], left[1]]))


def _x_points(columns: list[Column], rank: int | None, reduction: Reduction) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values): of the rank itself, else of the lowest that logged it; for ranks that go together, as the key states."""
    if not columns:
        return np.zeros(0, "i8"), np.zeros(0)
    if rank is None:
        steps, _, values = thinning.reduce_ranks([winning(column) for column in columns], reduction[0], reduction[2])
        return steps, values
    own = next((column for column in columns if column.rank == rank), columns[0])
    steps, _, values = winning(own)
    return steps, values


def _starts(writers: dict[str, WriterInfo]) -> dict[str, int]:
    """When each run began: zero of its relative axis."""
    starts: dict[str, int] = {}
    for info in writers.values():
        starts[info.run] = min(info.started_us, starts.get(info.run, info.started_us))
    return starts


def _reductions(grouped: dict[Series, list[Column]]) -> dict[Series, Reduction]:
    """How each (run, key) of several ranks goes together, over which axes, and which ranks that makes one group."""
    several = {name: [column.rank for column in columns] for name, columns in grouped.items() if len(columns) > 1}
    if not several:
        return {}
    definitions: dict[str, list] = defaultdict(list)
    rows = KeyDefinition.objects.filter(run_id__in={run for run, _, _ in several}).order_by("id").values_list("run_id", "pattern", "fields")
    for run, pattern, fields in rows:
        definitions[run].append((pattern, fields))
    found: dict[Series, Reduction] = {}
    for (run, key, branch), ranks in several.items():
        meant = meanings.meaning(key, definitions[run])
        groups = coordinates.groups(ranks, rank_facts.coordinates_of(run), meant.over) if meant.over else None
        found[run, key, branch] = (meant.reduce, meant.over, groups)
    return found


# -- groups of runs ----------------------------------------------------------------------------------------------------------------------


def together(plan: Plan, lines: list[Line], window: tuple[float, float], buckets: int) -> list[Line]:
    """One line for each group and key, in the order of groups and keys. ``window`` and ``buckets`` place the grid where x is no step."""
    groups = plan.query.groups
    assert groups is not None
    by_run: dict[str, dict[str, Line]] = defaultdict(dict)
    for line in lines:
        by_run[line.run or ""][line.key] = line
    keys = list(dict.fromkeys(line.key for line in lines))
    found = []
    for name, members in plan.groups:
        for key in keys:
            own = [by_run[run][key] for run in members if key in by_run.get(run, {})]
            if own and (line := _group(plan.query, own, window, buckets)) is not None:
                line.told = {"group": name, "runs": [each.run for each in own], **line.told}
                found.append(line)
    return found


def _group(query: Query, own: list[Line], window: tuple[float, float], buckets: int) -> Line | None:
    groups = query.groups
    assert groups is not None
    how = groups.how
    odds = [odd.found(line.x, line.y) for line in own]
    if query.x == "step":
        found = across.at_steps([(line.steps, line.y) for line in own], how)
        x, steps = found.x.astype("f8"), found.x
    else:
        inside = [line for line in own if len(line.x) and line.x[-1] >= window[0] and line.x[0] <= window[1]]
        if not inside:
            return None
        lo = max(window[0], min(float(line.x[0]) for line in inside))
        hi = min(window[1], max(float(line.x[-1]) for line in inside))
        found = across.on_grid([(line.x, line.y) for line in own], lo, hi, buckets, how)
        x, steps = found.x, np.zeros(0, "i8")
    more = {"lo": found.lo, "hi": found.hi, "min": found.min, "max": found.max, "members": found.runs}
    if found.spread is not None:
        more["spread"] = found.spread
    told = {
        "key": own[0].key,
        "rank": None,
        "attempts": [],
        "across": {"line": how.line, "band": how.band, "ddof": how.ddof},
    }
    if lost := sum(line.told.get("without_x", 0) for line in own):
        told["without_x"] = lost
    where = tuple(np.concatenate([part[at] for part in odds]) for at in (0, 1))
    stored = [pair for line in own for pair in line.stored]
    return Line(None, own[0].key, told, x, found.y, steps, stored, more, (where[0], where[1]))
