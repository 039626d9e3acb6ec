"""The table of runs, of one project or of all."""

from __future__ import annotations

from urllib.parse import urlencode

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_POST

from tracker.domain.errors import FilterMistake
from tracker.domain.lifecycle import RunState
from tracker.models import Project, Run
from tracker.services import runs as service
from tracker.web import columns as table
from tracker.web.page import page, show
from tracker.web.run import just_ended

LIMIT = 50
STATE_FIELDS = ("filter", "sort", "columns", "archived")
SORTABLE = ("name", "state", "created", "user")


def link(state: dict, **changes) -> str:
    """The same page with other state; an empty value leaves the URL."""
    merged = {**state, **changes}
    text = urlencode({key: value for key, value in merged.items() if value})
    return f"?{text}" if text else "?"


def heading(state: dict, name: str) -> dict:
    """Link and direction of a sortable header: first click descending, second ascending, third back to newest first."""
    if any(character in name for character in ',"\\'):
        name = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    now = state.get("sort", "")
    direction = "descending" if now == f"-{name}" else "ascending" if now == name else "none"
    after = {"none": f"-{name}", "descending": name, "ascending": ""}[direction]
    return {"url": link(state, sort=after, cursor=""), "direction": direction}


@page
def all_runs(request: HttpRequest) -> HttpResponse:
    return _table(request, None)


@page
def project(request: HttpRequest, slug: str) -> HttpResponse:
    return _table(request, get_object_or_404(Project.objects.visible_to(request.user), slug=slug))


def _table(request: HttpRequest, project: Project | None) -> HttpResponse:
    state = {name: request.GET.get(name, "") for name in STATE_FIELDS}
    if len(request.GET.getlist("columns")) > 1:
        state["columns"] = ",".join(request.GET.getlist("columns"))
        return redirect(request.path + link(state))
    cursor = request.GET.get("cursor", "")
    found, mistake = [], None
    following = None
    try:
        answer = service.find(
            user=request.user, project=project, filter=state["filter"], sort=state["sort"], limit=LIMIT, cursor=cursor or None,
            archived=bool(state["archived"]),
        )  # fmt: skip
        found, following = list(answer.results), answer.next
    except FilterMistake as error:
        mistake = {"message": error.message, "column": error.fields.get("column")}
        mistake["pointer"] = " " * (max(1, int(mistake["column"] or 1)) - 1) + "^" if mistake["column"] else ""
    choice = table.choices([run.id for run in found])
    names = [name for name in state["columns"].split(",") if name] or table.default(choice, table.told_already(found))
    columns = table.parse(names)
    table.fill(found, columns)
    for run in found:
        run.shown_tags = run.tags[:3] if isinstance(run.tags, list) else []
        run.live_since = run.started_at or run.created_at
        run.seconds = ((run.finished_at or timezone.now()) - run.live_since).total_seconds()
    for column in columns:
        column.head = heading(state, column.name)
    context = {
        "title": project.name if project else "Runs",
        "path": [{"name": "Projects", "url": "/"}, {"name": project.slug}] if project else [{"name": "Runs"}],
        "project": project,
        "runs": found,
        "columns": columns,
        "choices": _choices(choice, {column.name for column in columns}),
        "heads": {name: heading(state, name) for name in SORTABLE},
        "state": state,
        "mistake": mistake,
        "next": link(state, cursor=following) if following else "",
        "first": link(state) if cursor else "",
        "every": 2 if any(not RunState(run.state).is_terminal or just_ended(run) for run in found) else 4,
        "poll": "?" + request.GET.urlencode(),
        "archived_link": link(state, archived="" if state["archived"] else "1"),
        "filtered": bool(state["filter"]),
        "slug": project.slug if project else "my-project",
        "here": request.get_full_path(),
    }
    return show(request, "runs", "_table", context)


def _choices(found: list[dict], chosen: set[str]) -> dict:
    groups = {"config": [], "summary": []}
    for row in sorted(found, key=lambda row: row["kind"] == "config" and table.is_constant(row)):
        name = f"{row['kind']}.{row['path']}"
        groups[row["kind"]].append({"name": name, "path": row["path"], "checked": name in chosen})
    for name in chosen:
        kind, _, path = name.partition(".")
        if all(one["name"] != name for one in groups[kind]):
            groups[kind].insert(0, {"name": name, "path": path, "checked": True})
    return groups


@page
@require_POST
def bulk(request: HttpRequest) -> HttpResponse:
    """Tag, archive or delete what is ticked; a run that one may not edit stops the whole, so nothing is done by half."""
    ids = request.POST.getlist("run")[:1000]
    back = request.POST.get("back", "/runs")
    if not url_has_allowed_host_and_scheme(back, allowed_hosts=None):
        back = "/runs"
    chosen = list(Run.objects.visible_to(request.user).filter(id__in=ids).select_related("project"))
    verb = request.POST.get("verb", "")
    tag = request.POST.get("tag", "").strip()[:100]
    editable = set(Run.objects.editable_by(request.user).filter(id__in=ids).values_list("id", flat=True))
    if not chosen or (verb == "tag" and not tag):
        messages.error(request, "Nothing done: choose runs, and for a tag type one.")
        return redirect(back)
    if len(editable) != len(chosen):
        messages.error(request, "Nothing done: some of these runs you may only look at. Ask the project's owner for the editor's role.")
        return redirect(back)
    for run in chosen:
        if verb == "tag":
            service.update(run=run, user=request.user, tags=[*run.tags, *([] if tag in run.tags else [tag])])
        elif verb in ("archive", "unarchive"):
            service.update(run=run, user=request.user, archived=verb == "archive")
        elif verb == "delete":
            service.delete(run=run, user=request.user)
    done = {"tag": f"tagged {tag}", "archive": "archived", "unarchive": "back from the archive", "delete": "in the trash for 7 days"}
    messages.success(request, f"{len(chosen)} run{'s' if len(chosen) != 1 else ''} {done.get(verb, 'unchanged')}.")
    return redirect(back)
