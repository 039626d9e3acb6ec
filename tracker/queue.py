"""Names of the runner's tasks. Only services send them, after commit; the row is the truth, a lost message is sent again by the sweeper."""

from django.conf import settings
from django.db import transaction

PERFORM = "runner.perform"
MAINTENANCE = "encore.maintenance"


def jobs_queue(name: str) -> str:
    return f"encore.jobs.{name}"


def wake_worker(job) -> None:
    """Tell the workers of the job's queue, once the job's row is committed. Never raises: a broker that is down loses only the wake-up."""
    transaction.on_commit(lambda: _send(job.id, job.queue))


def _send(job_id: str, queue: str) -> None:
    from tracker.celery import app

    if not settings.CELERY_BROKER_URL:
        return
    try:
        app.send_task(PERFORM, args=[job_id], queue=jobs_queue(queue), retry=False, ignore_result=True)
    except Exception:
        import structlog

        structlog.get_logger().warning("broker unreachable, the sweeper will send again", job=job_id)


JUDGE = "tracker.judge"


def judge_soon(job) -> None:
    """Have the reproduction of ``job`` judged once its end is committed; a lost message is made good by the sweeper."""
    transaction.on_commit(lambda: _send_judge(job.id))


def _send_judge(job_id: str) -> None:
    from tracker.celery import app

    if not settings.CELERY_BROKER_URL:
        return
    try:
        app.send_task(JUDGE, args=[job_id], queue=MAINTENANCE, retry=False, ignore_result=True)
    except Exception:
        import structlog

        structlog.get_logger().warning("broker unreachable, the sweeper will judge", job=job_id)
