"""Offline starts of one run and a fork of it, made by real programs, synced in the worst order, read back by `encore history`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import sdk
from tracker.models import Run
from tracker.services import accounts, stitched, summaries

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sdk
run = sdk.init(project="vision", name={name!r}, {arguments})
for i in range({count}): sdk.log({{"loss": {base} + i}})
"""


@pytest.fixture
def desk(live_server, transactional_db, tmp_path):
    """A machine with a home of its own; `train` runs a program offline, `encore` a command against the real server."""
    user = accounts.create_user(username="alice")
    _, token = accounts.create_token(user=user, name="test", scopes=["api"])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ENCORE_", "PYTEST"))} | {"ENCORE_SENDER_NICE": "0"}
    env = kept | {"ENCORE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "ENCORE_URL": live_server.url, "ENCORE_TOKEN": token}

    def run(command: list[str], **more: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=env | more, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def train(name: str, arguments: str, count: int, base: float) -> None:
        script = PROGRAM.format(name=name, arguments=arguments, count=count, base=base)
        run([sys.executable, "-c", script], ENCORE_MODE="offline", ENCORE_SENDER="external")

    def encore(*words: str) -> str:
        return run([sys.executable, "-c", "import sys; from sdk._cli import main; sys.exit(main())", *words])

    return SimpleNamespace(train=train, encore=encore, journal=tmp_path / "sdk", url=live_server.url, token=token)


def told(text: str) -> list[list[str]]:
    return [[line.split("\t")[0], line.split("\t")[2]] if "\t" in line else [line] for line in text.splitlines()]


def test_starts_synced_in_the_worst_order_read_as_they_happened(desk):
    """Steps were never given: they went on after the rewind and after the fork by what the machine knew."""
    desk.train("base", 'id="base", resume="allow"', 6, 0.0)
    desk.train("base", 'id="base", resume="must", rewind_to=2', 2, 100.0)
    desk.train("tuned", 'id="tuned", fork_from=("base", 3)', 2, 200.0)
    writers = sorted(desk.journal.glob("*/*/writer.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in reversed(writers):
        desk.encore("sync", str(path.parent))
    assert told(desk.encore("history", "vision/base", "loss")) == [["0", "0.0"], ["1", "1.0"], ["2", "2.0"], ["3", "100.0"], ["4", "101.0"]]
    assert told(desk.encore("history", "vision/base", "loss", "--attempt", "1")) == [[str(n), f"{n}.0"] for n in range(6)]
    every = told(desk.encore("history", "vision/base", "loss", "--branch", "all"))
    assert every[5:] == [["# old branch: attempt 2 went back to step 2"], ["3", "3.0"], ["4", "4.0"], ["5", "5.0"]]
    tuned = told(desk.encore("history", "vision/tuned", "loss"))
    assert tuned == [["0", "0.0"], ["1", "1.0"], ["2", "2.0"], ["3", "100.0"], ["4", "200.0"], ["5", "201.0"]]
    api = sdk.Api(desk.url, desk.token)
    run = api.run("vision/tuned")
    assert [(step, value) for step, _, value in run.history("loss")] == [(int(step), float(value)) for step, value in tuned]
    assert [step for step, _, _ in run.history("loss", attempt=1)] == [4, 5]
    summaries.summarise_due()
    stitched.recompute_due()
    row = Run.objects.get(name="tuned").metric_summaries.get(key="loss")
    assert (row.count, row.min, row.max, row.last) == (6, 0.0, 201.0, 201.0)
