"""The metric store's rows (docs/formats.md, Metric store): hot segments, the index of blocks, trash, summaries."""

from django.db import models

from tracker.models.run import Run
from tracker.models.writer import Writer


class MetricSegment(models.Model):
    """One batch's body as sent. Hash-partitioned by run on PostgreSQL, hence run in the key."""

    pk = models.CompositePrimaryKey("run_id", "writer_id", "first")
    run = models.ForeignKey(Run, models.CASCADE, db_constraint=False)
    writer = models.ForeignKey(Writer, models.CASCADE, db_constraint=False)
    first = models.BigIntegerField()
    last = models.BigIntegerField()
    points = models.BigIntegerField()
    lo_step = models.BigIntegerField(null=True)
    hi_step = models.BigIntegerField(null=True)
    keylists = models.TextField(blank=True, help_text="Hashes of the dense frames' key lists, space separated; '*' for a sparse frame.")
    encoding = models.CharField(max_length=10, blank=True)
    body = models.BinaryField()
    received_at = models.DateTimeField(auto_now_add=True)


class MetricKeyset(models.Model):
    pk = models.CompositePrimaryKey("run_id", "keylist")
    run = models.ForeignKey(Run, models.CASCADE, db_constraint=False)
    keylist = models.CharField(max_length=16)
    names = models.BinaryField(help_text="zlib of the canonical JSON [types, keys].")


class MetricBlock(models.Model):
    run = models.ForeignKey(Run, models.CASCADE)
    writer = models.ForeignKey(Writer, models.CASCADE)
    first = models.BigIntegerField()
    last = models.BigIntegerField()
    tier = models.PositiveSmallIntegerField(default=0, help_text="How often it was merged; 100, 200, 201: see services/merging.py.")
    points = models.BigIntegerField()
    lo_step = models.BigIntegerField()
    hi_step = models.BigIntegerField()
    bytes = models.BigIntegerField()
    directory_bytes = models.IntegerField()
    object_key = models.CharField(max_length=200)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [
            models.Index(fields=["run", "writer", "first"], name="block_run_writer_first"),
            # Only what may still be merged: the rest are many more.
            models.Index(fields=["run", "writer", "tier"], name="block_open", condition=models.Q(tier__lt=100)),
        ]


class MetricTrash(models.Model):
    object_key = models.CharField(max_length=200, unique=True)
    delete_after = models.DateTimeField(db_index=True)


class MetricSummary(models.Model):
    """What a key of a run amounts to, per rank: kept up at ingest, so that tables and lists read no series."""

    run = models.ForeignKey(Run, models.CASCADE, related_name="metric_summaries")
    key = models.CharField(max_length=500)
    rank = models.IntegerField(default=0)
    count = models.BigIntegerField(default=0)
    nan_count = models.BigIntegerField(default=0)
    first_nan_step = models.BigIntegerField(null=True)
    last = models.FloatField(null=True)
    last_text = models.CharField(max_length=30, blank=True, help_text="The exact last value: NaN, Infinity, or an integer beyond 2**53.")
    last_step = models.BigIntegerField(null=True)
    last_time = models.BigIntegerField(null=True)
    min = models.FloatField(null=True)
    max = models.FloatField(null=True)
    sum = models.FloatField(null=True)
    hi_step = models.BigIntegerField(null=True, help_text="Of stitched runs: points beyond it can be added, others make it stale.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "key", "rank"], name="one_summary_per_run_key_rank")]


class StaleSummary(models.Model):
    """A key of a stitched run whose summary is to be made again from its series."""

    run = models.ForeignKey(Run, models.CASCADE, related_name="stale_summaries")
    key = models.CharField(max_length=500, blank=True, help_text="Empty: all of them.")
    marks = models.BigIntegerField(default=1, help_text="Counted up with each reason; taken away only if it is as it was read.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "key"], name="one_stale_summary_per_run_and_key")]
