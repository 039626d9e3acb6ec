"""A request to play a run again, with its job, its new run, its evidence and its verdict."""

from __future__ import annotations

from django.db import models

from tracker.domain.ids import new_id
from tracker.models.job import Job
from tracker.models.project import Project
from tracker.models.run import Run
from tracker.models.user import User


class ReproductionQuerySet(models.QuerySet):
    def visible_to(self, user) -> ReproductionQuerySet:
        return self.filter(original__project__in=Project.objects.visible_to(user))


class Reproduction(models.Model):
    id = models.CharField(primary_key=True, max_length=26, default=new_id, editable=False)
    original = models.ForeignKey(Run, models.CASCADE, related_name="reproductions")
    rerun = models.OneToOneField(Run, models.SET_NULL, null=True, related_name="reproduction")
    job = models.OneToOneField(Job, models.CASCADE, related_name="reproduction")
    requested_by = models.ForeignKey(User, models.SET_NULL, null=True)
    overrides = models.JSONField(default=dict)
    scope = models.JSONField(default=dict)
    preflight = models.JSONField(default=dict)
    verdict = models.JSONField(null=True, help_text="docs/formats.md, Verdict.")
    judged_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ReproductionQuerySet.as_manager()
