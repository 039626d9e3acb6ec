"""An image, sound, table or figure logged at a step; its bytes are a blob, or all of it is in ``meta``."""

from django.db import models

from tracker.models.run import Run
from tracker.models.writer import Writer


class Media(models.Model):
    run = models.ForeignKey(Run, models.CASCADE, related_name="media")
    writer = models.ForeignKey(Writer, models.CASCADE)
    number = models.BigIntegerField()
    key = models.CharField(max_length=500)
    kind = models.CharField(max_length=20)
    step = models.BigIntegerField(null=True)
    time_us = models.BigIntegerField()
    digest = models.CharField(max_length=71, blank=True, help_text="Empty: there are no bytes beside meta.")
    bytes = models.BigIntegerField()
    mime = models.CharField(max_length=100, blank=True)
    meta = models.JSONField(default=dict)

    class Meta:
        indexes = [models.Index(fields=["run", "key", "step"], name="media_of_key_at_step")]
