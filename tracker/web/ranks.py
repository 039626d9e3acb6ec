"""The Ranks tab: a table of ranks with what is odd about them, and their stacks."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from tracker.domain.coordinates import PLACES
from tracker.domain.ranks import Row
from tracker.services import ranks, stacks
from tracker.web import run as pages
from tracker.web.page import page

ROWS = 200
MEMBERS = 4
"""Of ranks with equal stacks, so many are shown with all their threads."""
LEVELS = {"error": "s-failed", "warn": "warn", "info": "more"}
COLUMNS = {
    "rank": ("Rank", False),
    "host": ("Host", False),
    "attempt": ("Attempt", True),
    "state": ("State", False),
    "last_step": ("Step", True),
    "behind": ("Behind", True),
    "quiet_seconds": ("Last step", True),
    "step_seconds": ("Step time", True),
    "step_p90": ("90 %", True),
    "late_seconds": ("Late by", True),
    "own_seconds": ("", True),
    "heard_seconds": ("Heard", True),
    "skew_seconds": ("Clock", True),
}
TITLES = {
    "behind": "Steps, and time, behind the first rank",
    "quiet_seconds": "Since its last point",
    "step_seconds": "Median of its recent steps, by its own host's clock",
    "step_p90": "Nine of ten recent steps are quicker",
    "late_seconds": "Median time after the first rank at the same step; between hosts as exact as their clocks",
    "heard_seconds": "Since its sender's last sign of life, by the tracker's clock",
    "skew_seconds": "The tracker's clock less its host's, as its heartbeats tell",
}
ALWAYS = ("rank", "host", "state", "last_step", "step_seconds", "step_p90")


@page
def tab(request: HttpRequest, run_id: str) -> HttpResponse:
    run = pages.find(request, run_id)
    context = pages.head(request, run, "ranks")
    context.update(_table(request, run))
    if not request.htmx or request.htmx.history_restore_request:
        context.update(_dumps(run))
    return pages.answer(request, context)


@page
def dumps(request: HttpRequest, run_id: str) -> HttpResponse:
    """The stacks alone; POST asks for new ones."""
    run = pages.find(request, run_id)
    if request.method == "POST":
        run = stacks.request(user=request.user, run=run)
        if not request.htmx:
            return redirect("run-ranks", run.id)
    return render(request, "run/_stacks.html", {**pages.head(request, run, "ranks"), **_dumps(run)})


def _dumps(run) -> dict:
    found = stacks.latest(run)
    by_rank = {dump.rank: dump for dump in found.dumps}
    groups = [
        {"group": group, "members": [by_rank[rank] for rank in group.ranks[:MEMBERS]], "more": len(group.ranks) - MEMBERS}
        for group in found.groups
    ]
    return {"dumps": found, "groups": groups, "silent": [dump for dump in found.dumps if dump.problem]}


def _table(request: HttpRequest, run) -> dict:
    view = ranks.view(run)
    rows, asked = view.judged.rows, request.GET
    words = asked.get("q", "").lower().split()[:8]
    shown = [row for row in rows if all(word in _text(row) for word in words)]
    sort = asked.get("sort", "")
    axes = view.axes
    mesh = [axis for axis in axes if axis not in PLACES]
    names = [name for name in COLUMNS if name in ALWAYS or _says_something(name, rows)]
    order = sort.lstrip("-")
    if order in names or order in axes:
        shown = _sorted(shown, order, sort.startswith("-"))
    else:
        shown.sort(key=lambda row: (not row.odd, row.rank))
    start = max(0, int(asked["start"])) if asked.get("start", "").isdigit() and len(asked["start"]) < 9 else 0
    columns = [_column(request, name, COLUMNS[name], sort) for name in names]
    if view.own_key:
        columns = [{**one, "title": view.own_key} if one["name"] == "own_seconds" else one for one in columns]
    at = next((n for n, one in enumerate(columns) if one["name"] == "host"), 0)
    telling = [axis for axis in mesh or axes if len({row.coordinates.get(axis) for row in rows}) > 1]
    columns[at:at] = [_column(request, axis, (axis, True), sort) for axis in telling]
    part = shown[start : start + ROWS]
    return {
        "view": view,
        "judged": view.judged,
        "findings": [{"level": one.level, "icon": LEVELS[one.level], "text": one.text, "kind": one.kind} for one in view.judged.findings],
        "columns": columns,
        "rows": [{"row": row, "cells": [(one, _cell(row, one["name"])) for one in columns]} for row in part],
        "q": asked.get("q", ""),
        "sort": sort,
        "count": len(shown),
        "hosts": len({row.host for row in rows}),
        "from": start + 1,
        "to": start + len(part),
        "next": _link(request, start=str(start + ROWS)) if start + ROWS < len(shown) else None,
        "before": _link(request, start=str(max(0, start - ROWS)) if start > ROWS else None) if start else None,
        "poll_url": request.get_full_path(),
        "poll": 0 if not pages.is_polled(run) else 3 if len(rows) <= 128 else 10,
    }


def _text(row: Row) -> str:
    places = " ".join(f"{name}={value}" for name, value in row.coordinates.items())
    return f"rank={row.rank} rank {row.rank} {row.host} {places} {row.state} {' '.join(row.odd)} ".lower()


def _says_something(name: str, rows: list[Row]) -> bool:
    found = {getattr(row, name) for row in rows} - {None}
    if name in ("attempt", "skew_seconds", "late_seconds"):
        return len(found) > 1
    return bool(found) and (name != "behind" or len(rows) > 1)


def _sorted(rows: list[Row], name: str, descending: bool) -> list[Row]:
    """What has no value stands last in both directions."""

    def key(row: Row):
        value = getattr(row, name) if name in COLUMNS else row.coordinates.get(name)
        return (value is None, value if value is not None else 0)

    known = sorted((row for row in rows if not key(row)[0]), key=lambda row: key(row)[1], reverse=descending)
    return known + [row for row in rows if key(row)[0]]


def _column(request: HttpRequest, name: str, told: tuple[str, bool], sort: str) -> dict:
    title, numeric = told
    descending = sort == f"-{name}"
    # Numbers are worth a look from the greatest on.
    first, second = (f"-{name}", name) if numeric else (name, f"-{name}")
    return {
        "name": name,
        "title": title,
        "hint": TITLES.get(name, ""),
        "numeric": numeric,
        "direction": "descending" if descending else "ascending" if sort == name else "none",
        "url": _link(request, sort=second if sort == first else first, start=None),
    }


def _cell(row: Row, name: str):
    return getattr(row, name) if name in COLUMNS else row.coordinates.get(name)


def _link(request: HttpRequest, **changes: str | None) -> str:
    asked = request.GET.copy()
    for name, value in changes.items():
        asked.pop(name, None)
        if value is not None:
            asked[name] = value
    return f"?{asked.urlencode()}"
