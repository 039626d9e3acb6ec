"""What runs where."""

from django.http import HttpRequest, HttpResponse

from tracker.domain.lifecycle import JobState
from tracker.models import Job, Worker
from tracker.services.workers import is_here
from tracker.web.page import page, show


@page
def workers(request: HttpRequest) -> HttpResponse:
    visible = Job.objects.visible_to(request.user).select_related("worker", "project", "reproduction__original")
    running = {job.worker_id: job for job in visible.filter(state=JobState.RUNNING.value)}
    found = list(Worker.objects.order_by("-last_seen_at")[:200])
    for worker in found:
        worker.state = "online" if is_here(worker) else "silent"
        worker.current = running.get(worker.id)
        worker.gpus = (worker.info or {}).get("gpus") or []
    context = {
        "title": "Workers",
        "path": [{"name": "Workers"}],
        "workers": found,
        "jobs": list(visible.order_by("-created_at")[:100]),
    }
    return show(request, "workers", "_list", context)
