from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("tracker", "0006_media_by_key")]

    operations = [
        migrations.AddField(
            model_name="writer",
            name="compact_after",
            field=models.DateTimeField(null=True, help_text="Compaction leaves it alone until then: a worker has it, or it failed."),
        ),
        migrations.AddField(
            model_name="writer",
            name="blocked_at",
            field=models.DateTimeField(null=True, help_text="Since when no block can be made of its segments."),
        ),
        migrations.AlterField(
            model_name="metricblock",
            name="tier",
            field=models.PositiveSmallIntegerField(
                default=0, help_text="How often it was merged; 100, 200, 201: see services/merging.py."
            ),
        ),
        migrations.AddIndex(
            model_name="metricblock",
            index=models.Index(fields=["run", "writer", "tier"], name="block_open", condition=models.Q(("tier__lt", 100))),
        ),
    ]
