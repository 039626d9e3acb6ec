"""The runner's Celery app: carries wake-ups only.

A message is acknowledged when it arrives; the job's row, its lease and its fence are the truth.

celery -A runner.app worker -Q encore.jobs.default -c 1
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from typing import Any

from celery import Celery, signals

from runner import pipeline, settings
from runner.report import Tracker

HELLO_SECONDS = 10.0
log = logging.getLogger("encore.runner")
shutting_down = multiprocessing.get_context("fork").Event()
"""Set in the worker's main process, seen by the child that performs."""

app = Celery("runner", broker=os.environ.get("ENCORE_BROKER_URL", ""), include=["runner.tasks"])
app.conf.update(
    accept_content=["json"],
    task_serializer="json",
    result_backend=None,
    task_ignore_result=True,
    # Early: a job of days must not hang on the broker's visibility timeout, and a lost worker is noticed by its lease.
    task_acks_late=False,
    worker_prefetch_multiplier=1,
    worker_concurrency=1,
    worker_pool="prefork",
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
    task_default_queue="encore.jobs.default",
)


def hello_until(stop: threading.Event, chosen: settings.Settings) -> None:
    """Says each ten seconds that this worker is there. Never raises: a tracker that restarts is no reason to end."""
    tracker = Tracker(chosen.url, chosen.token)
    while not stop.is_set():
        try:
            tracker.hello(name=chosen.name, queues=list(chosen.queues), info=pipeline.info(chosen), patience_seconds=0)
        except Exception as error:
            log.warning("hello was not heard: %s", error)
        stop.wait(HELLO_SECONDS)


@signals.worker_ready.connect
def _begin(**_: Any) -> None:
    threading.Thread(target=hello_until, args=(threading.Event(), settings.load()), daemon=True).start()


@signals.worker_shutting_down.connect
def _end(**_: Any) -> None:
    shutting_down.set()
