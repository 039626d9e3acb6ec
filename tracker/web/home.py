"""All projects that one may see, with what happens in them."""

from django.db.models import Count, Max, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from tracker.domain.lifecycle import RunState
from tracker.models import Project, Run
from tracker.web.page import page, show


@page
def projects(request: HttpRequest) -> HttpResponse:
    alive = Q(runs__deleted_at=None)
    found = (
        Project.objects.visible_to(request.user)
        .annotate(
            run_count=Count("runs", filter=alive),
            running=Count("runs", filter=alive & Q(runs__state=RunState.RUNNING.value)),
            newest=Max("runs__created_at", filter=alive),
        )
        .order_by("-newest", "slug")
    )
    recent = (
        Run.objects.visible_to(request.user).filter(archived_at=None).select_related("project", "user").order_by("-created_at", "id")[:12]
    )
    context = {
        "title": "Projects",
        "path": [{"name": "Projects"}],
        "projects": list(found),
        "recent": list(recent[:12]),
        "slug": "my-project",
    }
    return show(request, "home", "_list", context)


@page
def jump(request: HttpRequest) -> HttpResponse:
    """The palette: projects and runs whose name or id has what was typed, newest first."""
    text = request.GET.get("q", "").strip()[:100]
    projects = Project.objects.visible_to(request.user)
    runs = Run.objects.visible_to(request.user).select_related("project")
    if text:
        projects = projects.filter(Q(slug__icontains=text) | Q(name__icontains=text))
        runs = runs.filter(Q(name__icontains=text) | Q(id__startswith=text.lower()))
    context = {"projects": projects.order_by("slug")[:8], "runs": runs.order_by("-created_at", "id")[:12], "text": text}
    return render(request, "jump/_list.html", context)
