"""Playing a run again: the dialog, the five steps, the verdict."""

from __future__ import annotations

import json

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_POST

from tracker.domain.errors import Forbidden, Invalid
from tracker.domain.lifecycle import STEPS, JobState, RunState
from tracker.models import JobLog, Reproduction, Run, Worker
from tracker.services import reproductions as service
from tracker.services.workers import is_here
from tracker.web import format
from tracker.web import run as runs
from tracker.web.columns import first_look
from tracker.web.logs import chunks_answer
from tracker.web.page import page, show
from tracker.web.trees import flat

WORDS = {
    "checkout": "Checkout", "environment": "Environment", "data": "Data", "execute": "Execute", "evidence": "Evidence",
}  # fmt: skip
MEND = {
    "source_missing": "The source snapshot is not complete. Start the training again with the SDK, so that it is copied.",
    "source_differs": "The restored source does not have the recorded digest; the stored copy is damaged. Look at the tracker's log.",
    "python_missing": "Install this Python on the worker's machine, or start a worker on one that has it.",
    "package_missing": "Make the package reachable for the worker: its index, or the file it was installed from.",
    "environment_failed": "The installer's output below names the package; make it installable for the worker.",
    "data_missing": "Put the file back at its path, or log it with sdk.use_data so that a copy is stored.",
    "data_differs": "Bring back the file with the recorded digest; a rerun on other data would prove nothing.",
    "would_overwrite": "The program writes to a path outside its folder. Write below the working folder, or pass the path by config.",
    "secret_missing": "Give the secret to the worker's queue under this name.",
    "program_failed": "The program's own output below says why.",
    "cancelled": "Reproduce again when you like; what was built is cached.",
    "lost": "The worker went silent more often than the job allows. See the workers' page, then reproduce again.",
    "limit": "Raise the job's limit, or probe fewer steps.",
}


@page
def listing(request: HttpRequest) -> HttpResponse:
    found = Reproduction.objects.visible_to(request.user).select_related("original__project", "rerun", "job__worker", "requested_by")
    context = {
        "title": "Reproductions",
        "path": [{"name": "Reproductions"}],
        "reproductions": list(found.order_by("-created_at")[:100]),
        "with_run": True,
    }
    return show(request, "reproductions", "_list", context)


@page
def of_run(request: HttpRequest, run_id: str) -> HttpResponse:
    run = runs.find(request, run_id)
    context = runs.head(request, run, "reproductions")
    related = ("original", "rerun", "job__worker", "requested_by")
    context["reproductions"] = list(run.reproductions.select_related(*related).order_by("-created_at")[:100])
    return runs.answer(request, context)


@page
def dialog(request: HttpRequest, run_id: str) -> HttpResponse:
    """GET: the dialog, which needs no reading to press Enter. POST: the reproduction is asked for."""
    run = runs.find(request, run_id)
    if not Run.objects.editable_by(request.user).filter(id=run.id).exists():
        raise Forbidden("Reproducing runs recorded code, so it needs the editor's role in this project. Ask the project's owner.")
    if request.method == "POST":
        return _request(request, run)
    workers = [worker for worker in Worker.objects.all() if is_here(worker)]
    queues = sorted({name for worker in workers for name in worker.queues} | {"default"}, key=lambda name: (name != "default", name))
    seconds = (run.finished_at - (run.started_at or run.created_at)).total_seconds() if run.finished_at else None
    leaves = [(name, json.dumps(value, ensure_ascii=False)) for name, value in flat(run.config or {}).items() if name][:40]
    context = {
        "run": run,
        "preflight": runs.checks(run),
        "queues": queues,
        "idle": len(workers),
        "seconds": seconds,
        "config": leaves,
        "processes": (run.writers.filter(kind="trainer").values("rank").distinct().count()) or 1,
    }
    return render(request, "reproductions/_dialog.html", context)


def _request(request: HttpRequest, run: Run) -> HttpResponse:
    steps = request.POST.get("steps", "").strip()
    if steps and not (steps.isdigit() and 0 < int(steps) < 2**62):
        raise Invalid("Steps is a whole number above zero, or empty for the whole run.")
    found = service.request(
        run=run,
        user=request.user,
        overrides=_overrides(request, run),
        scope={"steps": int(steps)} if steps else None,
        queue=request.POST.get("queue") or "default",
    )
    where = reverse("reproduction", args=[found.id])
    if request.htmx:
        answer = HttpResponse(status=204)
        answer["HX-Redirect"] = where
        return answer
    return redirect(where)


def _overrides(request: HttpRequest, run: Run) -> dict | None:
    """Config fields that were changed in the form, nested as the config is. A value that is no JSON is text."""
    config: dict = {}
    for name, was in flat(run.config or {}).items():
        text = request.POST.get(f"config.{name}")
        if text is None or text == json.dumps(was, ensure_ascii=False):
            continue
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        node = config
        *folders, leaf = _route(run.config, name)
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = value
    return {"config": config} if config else None


def _route(config: dict, name: str) -> list[str]:
    """The keys that lead to a dotted name; a key may itself hold a dot."""
    for key, value in config.items():
        if name == key:
            return [key]
        if isinstance(value, dict) and name.startswith(f"{key}."):
            return [key, *_route(value, name[len(key) + 1 :])]
    return [name]


def find(request: HttpRequest, reproduction_id: str) -> Reproduction:
    rows = Reproduction.objects.visible_to(request.user).select_related(
        "original__project", "original__user", "rerun", "job__worker", "requested_by"
    )
    return get_object_or_404(rows, id=reproduction_id)


@page
def detail(request: HttpRequest, reproduction_id: str) -> HttpResponse:
    one = find(request, reproduction_id)
    job = one.job
    over = JobState(job.state).is_terminal
    verdict = one.verdict
    kind, words = format.seal_kind(verdict)
    rows = (verdict or {}).get("per_metric") or []
    first = verdict and verdict.get("metric")
    # The longest curve that is evidence says most about how alike the two are.
    best = min(
        rows,
        key=lambda row: (not row.get("evidence"), -(row.get("compared") or 0), -(row.get("logged") or 0), first_look(row["key"])),
        default=None,
    )
    chart_key = first or (best["key"] if best else next(iter(runs.headline(one.original, 1)), None))
    original, rerun = one.original, one.rerun
    chart_runs = [{"id": original.id, "name": "original", "colour": 0, "wide": True}]
    if rerun:
        chart_runs.append({"id": rerun.id, "name": "rerun", "colour": 1})
    for row in rows:
        gap = row.get("first_difference")
        row["marks"] = _marks(gap["step"]) if gap and gap.get("step") is not None else ""
        row["drawn"] = row["key"] == chart_key and row.get("rank") == (verdict.get("rank") if first else best.get("rank"))
        row["rank_text"] = "" if row.get("rank") is None else row["rank"]
    context = {
        "title": f"Reproduction of {original.name}",
        "path": [
            {"name": original.project.slug, "url": reverse("project", args=[original.project.slug])},
            {"name": original.name, "url": reverse("run-overview", args=[original.id])},
            {"name": "Reproduction"},
        ],
        "one": one,
        "job": job,
        "original": original,
        "rerun": rerun,
        "over": over,
        "live": not over or (verdict is None and job.state == JobState.FINISHED.value),
        "steps": steps(job),
        "verdict": verdict,
        "kind": kind,
        "words": words,
        "failure": _failure(one),
        "rows": rows,
        "compared": (verdict or {}).get("compared") or {},
        "evidence": job.evidence or {},
        "chart_key": chart_key,
        "chart_marks": _marks(verdict["step"]) if verdict and verdict.get("step") is not None else "",
        "chart_runs_json": json.dumps(chart_runs),
        "can_edit": Run.objects.editable_by(request.user).filter(id=original.id).exists(),
        "waiting_for_worker": job.state == JobState.QUEUED.value and not any(is_here(w) for w in Worker.objects.all()),
        "overrides": {name: changed for name, changed in flat(one.overrides or {}).items() if changed not in ({}, [], None)},
        "not_compared": _by_reason((verdict or {}).get("not_compared") or []),
        "seconds": (job.finished_at - job.started_at).total_seconds() if job.finished_at and job.started_at else None,
        "rerun_live": bool(rerun and not RunState(rerun.state).is_terminal),
    }
    return show(request, "reproduction", "_live", context)


def _by_reason(rows: list[dict]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for row in rows:
        reasons.setdefault(row.get("why") or "", []).append(row.get("key") or row.get("what") or "")
    return reasons


def _marks(step: int) -> str:
    return json.dumps([{"x": step, "text": f"first difference, step {step:,}"}])


def _failure(one: Reproduction) -> dict | None:
    found = one.job.failure or (one.verdict or {}).get("reason")
    if not found:
        return None
    said = bool(found.get("message")) and found["message"].rstrip(".") in (one.verdict or {}).get("sentence", "")
    return {**found, "said": said, "mend": found.get("mend") or MEND.get(found.get("code", ""), "")}


def steps(job) -> list[dict]:
    """The five steps of the job's latest claim, in order, each with its time; what has not begun waits."""
    done = {step.name: step for step in job.steps.all() if step.fence == job.fence}
    rows = []
    for name in STEPS:
        step = done.get(name)
        seconds = (step.finished_at - step.started_at).total_seconds() if step and step.finished_at else None
        running = (timezone.now() - step.started_at).total_seconds() if step else None
        over = JobState(job.state).is_terminal
        state = step.state if step else "skipped" if over else "waiting"
        if step and step.state == "running" and over:
            state = job.state if job.state in ("cancelled", "lost", "failed") else "done"
        if state == "failed" and job.state == JobState.CANCELLED.value:
            state = "cancelled"
        rows.append(
            {
                "name": name, "word": WORDS[name], "state": state, "message": step.message if step else "",
                "started_at": step.started_at if step else None, "seconds": seconds,
                "running_for": running, "detail": step.detail if step else {},
            }
        )  # fmt: skip
    return rows


@page
@require_POST
def cancel(request: HttpRequest, reproduction_id: str) -> HttpResponse:
    one = find(request, reproduction_id)
    service.cancel(reproduction=one, user=request.user)
    return redirect("reproduction", one.id)


@page
def lines(request: HttpRequest, reproduction_id: str) -> HttpResponse:
    """The worker's own words; what the program prints is the rerun's log."""
    one = find(request, reproduction_id)
    part = chunks_answer(JobLog.objects.filter(job=one.job), request)
    results = [
        {"id": log.id, "stream": log.step, "text": log.text, "time_us": int(log.received_at.timestamp() * 1e6), "rank": None}
        for log in part["found"]
    ]
    live = not JobState(one.job.state).is_terminal
    return JsonResponse({"results": results, "more": part["more"], "earlier": part["earlier"], "live": live})
