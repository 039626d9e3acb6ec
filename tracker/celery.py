"""The tracker's Celery app: maintenance only. The runner has an app of its own; they share a broker and task names."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tracker.settings")

app = Celery("tracker")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.update(
    task_default_queue="encore.maintenance",
    task_ignore_result=True,
    accept_content=["json"],
    task_serializer="json",
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)
app.conf.beat_schedule = {
    name: {"task": f"tracker.{name}", "schedule": seconds, "options": {"queue": "encore.maintenance", "expires": max(seconds * 2, 10)}}
    # A task that waited for two turns is dropped: the next turn does its work.
    for name, seconds in {
        "summarise": 2.0,
        "compact": 5.0,
        "sweep_jobs": 5.0,
        "mark_silent_runs": 10.0,
        "sweep_blocks": 300.0,
        "empty_trash": 3600.0,
        "retain": 3600.0,
        "forget": 3600.0,
    }.items()
}
app.autodiscover_tasks(["tracker"])
