"""Console output, as it was printed."""

from django.db import models

from tracker.models.run import Run
from tracker.models.writer import Writer


class LogChunk(models.Model):
    run = models.ForeignKey(Run, models.CASCADE)
    writer = models.ForeignKey(Writer, models.CASCADE)
    number = models.BigIntegerField(help_text="The record's number: order within the writer.")
    rank = models.IntegerField(default=0)
    stream = models.CharField(max_length=6)
    time_us = models.BigIntegerField()
    text = models.TextField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["writer", "number"], name="one_log_chunk_per_record")]
        indexes = [models.Index(fields=["run", "id"], name="log_run")]
