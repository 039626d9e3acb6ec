"""Maintenance: every scheduled task exists, runs, and does no harm when it runs twice."""

import json
import os
import subprocess
import sys

import pytest

from tracker import tasks
from tracker.celery import app


def test_every_scheduled_task_is_a_task_on_the_maintenance_queue():
    app.loader.import_default_modules()
    for entry in app.conf.beat_schedule.values():
        assert entry["task"] in app.tasks
        assert entry["options"]["queue"] == "encore.maintenance"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "name", ["mark_silent_runs", "sweep_jobs", "summarise", "compact", "sweep_blocks", "empty_trash", "retain", "forget"]
)
def test_each_runs_twice_on_data_it_finds(name, run):
    for _ in range(2):
        getattr(tasks, name)()


@pytest.mark.slow
def test_the_commands_work_on_an_empty_home(tmp_path):
    """user, token and project, each with --json, before anything was ever started there."""
    program = (
        "import argparse, sys; from tracker import commands; parser = argparse.ArgumentParser(); "
        "commands.register(parser.add_subparsers(required=True)); args = parser.parse_args(); sys.exit(args.run(args))"
    )
    env = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "ENCORE_HOME")} | {"HOME": str(tmp_path)}

    def encore(*words, status=0, stdin=""):
        done = subprocess.run(
            [sys.executable, "-c", program, *words, "--home", str(tmp_path / "home")], capture_output=True, text=True, env=env, input=stdin
        )
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout) if status == 0 else done.stderr

    assert encore("user", "create", "ann", "--superuser", "--json") == {"user": "ann", "superuser": True}
    assert "already" in encore("user", "create", "ann", "--json", status=1)
    assert encore("user", "create", "bea", "--password", "-", "--json", stdin="correct horse battery\n")["user"] == "bea"
    token = encore("token", "create", "--user", "ann", "--scope", "api", "--json")
    assert token["token"].startswith("enc_")
    assert token["scopes"] == ["api"]
    assert "no user" in encore("token", "create", "--user", "nobody", "--json", status=1)
    assert encore("project", "create", "gpt", "--json") == {"project": "gpt", "owner": "ann"}
    assert "/login/" in encore("user", "invite", "cid", "--json")["login_url"]
