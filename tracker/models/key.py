"""What metric keys mean, and the values that runs are filtered and sorted by."""

import hashlib

from django.db import models

from tracker.models.run import Run


class KeyDefinition(models.Model):
    run = models.ForeignKey(Run, models.CASCADE, related_name="key_definitions")
    pattern = models.CharField(max_length=500)
    fields = models.JSONField(default=dict, help_text="Any of goal, x, kind, reduce, over, same, result.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "pattern"], name="one_definition_per_run_and_pattern")]


def slot_of(project: str, kind: str, path: str) -> int:
    """The number that stands for one key of one project in the indexes: 8 bytes instead of up to 2,533.

    64 bits of BLAKE2b over the three, signed. Two keys that shared one would be found as one; by chance that takes billions of keys, and
    whoever forges it does so within his own project.
    """
    digest = hashlib.blake2b(f"{project}\0{kind}\0{path}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big", signed=True)


class SlotField(models.BigIntegerField):
    """Filled from project, kind and path whenever a row is written, in bulk too."""

    def pre_save(self, model_instance, add):
        found = slot_of(model_instance.project_id, str(model_instance.kind), model_instance.path)
        setattr(model_instance, self.attname, found)
        return found


class RunValue(models.Model):
    """One typed leaf of config or summary: ``path`` is dotted for config (``model.layers``), the key for metrics.

    Tags are kept here too (``path`` is the tag), since JSON lists cannot be searched alike on both databases.

    The two indexes answer "which runs have this value" alone, without the rows: one key of one project (``slot``), its values in their
    order, the runs. On PostgreSQL ``text`` is collated by code point, as in SQLite and Python.
    """

    class Kind(models.TextChoices):
        CONFIG = "config"
        SUMMARY = "summary"
        TAG = "tag"

    project = models.ForeignKey("tracker.Project", models.CASCADE, db_index=False)
    run = models.ForeignKey(Run, models.CASCADE, related_name="values", db_index=False)
    kind = models.CharField(max_length=7, choices=Kind.choices)
    path = models.CharField(max_length=500)
    slot = SlotField(default=0, editable=False)
    number = models.FloatField(null=True)
    text = models.CharField(max_length=500, null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "kind", "path"], name="one_value_per_run_kind_path")]
        indexes = [
            models.Index(fields=["slot", "number", "run"], name="value_by_number", condition=models.Q(number__isnull=False)),
            models.Index(fields=["slot", "text", "run"], name="value_by_text", condition=models.Q(text__isnull=False)),
        ]


class WideKeys(models.Model):
    """Which metrics a run has beyond those that have summaries: 64-bit hashes, in 256 buckets by their first byte, so that asking who
    has a metric reads some bytes of each wide run. 8 bytes a metric, where a row would take a hundred."""

    run = models.ForeignKey(Run, models.CASCADE, related_name="wide_keys", db_index=False)
    project = models.ForeignKey("tracker.Project", models.CASCADE, db_index=False)
    bucket = models.SmallIntegerField()
    hashes = models.BinaryField(help_text="8 bytes each, sorted.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "bucket"], name="one_bucket_per_run")]
        indexes = [models.Index(fields=["project", "bucket"], name="wide_by_bucket")]


class SearchedKey(models.Model):
    """A metric that somebody filtered or sorted by, and that wide runs therefore keep a summary of."""

    project = models.ForeignKey("tracker.Project", models.CASCADE, db_index=False)
    path = models.CharField(max_length=500)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "path"], name="one_searched_key_per_project")]
