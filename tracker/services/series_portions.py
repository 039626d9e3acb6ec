"""A question of very many points is read in portions, each drawn before the next is read: memory stays bounded, whatever was asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from django.db.models import Count, Sum

from tracker.models import MetricSummary
from tracker.services.series_read import Asked
from tracker.services.series_runs import Plan

FEW = 64
"""So many series at most are read at once without looking how long they are."""
POINTS_AT_ONCE = 8_000_000
_NAMES_AT_ONCE = 900


@dataclass(frozen=True)
class Portion:
    asked: Asked
    keys: list[str]
    """Those that are drawn; x alone is read for every portion."""


@dataclass(frozen=True)
class Portions:
    """``lines``: how many are to be expected in all; None where one portion has everything and will tell."""

    all: list[Portion]
    lines: int | None


def portions(plan: Plan, asked: Asked, keys: list[str]) -> Portions:
    """By runs, and within a run of very many points by keys; where runs make groups by keys alone, since a group goes together."""
    whole = Portion(asked, keys)
    if len(plan.runs) * len(keys) <= FEW:
        return Portions([whole], None)
    sizes, lines = _sizes(plan, keys)
    if sum(map(sum, (mine.values() for mine in sizes.values()))) <= POINTS_AT_ONCE:
        return Portions([whole], None)
    if plan.query.groups is not None:
        lines = len(plan.groups) * len(keys)
        of_key = {key: sum(mine.get(key, 0) for mine in sizes.values()) for key in keys}
        return Portions([_part(plan, asked, asked.runs, some) for some in _cut(of_key)], lines)
    found = []
    of_run = {run: sum(sizes.get(run, {}).values()) for run in asked.runs}
    for runs in _cut(of_run):
        if len(runs) == 1 and of_run[runs[0]] > POINTS_AT_ONCE:
            mine = {key: sizes[runs[0]].get(key, 0) for key in keys}
            found += [_part(plan, asked, runs, some) for some in _cut(mine)]
        else:
            found.append(_part(plan, asked, runs, keys))
    return Portions(found, lines)


def _part(plan: Plan, asked: Asked, runs: list[str], keys: list[str]) -> Portion:
    x_key = plan.query.x_key
    names = keys if x_key is None or x_key in keys else [*keys, x_key]
    return Portion(replace(asked, runs=runs, keys=names), keys)


def _cut(sizes: dict[str, int]) -> Iterator[list[str]]:
    gathered: list[str] = []
    points = 0
    for name, size in sizes.items():
        if gathered and points + size > POINTS_AT_ONCE:
            yield gathered
            gathered, points = [], 0
        gathered.append(name)
        points += size
    if gathered:
        yield gathered


def _sizes(plan: Plan, keys: list[str]) -> tuple[dict[str, dict[str, int]], int]:
    """Points by run and key, as far as they are summed up, and the lines that they make."""
    rows = MetricSummary.objects.filter(run_id__in=plan.runs)
    if len(keys) <= _NAMES_AT_ONCE:
        rows = rows.filter(key__in=keys)
    wanted = set(keys)
    by_rank = plan.query.ranks == "all" or isinstance(plan.query.ranks, tuple)
    found: dict[str, dict[str, int]] = {}
    lines = 0
    for run, key, points, ranks in rows.order_by().values_list("run_id", "key").annotate(Sum("count"), Count("rank")):
        if key in wanted:
            found.setdefault(run, {})[key] = points
            lines += (len(plan.query.ranks) if isinstance(plan.query.ranks, tuple) else ranks) if by_rank else 1
    return found, lines
