"""One run: its tabs, and the small things done to it."""

from __future__ import annotations

import json

from django.contrib import messages
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_POST

from tracker.domain import keys
from tracker.domain.lifecycle import RunState
from tracker.models import KeyDefinition, MetricSummary, Run
from tracker.services import energy, projects, summaries
from tracker.services import preflight as preflights
from tracker.services import runs as service
from tracker.store import reading
from tracker.web import lineage, shell_words
from tracker.web.columns import first_look
from tracker.web.page import page
from tracker.web.summaries import metric_rows
from tracker.web.trees import config_tree

TABS = (
    ("overview", "Overview"),
    ("charts", "Charts"),
    ("system", "System"),
    ("ranks", "Ranks"),
    ("logs", "Logs"),
    ("media", "Media"),
    ("code", "Code"),
    ("environment", "Environment"),
    ("reproductions", "Reproductions"),
)
MOST_PANELS = 2000
OPEN_PANELS = 60
FEW_PANELS = 12
SYSTEM = "system/"


def find(request: HttpRequest, run_id: str) -> Run:
    return get_object_or_404(Run.objects.visible_to(request.user).select_related("project", "user", "reproduction"), id=run_id)


def just_ended(run: Run) -> bool:
    """Its last values and documents may still be on their way; pages look on for a while."""
    return run.finished_at is not None and (timezone.now() - run.finished_at).total_seconds() < 30


def is_polled(run: Run) -> int:
    """Seconds between two looks of an open page; 0: nothing will change."""
    state = RunState(run.state)
    return 2 if not state.is_terminal or just_ended(run) else 15 if state is RunState.CRASHED else 0


def head(request: HttpRequest, run: Run, tab: str) -> dict:
    """What stands above every tab."""
    attempts = list(run.attempts.all())
    _, recipe = service.recipe_of(run)
    role = projects.role_of(user=request.user, project=run.project)
    state = RunState(run.state)
    verdict_count = run.reproductions.count()
    named = MetricSummary.objects.filter(run=run).values("key").distinct()
    system_count = named.filter(key__startswith=SYSTEM).count()
    ranks = run.writers.filter(kind="trainer").values("rank").distinct().count()
    counts = {"charts": named.count() - system_count, "system": system_count, "reproductions": verdict_count}
    counts["ranks"] = ranks if ranks > 1 else 0
    counts["media"] = run.media.values("key").distinct().count()
    return {
        "run": run,
        "title": run.name,
        "path": [
            {"name": "Projects", "url": "/"},
            {"name": run.project.slug, "url": reverse("project", args=[run.project.slug])},
            {"name": run.name},
        ],
        "tab": tab,
        "tabs": [
            {"name": name, "url": reverse(f"run-{key}", args=[run.id]), "current": key == tab, "count": counts.get(key) or None}
            for key, name in TABS
        ],
        "attempts": attempts,
        **lineage.of_run(request.user, run, attempts, tab),
        "recipe": recipe,
        "command": shell_words.command_line(recipe.get("command") or {}),
        "live": not state.is_terminal,
        "can_edit": role in ("editor", "owner"),
        "can_reproduce": role in ("editor", "owner"),
        "preflight": checks(run),
        "origin": getattr(run, "reproduction", None),
        "seconds": (run.finished_at - (run.started_at or run.created_at)).total_seconds() if run.finished_at else None,
        "since": run.started_at or run.created_at,
        "running_for": (timezone.now() - (run.started_at or run.created_at)).total_seconds(),
        "poll": is_polled(run),
        "poll_url": request.path,
        "key_count": counts["charts"] + system_count,
    }


def checks(run: Run) -> dict:
    found = preflights.preflight(run)
    states = {one["state"] for one in found["items"]}
    worst = next((state for state in ("missing", "warn") if state in states), "ok")
    items = [{**one, "icon": f"s-{one['state']}"} for one in found["items"]]
    return {
        **found,
        "worst": worst,
        "open": [one for one in items if one["state"] != "ok"],
        "passed": [one for one in items if one["state"] == "ok"],
    }


def answer(request: HttpRequest, context: dict) -> HttpResponse:
    if request.htmx and not request.htmx.history_restore_request:
        return render(request, f"run/_{context['tab']}.html", context)
    return render(request, "run/page.html", context)


@page
def header(request: HttpRequest, run_id: str) -> HttpResponse:
    """Only what stands above the tabs, for its live update."""
    return render(request, "run/_head.html", head(request, find(request, run_id), ""))


@page
def overview(request: HttpRequest, run_id: str) -> HttpResponse:
    run = find(request, run_id)
    context = head(request, run, "overview")
    context.update(
        config=config_tree(run.config or {}),
        metrics=metric_rows(run, limit=300),
        headline=headline(run),
        chart_runs_json=json.dumps([{"id": run.id, "name": run.name, "colour": 0}]),
        own_summary=config_tree(run.summary or {}),
        writers=list(run.writers.select_related("attempt").order_by("attempt__number", "kind", "rank")[:64]),
        events=list(run.events.exclude(name__in=["start", "finish", "coordinates", "stacks"]).order_by("-time_us")[:20]),
        source=context["recipe"].get("source") or {},
        hardware=context["recipe"].get("hardware") or {},
        command_facts=context["recipe"].get("command") or {},
    )
    return answer(request, context)


def headline(run: Run, most: int = 2) -> list[str]:
    """The keys worth a look before any other: what is evidence (losses, qualities), validation first, the longest first."""
    definitions = list(KeyDefinition.objects.filter(run=run).order_by("id").values_list("pattern", "fields"))
    rows = MetricSummary.objects.filter(run=run, count__gt=1).exclude(key__startswith=SYSTEM).values("key").distinct()
    evident = [row["key"] for row in rows[:500] if keys.meaning(row["key"], definitions).evidence]
    return sorted(evident, key=lambda key: first_look(key, definitions))[:most]


@page
def charts(request: HttpRequest, run_id: str) -> HttpResponse:
    return _charts(request, run_id, "charts")


@page
def system(request: HttpRequest, run_id: str) -> HttpResponse:
    return _charts(request, run_id, "system")


def _charts(request: HttpRequest, run_id: str, tab: str) -> HttpResponse:
    run = find(request, run_id)
    context = head(request, run, tab)
    rows = MetricSummary.objects.filter(run=run)
    rows = rows.filter(key__startswith=SYSTEM) if tab == "system" else rows.exclude(key__startswith=SYSTEM)
    found = list(rows.values("key").annotate(ranks=Count("rank", distinct=True)).order_by("key"))
    names = [row["key"] for row in found]
    if len(names) >= summaries.MOST_KEYS // 2 and context["key_count"] >= summaries.MOST_KEYS:
        # Summaries are bounded; the series themselves know every name.
        names = sorted(key for key in reading.keys_of(run.id) if key.startswith(SYSTEM) == (tab == "system"))
    # A node's metrics stand under the rank that its sender met first.
    hosts = {rank: host for rank, host in run.writers.filter(kind="node").order_by("started_us").values_list("rank", "host") if host}
    ranks = set(run.writers.filter(kind="trainer").values_list("rank", flat=True)) if tab != "system" else set()
    context.update(
        sections=sections(names[:MOST_PANELS], system=tab == "system"),
        more=len(names) > MOST_PANELS,
        energy=energy.of(run) if tab == "system" else None,
        ranks=max([row["ranks"] for row in found] + [0 if tab == "system" else len(ranks)], default=1),
        rank_names_json=json.dumps(hosts if tab == "system" else {}),
        most=MOST_PANELS,
        chart_runs_json=json.dumps([{"id": run.id, "name": run.name, "colour": 0}]),
    )
    return answer(request, context)


def sections(names: list[str], system: bool = False) -> list[dict]:
    """Panels by the prefix of their key; what has none comes first. Sections are open until there are too many panels to be useful."""
    groups: dict[str, list[str]] = {}
    for key in names:
        rest = key.removeprefix(SYSTEM) if system else key
        prefix, slash, _ = rest.partition("/")
        if system and not slash:
            prefix = rest.partition(".")[0].partition("_")[0]
        groups.setdefault(prefix if slash or system else "", []).append(key)
    if system and names and len(names) <= FEW_PANELS:
        groups = {"": sorted(names)}  # headings would only spread them out
    out, shown = [], 0
    # What judges a model comes before what clocks a machine.
    order = {prefix: min(first_look(key) for key in members)[:3] for prefix, members in groups.items()}
    for prefix, members in sorted(groups.items(), key=lambda one: (order[one[0]], one[0])):
        out.append({"name": prefix or ("system" if system else "metrics"), "keys": members, "open": shown < OPEN_PANELS})
        shown += len(members)
    return out


@page
@require_POST
def edit(request: HttpRequest, run_id: str) -> HttpResponse:
    """Name, notes and tags, each by its own small form."""
    run = find(request, run_id)
    changes: dict = {}
    if name := request.POST.get("name", "").strip():
        changes["name"] = name[:250]
    if "notes" in request.POST:
        changes["notes"] = request.POST["notes"]
    if "tags" in request.POST:
        changes["tags"] = [tag.strip() for tag in request.POST["tags"].split(",") if tag.strip()]
    if request.POST.get("archive") in ("0", "1"):
        changes["archived"] = request.POST["archive"] == "1"
    if changes:
        service.update(run=run, user=request.user, **changes)
    return redirect(
        request.POST.get("back") if request.POST.get("back", "").startswith("/runs/") else reverse("run-overview", args=[run.id])
    )


@page
@require_POST
def stop(request: HttpRequest, run_id: str) -> HttpResponse:
    run = find(request, run_id)
    service.request_stop(run=run, user=request.user)
    messages.success(request, "Asked to stop. The sender tells the training process within seconds; the state changes when it has ended.")
    return redirect("run-overview", run.id)


@page
@require_POST
def delete(request: HttpRequest, run_id: str) -> HttpResponse:
    run = find(request, run_id)
    service.delete(run=run, user=request.user)
    messages.success(request, f"{run.name} lies in the trash for 7 days.")
    return redirect("project", run.project.slug)
