"""The tracker's maintenance: doors to services, each harmless when it runs twice at once. The schedule is in tracker/celery.py."""

from celery import shared_task
from django.core.management import call_command

from tracker.models import Reproduction
from tracker.services import accounts, compaction, freeing, jobs, liveness, retention, stitched, summaries


@shared_task(name="tracker.mark_silent_runs")
def mark_silent_runs():
    liveness.mark_silent()


@shared_task(name="tracker.sweep_jobs")
def sweep_jobs():
    jobs.sweep()


@shared_task(name="tracker.judge", bind=True, max_retries=60)
def judge(self, job_id):
    reproduction = Reproduction.objects.select_related("job", "original", "rerun").filter(job_id=job_id, judged_at=None).first()
    if reproduction is not None and not jobs.judge(reproduction) and not jobs.has_all(reproduction):
        raise self.retry(countdown=1)


@shared_task(name="tracker.summarise")
def summarise():
    summaries.summarise_due()
    stitched.recompute_due()


@shared_task(name="tracker.compact")
def compact():
    compaction.run_due()


@shared_task(name="tracker.empty_trash")
def empty_trash():
    freeing.empty_trash()


@shared_task(name="tracker.retain")
def retain():
    """Once more than the beat asks would be harmless: a rule does its work on a run once."""
    retention.apply(seconds=60)


@shared_task(name="tracker.forget")
def forget():
    """Sessions and login links that are over."""
    call_command("clearsessions")
    accounts.forget_old_links()
