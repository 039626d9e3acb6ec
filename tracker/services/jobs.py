"""Jobs: claimed by a conditional update, held by a lease, fenced by a number that grows with every claim."""

from __future__ import annotations

from datetime import timedelta

import structlog
from django.db import transaction
from django.db.models import F, Max, Q
from django.utils import timezone

from tracker import queue
from tracker.domain import storable
from tracker.domain.errors import Forbidden, Invalid, JobTaken, LeaseLost, NotFound
from tracker.domain.lifecycle import JobState, RunState
from tracker.models import Job, JobLog, JobStep, Reproduction, Run, Token, User, Writer
from tracker.services import accounts, summaries, verdicts, workers

log = structlog.get_logger()
LEASE = timedelta(seconds=30)
UNPUBLISHED_AFTER = timedelta(seconds=15)
EVIDENCE_WAIT = timedelta(seconds=60)
"""How long the judge waits for the last batches of a rerun."""
STEP_STATES = ("running", "done", "failed", "skipped", "cancelled")
OPEN = (JobState.QUEUED.value, JobState.RUNNING.value)


def enqueue(job: Job) -> None:
    """Wake a worker once the job's row is committed; the sweeper repeats what got lost."""
    Job.objects.filter(pk=job.pk).update(published_at=timezone.now())
    queue.wake_worker(job)


def claim(*, job_id: str, token: Token | None, worker_id: object) -> dict:
    """Take a waiting job: its order, with a key of its own. Raises JobTaken, NotFound, Invalid, Forbidden (not a queue of this worker)."""
    worker = workers.of_token(token=token, worker_id=worker_id)
    now = timezone.now()
    with transaction.atomic():
        job = Job.objects.filter(id=job_id).first()
        if job is None:
            raise NotFound("There is no such job.")
        if job.queue not in worker.queues:
            raise Forbidden(f"Worker {worker.name} does not serve the queue {job.queue}.")
        # One UPDATE decides: of two that claim at once, one changes a row and the other none.
        taken = Job.objects.filter(id=job.id, state=JobState.QUEUED.value, cancel_requested_at=None).update(
            state=JobState.RUNNING.value,
            worker=worker,
            fence=F("fence") + 1,
            attempts=F("attempts") + 1,
            lease_until=now + LEASE,
            heartbeat_at=now,
            started_at=now,
        )
        if not taken:
            raise JobTaken
        job = Job.objects.select_related("project", "reproduction__requested_by").get(id=job.id)
        key = accounts.create_job_key(job=job, user=_key_owner(job, worker))
    return {**job.order, "job": job.id, "fence": job.fence, "lease_seconds": int(LEASE.total_seconds()), "key": key}


def _key_owner(job: Job, worker) -> User:
    reproduction = getattr(job, "reproduction", None)
    return (reproduction and reproduction.requested_by) or worker.token.user


def heartbeat(*, job_id: str, token: Token | None, fence: object) -> dict:
    """Extend the lease. A lease that ran out but that nobody has taken yet lives on: the fence alone decides. Raises LeaseLost."""
    now = timezone.now()
    until = now + LEASE
    held = _held(job_id, fence, token)
    if not held.update(lease_until=until, heartbeat_at=now):
        raise LeaseLost
    cancel = Job.objects.filter(id=job_id).exclude(cancel_requested_at=None).exists()
    return {"cancel": cancel, "lease_until": until.isoformat()}


def _held(job_id: str, fence: object, token: Token | None):
    """The job if ``fence`` still holds it and ``token`` belongs to it (its key, or the account of the worker that claimed it)."""
    if not isinstance(fence, int) or isinstance(fence, bool) or not 0 <= fence < 2**31:
        raise Invalid("fence is the number from the order.", fence="malformed")
    job = Job.objects.select_related("worker__token").filter(id=job_id).first()
    own_key = token is not None and token.job_id is not None
    if job is None or (own_key and token.job_id != job.id):
        raise NotFound("There is no such job.")
    if not own_key:
        account = job.worker and job.worker.token and job.worker.token.user_id
        if token is None or token.user_id != account:
            raise NotFound("There is no such job of this worker.")
    return Job.objects.filter(id=job.id, state=JobState.RUNNING.value, fence=fence)


def _locked(job_id: str, fence: object, token: Token | None) -> Job:
    """The job's row, locked for this transaction, or LeaseLost: no write of a stale claim ever lands."""
    job = _held(job_id, fence, token).filter(lease_until__gt=timezone.now()).select_for_update().first()
    if job is None:
        raise LeaseLost
    return job


def record_step(*, job_id: str, token, fence: object, name: str, state: str, message: str = "", detail: dict | None = None) -> JobStep:
    """A step's state. Saying it again changes nothing but what is new."""
    if state not in STEP_STATES:
        raise Invalid(f"A step's state is one of {', '.join(STEP_STATES)}.", state="unknown")
    now = timezone.now()
    with transaction.atomic():
        job = _locked(job_id, fence, token)
        step, _ = JobStep.objects.get_or_create(job=job, fence=job.fence, name=storable.text(name, 20), defaults={"started_at": now})
        step.state = state
        step.message = storable.text(message)
        step.detail = storable.value(detail or {})
        step.finished_at = None if state == "running" else (step.finished_at or now)
        step.save()
    return step


def record_log(*, job_id: str, token, fence: object, number: int, step: str, text: str) -> None:
    """Lines of a step, numbered by the worker; the same number twice is kept once."""
    with transaction.atomic():
        job = _locked(job_id, fence, token)
        row = JobLog(job=job, fence=job.fence, number=number, step=storable.text(step, 20), text=storable.text(text))
        JobLog.objects.bulk_create([row], ignore_conflicts=True)


def finish(*, job_id: str, token, fence: object, state: str, evidence: dict | None = None, failure: dict | None = None) -> Job:
    """The worker's last word; the key of the claim ends with it. Raises LeaseLost, Invalid."""
    if state not in (JobState.FINISHED.value, JobState.FAILED.value, JobState.CANCELLED.value):
        raise Invalid("state is finished, failed or cancelled.", state="unknown")
    with transaction.atomic():
        job = _locked(job_id, fence, token)
        _end(job, state, evidence=storable.value(evidence), failure=storable.value(failure))
    return job


def _end(job: Job, state: str, *, failure: dict | None, evidence: dict | None = None) -> None:
    """In a transaction that holds the job's row: close it, its keys and its rerun; the judge follows after commit."""
    now = timezone.now()
    if state == JobState.CANCELLED.value and not failure:
        failure = {"code": "cancelled", "message": "Cancelled on request."}
    job.state, job.finished_at, job.failure = state, now, failure
    job.evidence = evidence if evidence is not None else job.evidence
    job.lease_until = None
    job.save(update_fields=["state", "finished_at", "failure", "evidence", "lease_until"])
    accounts.revoke_job_keys(job)
    left_running = {JobState.FINISHED.value: "done", JobState.CANCELLED.value: "cancelled"}.get(state, "failed")
    job.steps.filter(fence=job.fence, state="running").update(state=left_running, finished_at=now)
    _end_rerun(job, state, failure)
    queue.judge_soon(job)


def _end_rerun(job: Job, state: str, failure: dict | None) -> None:
    """The new run cannot be waiting or running once its job is over; what its own writers said counts more."""
    run = Run.objects.select_for_update().filter(reproduction__job=job).first()
    cancelled = state == JobState.CANCELLED.value
    # A cancelled program was killed before it could say so: its node saw it vanish, which alone would read as a crash.
    if run is None or (RunState(run.state).is_terminal and not (cancelled and run.state == RunState.CRASHED.value)):
        return
    if cancelled:
        run.state = RunState.KILLED.value
    elif state == JobState.LOST.value or (run.state == RunState.RUNNING.value and state == JobState.FINISHED.value):
        # Finished, yet a writer did not say how it ended: as for any run, that is a crash.
        run.state = RunState.CRASHED.value
    else:
        run.state = RunState.FAILED.value
    if failure and run.error is None:
        run.error = {"type": storable.text(failure.get("code") or "failed"), "message": storable.text(failure.get("message") or "")}
    run.finished_at = timezone.now()
    run.save(update_fields=["state", "error", "finished_at"])


def cancel(job: Job) -> Job:
    """A waiting job ends at once; a running one is told by its next heartbeat. Harmless twice and for what is over."""
    with transaction.atomic():
        job = Job.objects.select_for_update().get(pk=job.pk)
        if job.state == JobState.QUEUED.value:
            job.cancel_requested_at = job.cancel_requested_at or timezone.now()
            job.save(update_fields=["cancel_requested_at"])
            _end(job, JobState.CANCELLED.value, failure=None)
        elif job.state == JobState.RUNNING.value and job.cancel_requested_at is None:
            job.cancel_requested_at = timezone.now()
            job.save(update_fields=["cancel_requested_at"])
    return job


def sweep() -> dict[str, int]:
    """Expired leases, cancelled jobs whose worker is gone, wake-ups that got lost. Two sweeps at once are harmless."""
    return {"expired": _sweep_expired(), "published": _publish_again(), "judged": judge_due()}


def _sweep_expired() -> int:
    now = timezone.now()
    expired = Q(state=JobState.RUNNING.value) & (Q(lease_until__lte=now) | Q(lease_until=None))
    dropped = Q(state=JobState.QUEUED.value) & ~Q(cancel_requested_at=None)
    swept = 0
    for job_id in list(Job.objects.filter(expired | dropped).values_list("id", flat=True)[:200]):
        with transaction.atomic():
            # Looked at again under the lock: a heartbeat, or another sweep, may have been faster.
            job = Job.objects.select_for_update().filter(expired | dropped, id=job_id).first()
            if job is None:
                continue
            swept += 1
            if job.cancel_requested_at is not None:
                _end(job, JobState.CANCELLED.value, failure=None)
            elif job.attempts >= job.max_attempts:
                message = f"The worker fell silent {job.attempts} times; the job is not tried again."
                _end(job, JobState.LOST.value, failure={"code": "lost", "message": message})
            else:
                _queue_again(job)
    return swept


def _queue_again(job: Job) -> None:
    now = timezone.now()
    job.state, job.lease_until, job.worker = JobState.QUEUED.value, None, None
    job.save(update_fields=["state", "lease_until", "worker"])
    accounts.revoke_job_keys(job)
    job.steps.filter(fence=job.fence, state="running").update(state="failed", message="the worker fell silent", finished_at=now)
    enqueue(job)


def _publish_again() -> int:
    limit = timezone.now() - UNPUBLISHED_AFTER
    waiting = Job.objects.filter(Q(published_at=None) | Q(published_at__lt=limit), state=JobState.QUEUED.value, created_at__lt=limit)
    sent = 0
    for job in waiting[:200]:
        still = Q(published_at=job.published_at) & Q(state=JobState.QUEUED.value)
        if Job.objects.filter(still, id=job.id).update(published_at=timezone.now()):
            queue.wake_worker(job)
            sent += 1
    return sent


def has_all(reproduction: Reproduction) -> bool:
    """Whether every record of the rerun can be there: each trainer of its latest attempt said how it ended."""
    if reproduction.rerun_id is None:
        return True
    trainers = Writer.objects.filter(run_id=reproduction.rerun_id, kind=Writer.Kind.TRAINER)
    latest = trainers.aggregate(latest=Max("attempt__number"))["latest"]
    return latest is None or not trainers.filter(attempt__number=latest, finish=None).exists()


def judge_due() -> int:
    """Judge each ended reproduction whose evidence is complete, or has been waited for long enough."""
    now = timezone.now()
    ended = Reproduction.objects.filter(
        judged_at=None, job__state__in=[s.value for s in JobState if s.is_terminal], job__finished_at__gt=now - timedelta(hours=1)
    ).select_related("job", "original", "rerun")
    judged = 0
    for reproduction in ended[:20]:
        judged += judge(reproduction)
    return judged


def judge(reproduction: Reproduction) -> bool:
    """Judge if it is time. Returns whether a verdict was given; a mistake of the judge is logged, and tried again by the sweeper."""
    job = reproduction.job
    if not JobState(job.state).is_terminal or (not has_all(reproduction) and job.finished_at > timezone.now() - EVIDENCE_WAIT):
        return False
    try:
        for run_id in {reproduction.original_id, reproduction.rerun_id} - {None}:
            summaries.summarise_run(run_id)  # the judge finds the keys to compare in the summaries
        verdicts.judge(reproduction=reproduction)
    except Exception:
        log.exception("the judge failed", reproduction=reproduction.id)
        return False
    return True
