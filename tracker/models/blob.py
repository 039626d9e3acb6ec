"""Bytes by digest, once per project."""

from django.db import models

from tracker.models.project import Project


class BlobQuerySet(models.QuerySet):
    def visible_to(self, user):
        return self.filter(project__in=Project.objects.visible_to(user))


class Blob(models.Model):
    project = models.ForeignKey(Project, models.CASCADE, related_name="blobs")
    digest = models.CharField(max_length=71)
    bytes = models.BigIntegerField()
    object_key = models.CharField(max_length=200, help_text="Made by the server; never contains user text.")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = BlobQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "digest"], name="one_blob_per_project_and_digest")]
