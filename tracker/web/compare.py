"""Many runs side by side: curves, configs, summaries, and what differs between their recipes."""

from __future__ import annotations

import json
import math
import zlib

from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse

from tracker.domain import facts, keys
from tracker.domain.lifecycle import RunState
from tracker.models import Attempt, KeyDefinition, MetricSummary, Run
from tracker.web import format, media
from tracker.web import run as runs_page
from tracker.web.page import page, show
from tracker.web.summaries import last_values
from tracker.web.trees import flat

MOST_RUNS = 50
MOST_KEYS = 400
COLOURS = 20
TABS = (("charts", "Charts"), ("config", "Config"), ("summary", "Summary"), ("media", "Media"), ("facts", "Environment, code, data"))


def chosen(request: HttpRequest) -> list[Run]:
    """The runs named in the URL, in its order; those one may not see are left out, as if they were not there."""
    ids = [part for text in [*request.GET.getlist("runs"), *request.GET.getlist("run")] for part in text.split(",") if part]
    ids = list(dict.fromkeys(ids))[:MOST_RUNS]
    found = {run.id: run for run in Run.objects.visible_to(request.user).filter(id__in=ids).select_related("project", "user")}
    return [found[one] for one in ids if one in found]


def colours(ids: list[str]) -> dict[str, int]:
    """A colour by the run's id, the same on every page where it fits; who comes later takes the next free one."""
    taken: dict[str, int] = {}
    for one in ids:
        start = zlib.crc32(one.encode()) % (COLOURS // 2)
        tries = [*range(start, start + 10)]
        solid = [number % 10 for number in tries]
        order = [*solid, *[number + 10 for number in solid]]
        free = [number for number in order if number not in taken.values()]
        taken[one] = (free or order)[0]
    return taken


def link(request: HttpRequest, **changes) -> str:
    query = request.GET.copy()
    for name, value in changes.items():
        if value is None:
            query.pop(name, None)
        else:
            query[name] = value
    return f"?{query.urlencode(safe=',')}"


@page
def compare(request: HttpRequest) -> HttpResponse:
    if request.GET.getlist("run"):
        return redirect(f"{request.path}?runs={','.join(run.id for run in chosen(request))}")
    runs = chosen(request)
    context: dict = {"title": "Compare", "path": [{"name": "Compare"}], "runs": runs}
    if not runs:
        recent = Run.objects.visible_to(request.user).filter(archived_at=None).select_related("project", "user")
        context["recent"] = list(recent.order_by("-created_at", "id")[:30])
        return show(request, "compare", "_charts", context)
    tab = request.GET.get("tab") if request.GET.get("tab") in dict(TABS) else "charts"
    palette = colours([run.id for run in runs])
    for run in runs:
        run.colour = palette[run.id]
        run.swatch = f"k{run.colour % 10}" + (" dashed" if run.colour >= 10 else "")
        run.without = link(request, runs=",".join(other.id for other in runs if other is not run))
    base = next((run for run in runs if run.id == request.GET.get("base")), runs[0])
    slugs = {run.project.slug for run in runs}
    if len(slugs) == 1:
        slug = slugs.pop()
        context["path"] = [{"name": "Projects", "url": "/"}, {"name": slug, "url": reverse("project", args=[slug])}, {"name": "Compare"}]
    context.update(
        title=f"Compare {len(runs)} runs",
        tab=tab,
        tabs=[{"name": name, "url": link(request, tab=key if key != "charts" else None), "current": key == tab} for key, name in TABS],
        base=base,
        only=request.GET.get("all") != "1",
        only_link=link(request, all="1" if request.GET.get("all") != "1" else None),
        live=any(not RunState(run.state).is_terminal for run in runs),
        poll_url=request.get_full_path(),
    )
    for run in runs:
        run.as_base = link(request, base=run.id)
    {"charts": _charts, "config": _config, "summary": _summary, "media": _media, "facts": _facts}[tab](context, runs, base)
    return show(request, "compare", f"_{tab}", context)


def _charts(context: dict, runs: list[Run], base: Run) -> None:
    summaries = MetricSummary.objects.filter(run__in=runs)
    own = list(
        summaries.exclude(key__startswith=runs_page.SYSTEM).values_list("key", flat=True).distinct().order_by("key")[: MOST_KEYS + 1]
    )
    system = list(summaries.filter(key__startswith=runs_page.SYSTEM).values_list("key", flat=True).distinct().order_by("key")[:100])
    sections = runs_page.sections(own[:MOST_KEYS])
    if system:
        sections.append({"name": "system", "keys": system, "open": False})
    data = [{"id": run.id, "name": run.name, "colour": run.colour} for run in runs]
    ranks = summaries.aggregate(ranks=Count("rank", distinct=True))["ranks"] or 1
    context["old_branches"] = Attempt.objects.filter(run__in=[run for run in runs if run.is_stitched], rewound_to__isnull=False).exists()
    context.update(sections=sections, more=len(own) > MOST_KEYS, most=MOST_KEYS, ranks=ranks, chart_runs_json=json.dumps(data))


def _media(context: dict, runs: list[Run], base: Run) -> None:
    context.update(media.cards_of(runs))


def _table(context: dict, rows: list[dict]) -> None:
    differing = [row for row in rows if row["differs"]]
    context.update(
        rows=differing if context["only"] and len(context["runs"]) > 1 else rows, hidden=len(rows) - len(differing), total=len(rows)
    )


def _same(a, b) -> bool:
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return a == b and isinstance(a, bool) == isinstance(b, bool)


MISSING = object()


def _cells(found: list, base_value) -> list[dict]:
    return [{"value": None if one is MISSING else one, "absent": one is MISSING, "differs": not _same(one, base_value)} for one in found]


def _config(context: dict, runs: list[Run], base: Run) -> None:
    leaves = {run.id: flat(run.config or {}) for run in runs}
    names = sorted({name for found in leaves.values() for name in found if name})
    rows = []
    for name in names[:2000]:
        cells = _cells([leaves[run.id].get(name, MISSING) for run in runs], leaves[base.id].get(name, MISSING))
        rows.append({"name": name, "cells": cells, "differs": any(cell["differs"] for cell in cells)})
    _table(context, rows)


def _summary(context: dict, runs: list[Run], base: Run) -> None:
    table = last_values([run.id for run in runs])
    for run in runs:
        for name, value in (run.summary or {}).items():
            table.setdefault(name, {}).setdefault(run.id, value)
    definitions = list(KeyDefinition.objects.filter(run__in=runs).order_by("id").values_list("pattern", "fields"))
    rows = []
    for name in sorted(table, key=lambda key: (key.startswith(runs_page.SYSTEM), key)):
        found = table[name]
        reference = found.get(base.id)
        goal = keys.meaning(name, definitions).goal
        cells = _cells([found.get(run.id, MISSING) for run in runs], found.get(base.id, MISSING))
        for cell in cells:
            cell["delta"], cell["tone"] = _delta(cell["value"], reference, goal)
        best = _best([cell["value"] for cell in cells], goal)
        for cell in cells:
            cell["best"] = best is not None and cell["value"] == best and len(runs) > 1
        rows.append(
            {"name": name, "cells": cells, "goal": goal, "unit": format.unit(name), "differs": any(cell["differs"] for cell in cells)}
        )
    _table(context, rows)


def _finite(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _delta(value, reference, goal: str | None):
    if not _finite(value) or not _finite(reference) or value == reference:
        return None, ""
    delta = value - reference
    tone = "" if goal is None else "better" if (delta < 0) == (goal == "min") else "worse"
    return delta, tone


def _best(values: list, goal: str | None):
    finite = [value for value in values if _finite(value)]
    if goal is None or len(finite) < 2:
        return None
    return min(finite) if goal == "min" else max(finite)


def _facts(context: dict, runs: list[Run], base: Run) -> None:
    """What differs between the recipes: those that compute first."""
    recipes: dict[str, dict] = {}
    for attempt in Attempt.objects.filter(run__in=runs).order_by("number"):
        if attempt.recipe:
            recipes[attempt.run_id] = attempt.recipe
    found = {run.id: facts.facts(recipes.get(run.id, {})) for run in runs}
    for run in runs:
        source = recipes.get(run.id, {}).get("source") or {}
        if source.get("tree"):
            found[run.id]["source.tree"] = source["tree"]
        if commit := (source.get("git") or {}).get("commit"):
            found[run.id]["source.git.commit"] = commit
        for item in (recipes.get(run.id, {}).get("data") or {}).get("inputs") or []:
            found[run.id][f"data.{item.get('in_root') or item.get('path')}"] = item.get("digest") or item.get("strength")
    names = sorted({name for one in found.values() for name in one}, key=lambda name: (not facts.is_numeric(name), name))
    rows = []
    for name in names[:4000]:
        cells = _cells([found[run.id].get(name, MISSING) for run in runs], found[base.id].get(name, MISSING))
        rows.append({"name": name, "cells": cells, "differs": any(c["differs"] for c in cells), "numeric": facts.is_numeric(name)})
    _table(context, rows)
    context["no_recipe"] = [run for run in runs if run.id not in recipes]
