"""One process start that writes into a run, with what the server has of it."""

from django.db import models

from tracker.models.attempt import Attempt
from tracker.models.run import Run


class Writer(models.Model):
    class Kind(models.TextChoices):
        TRAINER = "trainer"
        NODE = "node"
        IMPORT = "import"

    id = models.CharField(primary_key=True, max_length=26)
    run = models.ForeignKey(Run, models.CASCADE, related_name="writers")
    attempt = models.ForeignKey(Attempt, models.CASCADE, related_name="writers")
    kind = models.CharField(max_length=10, choices=Kind.choices, default=Kind.TRAINER)
    rank = models.IntegerField(default=0)
    local_rank = models.IntegerField(default=0)
    world_size = models.IntegerField(default=1)
    host = models.CharField(max_length=250, blank=True)
    pid = models.BigIntegerField(null=True)
    info = models.JSONField(default=dict, help_text="writer.json as sent.")
    started_us = models.BigIntegerField()
    anchor_wall_us = models.BigIntegerField()
    next = models.BigIntegerField(default=0, help_text="Records below are stored.")
    upto = models.BigIntegerField(default=0, help_text="Records below lie in blocks, the rest in segments.")
    summarised = models.BigIntegerField(default=0, help_text="Records below are counted in MetricSummary rows.")
    hot_bytes = models.BigIntegerField(default=0, help_text="Of its segments' bodies: what waits for compaction, and for backpressure.")
    hot_segments = models.IntegerField(default=0)
    compact_after = models.DateTimeField(null=True, help_text="Compaction leaves it alone until then: a worker has it, or it failed.")
    blocked_at = models.DateTimeField(null=True, help_text="Since when no block can be made of its segments.")
    last_step = models.BigIntegerField(null=True)  # the highest it came to
    heartbeat_at = models.DateTimeField(null=True)
    skew_us = models.BigIntegerField(null=True, help_text="The server's clock less its sender's, at its last heartbeat.")
    finish = models.JSONField(null=True, help_text="The data of its finish or gone event.")
    opened_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        # Both hold only the few writers with work waiting: the tasks that look each second must not scan 100,000.
        indexes = [
            models.Index(fields=["run"], name="writer_hot", condition=models.Q(hot_bytes__gte=65536)),
            models.Index(fields=["run", "id"], name="writer_unsummarised", condition=models.Q(summarised__lt=models.F("next"))),
        ]
