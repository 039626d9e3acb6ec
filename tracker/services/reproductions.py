"""Requests to play a run again."""

from __future__ import annotations

from django.db import transaction
from django.utils import timezone

from tracker.domain import ids, storable
from tracker.domain.errors import Forbidden, Invalid, NotFound, RunNotFinished
from tracker.domain.lifecycle import JobState, RunState
from tracker.models import Job, Reproduction, Run, User
from tracker.services import jobs, runs, verdicts
from tracker.services.preflight import preflight

OVERRIDES = {"config": dict, "argv": list, "env": dict, "files": dict}
MOST_OVERRIDE_TEXT = 4 * 2**20


def request(*, run: Run, user: User, overrides: dict | None = None, scope: dict | None = None, queue: str = "default") -> Reproduction:
    """Ask for ``run`` to be played again. A run whose recipe cannot run gives a reproduction that has already failed, with the reason.

    Raises Forbidden (no editor), RunNotFinished, Invalid.
    """
    runs.require_editor(user=user, run=run)
    if not RunState(run.state).is_terminal:
        raise RunNotFinished(f"The run is {run.state}: wait until it has ended, or stop it first.", state=run.state)
    overrides, scope = _overrides(overrides or {}), _scope(scope or {})
    if not isinstance(queue, str) or not queue or len(queue) > 100:
        raise Invalid("queue is a queue's name.", queue="malformed")
    found = storable.value(preflight(run))
    attempt, recipe = runs.recipe_of(run)
    failure = None if found.get("runnable", True) else _not_runnable(found)
    with transaction.atomic():
        rerun = None
        if failure is None:
            rerun = Run.objects.create(
                project_id=run.project_id,
                user=user,
                name=f"{run.name[:240]} (rerun)",
                state=RunState.QUEUED.value,
                group=run.group,
                job_type=run.job_type,
            )
        job = Job(project_id=run.project_id, queue=queue)
        job.order = {
            "format": 1,
            "kind": "reproduce",
            "project": run.project.slug,
            "run": rerun.id if rerun else None,
            "original": run.id,
            "attempt": attempt.number if attempt else None,
            "recipe": recipe,
            "overrides": overrides,
            "scope": scope,
            "limits": {"seconds": None, "memory_bytes": None},
        }
        if failure is not None:
            job.state, job.failure, job.finished_at = JobState.FAILED.value, failure, timezone.now()
        job.save(force_insert=True)
        reproduction = Reproduction.objects.create(
            original=run, rerun=rerun, job=job, requested_by=user, overrides=overrides, scope=scope, preflight=found
        )
        if failure is None:
            jobs.enqueue(job)
    if failure is not None:
        jobs.judge(reproduction)
        reproduction.refresh_from_db()
    return reproduction


def _not_runnable(found: dict) -> dict:
    """The first thing that is missing, as a failure (docs/formats.md)."""
    missing = [item for item in found.get("items", []) if item.get("state") == "missing"]
    first = missing[0] if missing else {}
    known = {"source": "source_missing", "environment": "python_missing", "data": "data_missing"}
    message = " ".join(part for part in (first.get("why"), first.get("mend")) if part) or "The recipe of this run is not complete."
    what = first.get("what", "recipe")
    return {"code": known.get(first.get("section"), "source_missing"), "message": message, "missing": what}


def _overrides(overrides: dict) -> dict:
    if not isinstance(overrides, dict):
        raise Invalid("overrides is an object.", overrides="malformed")
    for name, found in overrides.items():
        if name not in OVERRIDES:
            raise Invalid(f"overrides has {', '.join(OVERRIDES)}; not {name!r}.", overrides=str(name))
        if found is not None and not isinstance(found, OVERRIDES[name]):
            raise Invalid(f"overrides.{name} has the wrong type.", **{f"overrides.{name}": "malformed"})
    clean = {name: storable.value(overrides.get(name) or kind()) for name, kind in OVERRIDES.items()}
    clean["argv"] = clean["argv"] or None
    if clean["argv"] and not all(isinstance(word, str) for word in clean["argv"]):
        raise Invalid("overrides.argv is a list of texts.", **{"overrides.argv": "malformed"})
    for name in ("env", "files"):
        if not all(isinstance(found, str) for found in clean[name].values()):
            raise Invalid(f"overrides.{name} maps names to texts.", **{f"overrides.{name}": "malformed"})
    for path in clean["files"]:
        if not path or path.startswith("/") or "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
            raise Invalid(f"overrides.files: {path!r} is no path below the source root.", **{"overrides.files": path})
    if sum(len(text) for text in clean["files"].values()) > MOST_OVERRIDE_TEXT:
        raise Invalid("overrides.files holds more than 4 MiB.", **{"overrides.files": "too large"})
    return clean


def _scope(scope: dict) -> dict:
    steps = scope.get("steps") if isinstance(scope, dict) else 0
    if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or not 0 < steps < 2**31):
        raise Invalid('scope is {"steps": n} with n from 1, or {"steps": null} for all of it.', scope="malformed")
    return {"steps": steps}


def get(*, user: User, reproduction_id: str) -> Reproduction:
    if not ids.is_id(reproduction_id):
        raise Invalid("This is no id: 26 characters of a-z and 2-7.", id="malformed")
    rows = Reproduction.objects.visible_to(user).select_related("job__worker", "original__project", "rerun", "requested_by")
    reproduction = rows.filter(id=reproduction_id).first()
    if reproduction is None:
        raise NotFound("There is no such reproduction, or you may not see it.")
    return reproduction


def cancel(*, reproduction: Reproduction, user: User) -> Reproduction:
    """Raises Forbidden to a viewer. What is over stays as it is."""
    if not Run.objects.editable_by(user).filter(id=reproduction.original_id).exists():
        raise Forbidden("Cancelling needs the editor's role in the project.")
    reproduction.job = jobs.cancel(reproduction.job)
    return reproduction


def judge(*, reproduction: Reproduction, user: User) -> Reproduction:
    """Judge again, without running anything. Raises Forbidden to a viewer, RunNotFinished while the job goes on."""
    if not Run.objects.editable_by(user).filter(id=reproduction.original_id).exists():
        raise Forbidden("Judging again needs the editor's role in the project.")
    if not JobState(reproduction.job.state).is_terminal:
        raise RunNotFinished("The rerun is not over yet.", code="reproduction_not_over")
    verdicts.judge(reproduction=reproduction)
    reproduction.refresh_from_db()
    return reproduction
