"""The tracker's maintenance: doors to services, each harmless when it runs twice at once. The schedule is in tracker/celery.py."""

from celery import shared_task
from django.core.management import call_command

from tracker import queue
from tracker.models import Reproduction
from tracker.services import accounts, compaction, freeing, jobs, liveness, merging, retention, stitched, summaries


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
    if not compaction.is_spread():
        compaction.run_due()
        return
    for run_id in compaction.due_runs():  # whoever comes first takes a writer; what waits for long is dropped, the next turn does it
        compact_run.apply_async(args=[run_id], queue=queue.MAINTENANCE, expires=10)


@shared_task(name="tracker.compact_run")
def compact_run(run_id):
    compaction.compact_due_of(run_id)


@shared_task(name="tracker.sweep_blocks")
def sweep_blocks():
    freeing.sweep_objects()
    merging.merge_due()


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
