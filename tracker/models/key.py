"""What metric keys mean, and the values that runs are filtered and sorted by."""

from django.db import models

from tracker.models.run import Run


class KeyDefinition(models.Model):
    run = models.ForeignKey(Run, models.CASCADE, related_name="key_definitions")
    pattern = models.CharField(max_length=500)
    fields = models.JSONField(default=dict, help_text="Any of goal, x, kind, reduce, over, same, result.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "pattern"], name="one_definition_per_run_and_pattern")]


class RunValue(models.Model):
    """One typed leaf of config or summary: ``path`` is dotted for config (``model.layers``), the key for metrics.

    Tags are kept here too (``path`` is the tag), since JSON lists cannot be searched alike on both databases.
    """

    class Kind(models.TextChoices):
        CONFIG = "config"
        SUMMARY = "summary"
        TAG = "tag"

    project = models.ForeignKey("tracker.Project", models.CASCADE)
    run = models.ForeignKey(Run, models.CASCADE, related_name="values")
    kind = models.CharField(max_length=7, choices=Kind.choices)
    path = models.CharField(max_length=500)
    number = models.FloatField(null=True)
    text = models.CharField(max_length=500, null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "kind", "path"], name="one_value_per_run_kind_path")]
        indexes = [
            models.Index(fields=["project", "kind", "path", "number"], name="value_number"),
            models.Index(fields=["project", "kind", "path", "text"], name="value_text"),
        ]
