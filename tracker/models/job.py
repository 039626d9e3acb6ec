"""One thing for a worker to do. The row is the truth; Celery carries only the wake-up."""

from __future__ import annotations

from django.db import models

from tracker.domain.ids import new_id
from tracker.domain.lifecycle import JobState
from tracker.models.project import Project
from tracker.models.worker import Worker


class JobQuerySet(models.QuerySet):
    def visible_to(self, user) -> JobQuerySet:
        return self.filter(project__in=Project.objects.visible_to(user))


class Job(models.Model):
    """``fence`` grows with every claim; each write of a job carries it and a stale one is refused."""

    id = models.CharField(primary_key=True, max_length=26, default=new_id, editable=False)
    project = models.ForeignKey(Project, models.CASCADE, related_name="jobs")
    kind = models.CharField(max_length=20, default="reproduce")
    queue = models.CharField(max_length=100, default="default")
    state = models.CharField(max_length=10, choices=[(s.value, s.value) for s in JobState], default=JobState.QUEUED.value)
    worker = models.ForeignKey(Worker, models.SET_NULL, null=True, related_name="jobs")
    fence = models.PositiveIntegerField(default=0)
    attempts = models.PositiveIntegerField(default=0)
    max_attempts = models.PositiveIntegerField(default=2)
    lease_until = models.DateTimeField(null=True)
    heartbeat_at = models.DateTimeField(null=True)
    published_at = models.DateTimeField(null=True)
    cancel_requested_at = models.DateTimeField(null=True)
    order = models.JSONField(default=dict, help_text="docs/formats.md, Job order, less the key and the fence.")
    evidence = models.JSONField(null=True)
    failure = models.JSONField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        indexes = [models.Index(fields=["state", "lease_until"], name="job_state_lease")]


class JobStep(models.Model):
    job = models.ForeignKey(Job, models.CASCADE, related_name="steps")
    fence = models.PositiveIntegerField()
    name = models.CharField(max_length=20)
    state = models.CharField(max_length=10, help_text="running, done, failed or skipped")
    message = models.TextField(blank=True)
    detail = models.JSONField(default=dict)
    started_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["job", "fence", "name"], name="one_step_per_job_fence_name")]
        ordering = ["id"]


class JobLog(models.Model):
    """Output of a job's steps (installer, checks); the program's own output is the new run's log."""

    job = models.ForeignKey(Job, models.CASCADE, related_name="logs")
    fence = models.PositiveIntegerField()
    number = models.PositiveIntegerField()
    step = models.CharField(max_length=20)
    text = models.TextField()
    received_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["job", "fence", "number"], name="one_job_log_per_number")]
        ordering = ["id"]
