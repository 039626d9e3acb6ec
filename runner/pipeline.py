"""One job from wake-up to end: claim, the steps in order, and a word to the tracker whatever happens. Knows nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from runner import devices, isolations, order
from runner import settings as settings_module
from runner.environments import venv
from runner.errors import Cancelled, RecipeFailure, Stopped, WorkerFault
from runner.job import Job
from runner.report import Report, Tracker
from runner.settings import Settings
from runner.steps import checkout, data, environment, evidence, execute
from runner.workspace import BlobCache, JobFolder, prune

log = logging.getLogger("encore.runner")
STEPS: tuple[tuple[str, Callable[[Job], str]], ...] = (
    ("checkout", checkout.run),
    ("environment", environment.run),
    ("data", data.run),
    ("execute", execute.run),
    ("evidence", evidence.run),
)


def perform(job_id: str, *, settings: Settings | None = None, shutting_down: Any = None) -> str:
    """Does the job if it is still to be done; returns how it ended (``finished``, ``failed``, ``cancelled``, ``left``, ``nothing``).

    Being told twice, or late, is harmless: only one claim succeeds. ``shutting_down``: an event of this worker.
    """
    settings = settings or settings_module.load()
    tracker = Tracker(settings.url, settings.token)
    worker = tracker.hello(name=settings.name, queues=list(settings.queues), info=info(settings), patience_seconds=30)
    claimed = tracker.claim(job_id, worker=worker)
    if claimed is None:
        return "nothing"
    claim = order.read(claimed, job_id)
    with tracker.report(claim, shutting_down=shutting_down) as report:
        return _perform(claim, settings, report)


def _perform(claim: order.Order, settings: Settings, report: Report) -> str:
    job: Job | None = None
    failure: dict[str, Any] | None = None
    state = "finished"
    try:
        folder = JobFolder.create(settings.home, claim.job, claim.fence)
        job = Job(claim, settings, folder, report, BlobCache(settings.home, report.fetch), isolations.choose(settings))
        for name, step in STEPS:
            _step(job, name, step)
        if job.failure:
            raise job.failure
    except Cancelled as cancelled:
        state, failure = "cancelled", cancelled.as_dict()
    except Stopped as stopped:
        log.warning("job %s left: %s", claim.job, stopped)
        _close(job, settings, failed=True)
        return "left"  # it is another worker's now, or will be; nothing more is written
    except RecipeFailure as recipe_failure:
        state, failure = "failed", recipe_failure.as_dict()
    except WorkerFault as fault:
        state, failure = "failed", fault.as_dict()
    except Exception as error:
        log.exception("job %s", claim.job)
        state, failure = "failed", WorkerFault(f"{type(error).__name__}: {error}").as_dict()
    told = report.finish(state, evidence=_evidence(job), failure=failure)
    fresh = job.environment if job and job.environment and job.environment.fresh else None
    _close(job, settings, failed=state != "finished" or not told)
    if fresh:
        venv.compile_quietly(fresh, settings.home / "compile.log")
    return state if told else "left"


def _step(job: Job, name: str, step: Callable[[Job], str]) -> None:
    job.report.check()
    job.report.step(name, "running")
    try:
        message = step(job)
    except Stopped as stopped:
        job.report.step(name, _stopped(stopped), str(stopped))
        raise
    except Exception as error:
        if job.report.why is not None:  # what it ran into is only the way it was stopped
            job.report.step(name, _stopped(job.report.why), str(job.report.why))
            raise job.report.why from error
        detail = error.as_dict() if isinstance(error, (RecipeFailure, WorkerFault)) else {}
        job.report.step(name, "failed", getattr(error, "message", None) or str(error) or type(error).__name__, detail)
        raise
    failed = name == "execute" and job.failure is not None
    job.report.step(name, "failed" if failed else "done", message)


def _stopped(why: Stopped) -> str:
    return "cancelled" if isinstance(why, Cancelled) else "failed"


def _evidence(job: Job | None) -> dict[str, Any] | None:
    if job is None:
        return None
    try:
        return evidence.fill(job)
    except Exception:
        log.exception("evidence of job %s", job.order.job)
        return job.evidence


def _close(job: Job | None, settings: Settings, *, failed: bool) -> None:
    if job is not None:
        job.folder.close(failed=failed)
    prune(settings.home, keep=settings.keep, keep_failed=settings.keep_failed)


def info(settings: Settings) -> dict[str, Any]:
    """What the worker tells of itself."""
    settings.home.mkdir(parents=True, exist_ok=True)
    return {
        "hardware": devices.hardware(),
        "slots": 1,
        "disk_free_bytes": devices.free_bytes(settings.home),
        "isolation": settings.isolation,
    }
