"""A run: one training with all its ranks and restarts."""

from __future__ import annotations

from django.db import models

from tracker.domain.ids import new_id
from tracker.domain.lifecycle import RunState
from tracker.models.project import Project
from tracker.models.user import User


class RunQuerySet(models.QuerySet):
    def visible_to(self, user) -> RunQuerySet:
        return self.filter(project__in=Project.objects.visible_to(user), deleted_at=None)

    def editable_by(self, user) -> RunQuerySet:
        return self.filter(project__in=Project.objects.editable_by(user), deleted_at=None)


class Run(models.Model):
    id = models.CharField(primary_key=True, max_length=26, default=new_id, editable=False)
    project = models.ForeignKey(Project, models.CASCADE, related_name="runs")
    user = models.ForeignKey(User, models.SET_NULL, null=True, related_name="runs")
    name = models.CharField(max_length=250)
    state = models.CharField(max_length=10, choices=[(s.value, s.value) for s in RunState], default=RunState.RUNNING.value)
    group = models.CharField(max_length=250, blank=True)
    job_type = models.CharField(max_length=100, blank=True)
    tags = models.JSONField(default=list)
    notes = models.TextField(blank=True)
    config = models.JSONField(default=dict)
    summary = models.JSONField(default=dict, help_text="What the program set itself; metrics' own summaries are MetricSummary rows.")
    fork_run = models.CharField(max_length=26, blank=True, help_text="Whose history it goes on; that run may not have come yet.")
    fork_step = models.BigIntegerField(null=True, help_text="Up to which step, inclusive.")
    is_stitched = models.BooleanField(default=False, help_text="A fork, or rewound once: its summaries are made from the stitched history.")
    host = models.CharField(max_length=250, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    heartbeat_at = models.DateTimeField(null=True, help_text="By the server's clock alone.")
    stop_requested_at = models.DateTimeField(null=True)
    exit_code = models.IntegerField(null=True)
    signal = models.IntegerField(null=True)
    error = models.JSONField(null=True, help_text="{type, message, traceback} of the exception that ended it, masked.")
    dropped = models.JSONField(default=dict, help_text="What the SDK could not take: reason -> count.")
    asks = models.JSONField(default=dict, help_text='What the senders are asked for: {"stacks": {"at", "by", "given": [hosts]}}.')
    archived_at = models.DateTimeField(null=True)
    deleted_at = models.DateTimeField(null=True)
    purged_at = models.DateTimeField(null=True, help_text="Only the id is left: a tombstone that late senders are told of.")

    objects = RunQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["project", "-created_at", "id"], name="run_project_newest"),
            models.Index(fields=["-created_at", "id"], name="run_newest"),
            models.Index(fields=["state", "heartbeat_at"], name="run_state_heartbeat"),
            models.Index(fields=["fork_run"], name="run_forks", condition=~models.Q(fork_run="")),
        ]

    def __str__(self) -> str:
        return self.name
