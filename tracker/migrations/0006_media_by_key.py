from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("tracker", "0005_lineage")]

    operations = [
        migrations.AlterField(
            model_name="media",
            name="digest",
            field=models.CharField(blank=True, help_text="Empty: there are no bytes beside meta.", max_length=71),
        ),
        migrations.AddIndex(model_name="media", index=models.Index(fields=["run", "key", "step"], name="media_of_key_at_step")),
    ]
