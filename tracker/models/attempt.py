"""One start of a run: first start, elastic restart, resume. The recipe belongs to it."""

from django.db import models

from tracker.models.run import Run


class Attempt(models.Model):
    run = models.ForeignKey(Run, models.CASCADE, related_name="attempts")
    number = models.PositiveIntegerField(help_text="From 1; the k-th start of a rank.")
    reason = models.CharField(max_length=50, default="start")
    world_size = models.PositiveIntegerField(default=1)
    rewound_to = models.BigIntegerField(null=True, help_text="What earlier attempts have beyond this step is an old branch.")
    launch = models.JSONField(default=dict)
    recipe = models.JSONField(default=dict, help_text="Sections of docs/formats.md, Recipe.")
    started_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "number"], name="one_attempt_per_run_and_number")]
        ordering = ["number"]
