"""The door: one task, woken by the tracker (tracker/queue.py has the name)."""

from runner import pipeline
from runner.app import app, shutting_down


@app.task(name="runner.perform", ignore_result=True)
def perform(job_id: str) -> str:
    return pipeline.perform(job_id, shutting_down=shutting_down)
