"""Something that happened to a run at an instant."""

from django.db import models

from tracker.models.run import Run
from tracker.models.writer import Writer


class Event(models.Model):
    run = models.ForeignKey(Run, models.CASCADE, related_name="events")
    writer = models.ForeignKey(Writer, models.CASCADE, null=True)
    number = models.BigIntegerField(null=True)
    name = models.CharField(max_length=50)
    step = models.BigIntegerField(null=True)
    time_us = models.BigIntegerField()
    data = models.JSONField(default=dict)

    class Meta:
        indexes = [models.Index(fields=["run", "time_us"], name="event_run_time")]
