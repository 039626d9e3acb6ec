"""Which runs a chart shows, whose history each goes on, and which of them make one group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tracker.domain.lineage import Fork
from tracker.domain.series_query import Groups, Query
from tracker.models import Run, RunValue
from tracker.services import lineage, runs

COLUMNS = {"user": "user__username", "project": "project__slug"}
Name = str | float | int | None


@dataclass(frozen=True)
class Plan:
    """``runs``: those that may be seen, in the order in which they are answered. ``groups``: the members of each, with ``Query.groups``."""

    query: Query
    runs: list[str]
    forks: dict[str, tuple[Fork, ...]]
    groups: list[tuple[Name, list[str]]]


def plan(user, query: Query) -> Plan:
    """Runs that ``user`` may not see are as if not there. Raises FilterMistake, Invalid, NotFound (project)."""
    visible = Run.objects.visible_to(user)
    asked = list(query.runs) if query.which is None else _found(user, query)
    rows = list(visible.filter(id__in=asked).values_list("id", "fork_run", "fork_step")) if asked else []
    there = {row[0] for row in rows}
    chosen = [run for run in asked if run in there]
    return Plan(query, chosen, lineage.forks_of(rows, visible), grouped(query.groups, chosen))


def _found(user, query: Query) -> list[str]:
    which = query.which
    assert which is not None
    page = runs.find(user=user, **which.__dict__)
    return [run.id for run in page.results]


def grouped(groups: Groups | None, chosen: list[str]) -> list[tuple[Name, list[str]]]:
    """In the order of their first run. A run of several tags is in several groups; what has no value is in the group None."""
    if groups is None:
        return []
    if groups.by is None:
        there = set(chosen)
        told = [(name, [run for run in ids if run in there]) for name, ids in groups.named]
        return [(name, members) for name, members in told if members]
    names = _names(groups.by, chosen)
    found: dict[Name, list[str]] = defaultdict(list)
    for run in chosen:
        for name in names.get(run) or (None,):
            found[name].append(run)
    return list(found.items())


def _names(by: str, chosen: list[str]) -> dict[str, list[Name]]:
    """The names of each run's groups."""
    prefix, _, path = by.partition(".")
    if not path and by != "tags":
        rows: Iterable = Run.objects.filter(id__in=chosen).values_list("id", COLUMNS.get(by, by))
        return {run: [value] for run, value in rows if value not in (None, "")}
    kind = {"config": RunValue.Kind.CONFIG, "summary": RunValue.Kind.SUMMARY}.get(prefix, RunValue.Kind.TAG)
    values = RunValue.objects.filter(run__in=chosen, kind=kind.value, **({"path": path} if path else {}))
    found: dict[str, list[Name]] = defaultdict(list)
    for run, own, number, text in values.order_by("path").values_list("run_id", "path", "number", "text"):
        name: Name = own if not path else text if number is None else int(number) if number.is_integer() else number
        if name is not None:
            found[run].append(name)
    return found
