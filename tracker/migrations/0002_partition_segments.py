"""On PostgreSQL the hot segments are hash-partitioned by run from the first day: splitting a full table later would stop ingest."""

from django.db import migrations

PARTITIONS = 16


def partition(apps, schema_editor):
    if schema_editor.connection.vendor != "postgresql":
        return
    run = schema_editor.execute
    run("ALTER TABLE tracker_metricsegment RENAME TO tracker_metricsegment_plain")
    run("CREATE TABLE tracker_metricsegment (LIKE tracker_metricsegment_plain INCLUDING DEFAULTS) PARTITION BY HASH (run_id)")
    run("DROP TABLE tracker_metricsegment_plain")
    run("ALTER TABLE tracker_metricsegment ADD PRIMARY KEY (run_id, writer_id, first)")
    for n in range(PARTITIONS):
        run(
            f"CREATE TABLE tracker_metricsegment_{n} PARTITION OF tracker_metricsegment "
            f"FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {n})"
        )
    # Compressed bodies do not compress again: skip the attempt.
    run("ALTER TABLE tracker_metricsegment ALTER COLUMN body SET STORAGE EXTERNAL")
    run("CREATE INDEX metricsegment_writer ON tracker_metricsegment (writer_id)")


class Migration(migrations.Migration):
    dependencies = [("tracker", "0001_initial")]
    operations = [migrations.RunPython(partition, migrations.RunPython.noop)]
