"""What may go after how long, as somebody said it; and what was done to which run."""

from __future__ import annotations

from django.db import models

from tracker.models.project import Project
from tracker.models.run import Run
from tracker.models.user import User


class RetentionRule(models.Model):
    """Of a project; without one, of every project that has no rule of its own."""

    class Action(models.TextChoices):
        KEEP = "keep"  # nothing at all: a project with this rule is not touched by the instance's
        TRASH = "trash"  # runs go to the trash, as if somebody had deleted them
        POINTS = "points"  # points of some keys go, at every resolution; what they amount to stays
        LOGS = "logs"  # console lines go
        COLD = "cold"  # blocks move to the cold store; everything stays readable

    project = models.ForeignKey(Project, models.CASCADE, null=True, related_name="retention_rules")
    action = models.CharField(max_length=10, choices=Action.choices)
    after_days = models.PositiveIntegerField(default=0, help_text="Since the run's end.")
    keys = models.JSONField(default=list, help_text="Names or globs, for points.")
    filter = models.TextField(blank=True, help_text="Which runs, in the filter language; empty: all.")
    archived = models.BooleanField(null=True, help_text="Only archived runs, only others, or both.")
    created_by = models.ForeignKey(User, models.SET_NULL, null=True)
    created_at = models.DateTimeField(auto_now_add=True)


class RetentionDone(models.Model):
    """Once a run and rule's meaning, so that a pass looks at a run once; also the account of what went."""

    run = models.ForeignKey(Run, models.CASCADE, related_name="retention_done")
    action = models.CharField(max_length=10)
    detail = models.CharField(max_length=64, blank=True, help_text="Of points: a digest of the keys.")
    points = models.BigIntegerField(default=0)
    bytes = models.BigIntegerField(default=0)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "action", "detail"], name="retention_once_per_run")]
