"""Run beside the benchmark's server: two projects with many runs, their values in bulk, past the services. Prints a session's key.

python _runs_load.py slug=runs …
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import django

django.setup()

from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY  # noqa: E402
from django.contrib.sessions.backends.db import SessionStore  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402

from tracker.domain import storable  # noqa: E402
from tracker.domain.ids import new_id  # noqa: E402
from tracker.models import Project, Run, RunValue, User  # noqa: E402
from tracker.models.key import slot_of  # noqa: E402

OTHERS, METRICS = 10, 4
RUN = ["id", "project_id", "user_id", "name", "state", "group", "job_type", "tags", "notes", "config", "summary", "fork_run", "is_stitched",
       "host", "created_at", "started_at", "finished_at", "dropped", "asks"]  # fmt: skip
VALUE = ["project_id", "run_id", "kind", "path", "slot", "number", "text"]
INDEXES = ("value_by_number", "value_by_text")
START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def runs(project: Project, user: User, count: int) -> Iterator[tuple[tuple, list[tuple]]]:
    """(row of the run, rows of its values) each."""
    chance = random.Random(1)
    slots: dict[tuple[str, str], int] = {}
    for at in range(count):
        config = {
            "lr": 10 ** chance.uniform(-5, -1),
            "model": {"kind": chance.choice(["gpt", "bert", "mlp", "resnet"]), "layers": chance.choice([6, 12, 24, 48])},
            "seed": at % 7,
            "data": {f"field_{n}": chance.choice([0.1, 0.9, at, "adam"]) for n in range(OTHERS)},
        }
        metrics = {"val/loss": chance.gauss(2, 0.5), "val/acc": chance.random(), **{f"train/m{n}": chance.random() for n in range(METRICS)}}
        run, when = new_id(), START + timedelta(minutes=at)
        moment = when if connection.vendor == "postgresql" else when.strftime("%Y-%m-%d %H:%M:%S")
        state = "finished" if at % 5 else "failed"
        row = (run, project.id, user.id, f"run-{at}", state, f"group-{at % 100}", "", "[]", "", json.dumps(config), "{}", "", False,
               f"node{at % 16}", moment, moment, moment, "{}", "{}")  # fmt: skip
        values = []
        for kind, found in (("config", storable.leaves(config, 1000)), ("summary", metrics)):
            for path, value in found.items():
                if (kind, path) not in slots:
                    slots[kind, path] = slot_of(project.id, kind, path)
                number, text = (None, value) if isinstance(value, str) else (value, None)
                values.append((project.id, run, kind, path, slots[kind, path], number, text))
        yield row, values


def load(project: Project, user: User, count: int) -> None:
    everything = list(runs(project, user, count))
    rows = [(Run, RUN, [run for run, _ in everything]), (RunValue, VALUE, (value for _, values in everything for value in values))]
    for model, names, found in rows:
        columns = ", ".join(f'"{name}"' for name in names)
        with connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                with cursor.copy(f"COPY {model._meta.db_table} ({columns}) FROM STDIN") as copy:
                    for row in found:
                        copy.write_row(row)
            else:
                marks = ", ".join(["?"] * len(names))
                connection.connection.execute("BEGIN")
                connection.connection.executemany(f"INSERT INTO {model._meta.db_table} ({columns}) VALUES ({marks})", found)
                connection.connection.execute("COMMIT")


def main() -> None:
    user = User.objects.get(username="bench")
    connection.ensure_connection()
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("PRAGMA synchronous=OFF")
            cursor.execute("PRAGMA foreign_keys=OFF")
            cursor.execute("PRAGMA cache_size=-300000")
        for name in INDEXES:
            cursor.execute(f"DROP INDEX {name}")
    for told in sys.argv[1:]:
        slug, _, count = told.partition("=")
        load(Project.objects.create(slug=slug, name=slug), user, int(count))
    wanted = [index for index in RunValue._meta.indexes if index.name in INDEXES]
    with connection.schema_editor() as editor:
        for index in wanted:
            editor.add_index(RunValue, index)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE" if connection.vendor == "postgresql" else "ANALYZE")
        if connection.vendor == "sqlite":
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    call_command("collectstatic", interactive=False, verbosity=0)
    session = SessionStore()
    session[SESSION_KEY], session[BACKEND_SESSION_KEY] = str(user.pk), "django.contrib.auth.backends.ModelBackend"
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.create()
    print(session.session_key)


if __name__ == "__main__":
    main()
