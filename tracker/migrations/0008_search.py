import math

import django.db.models.deletion
from django.db import migrations, models

import tracker.models.key

TEXTS = {"tracker_runvalue": ("path", "text"), "tracker_run": ("name", "group", "job_type", "host")}


def by_code_point(apps, schema_editor):
    """SQLite and Python order text by code point; PostgreSQL by the locale of its database, if it is not told."""
    if schema_editor.connection.vendor != "postgresql":
        return
    types = {"path": "varchar(500)", "text": "varchar(500)", "job_type": "varchar(100)"}
    for table, columns in TEXTS.items():
        changes = ", ".join(f'ALTER COLUMN "{name}" TYPE {types.get(name, "varchar(250)")} COLLATE "C"' for name in columns)
        schema_editor.execute(f"ALTER TABLE {table} {changes}")


def fill_slots(apps, schema_editor):
    values = apps.get_model("tracker", "RunValue").objects
    for project, kind, path in values.order_by("project_id", "kind", "path").values_list("project_id", "kind", "path").distinct():
        values.filter(project_id=project, kind=kind, path=path).update(slot=tracker.models.key.slot_of(project, kind, path))
    for text, number in (("Infinity", math.inf), ("-Infinity", -math.inf)):
        values.filter(text=text, number=None).update(number=number)
    if schema_editor.connection.vendor == "postgresql":  # a row that was changed twice is checked later, and no table altered before
        schema_editor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        schema_editor.execute("SET CONSTRAINTS ALL DEFERRED")


class Migration(migrations.Migration):
    dependencies = [("tracker", "0007_merging")]

    operations = [
        migrations.AddField("runvalue", "slot", tracker.models.key.SlotField(default=0, editable=False)),
        migrations.RunPython(fill_slots, migrations.RunPython.noop),
        migrations.RemoveIndex("runvalue", "value_number"),
        migrations.RemoveIndex("runvalue", "value_text"),
        migrations.AlterField(
            "runvalue",
            "project",
            models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, to="tracker.project"),
        ),
        migrations.AlterField(
            "runvalue",
            "run",
            models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name="values", to="tracker.run"),
        ),
        migrations.RunPython(by_code_point, migrations.RunPython.noop),
        migrations.AddIndex(
            "runvalue",
            models.Index(fields=["slot", "number", "run"], name="value_by_number", condition=models.Q(number__isnull=False)),
        ),
        migrations.AddIndex(
            "runvalue",
            models.Index(fields=["slot", "text", "run"], name="value_by_text", condition=models.Q(text__isnull=False)),
        ),
        migrations.CreateModel(
            "WideKeys",
            [
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("bucket", models.SmallIntegerField()),
                ("hashes", models.BinaryField(help_text="8 bytes each, sorted.")),
                ("project", models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, to="tracker.project")),
                (
                    "run",
                    models.ForeignKey(
                        db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name="wide_keys", to="tracker.run"
                    ),
                ),
            ],
            {
                "indexes": [models.Index(fields=["project", "bucket"], name="wide_by_bucket")],
                "constraints": [models.UniqueConstraint(fields=("run", "bucket"), name="one_bucket_per_run")],
            },
        ),
        migrations.CreateModel(
            "SearchedKey",
            [
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("path", models.CharField(max_length=500)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("project", models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, to="tracker.project")),
            ],
            {"constraints": [models.UniqueConstraint(fields=("project", "path"), name="one_searched_key_per_project")]},
        ),
    ]
