"""A run whose machine goes silent is crashed, and runs again when it is heard: with the real sender, database and rule."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.torture.house import House, senders, until
from tests.torture.test_kills import HERE, new_run

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

PROGRAM = """
import sdk, time
sdk.init(project='torture', id={run!r})
for i in range(10**9):
    sdk.log({{'x': float(i)}}, step=i)
    time.sleep(0.05)
"""


def asked(house: House, seconds: int) -> None:
    """The question that the maintenance worker asks each 10 s (`liveness.mark_silent`), with a limit of seconds instead of a minute."""
    pid = house.up.children()["maintenance"]
    pairs = (entry.partition("=") for entry in Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0"))
    env = {name: value for name, _, value in pairs if name and name != "ENCORE_CHILD"} | {"ENCORE_SILENT_SECONDS": str(seconds)}
    code = "from tracker.services import liveness; liveness.mark_silent()"
    argv = [sys.executable, str(HERE.parents[1] / "manage.py"), "shell", "-v", "0", "-c", code]
    subprocess.run(argv, env=env, check=True, capture_output=True, timeout=120)


def test_a_silent_machine_is_crashed_and_recovers_when_it_is_heard_again(house: House) -> None:
    """Trainer and sender stopped (a cut, a frozen node): crashed after the limit, then running again; killed: crashed for good."""
    run = new_run(house, "vanished")["id"]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM.format(run=run)], env=house.environment(), stderr=subprocess.DEVNULL)
    try:
        assert until(lambda: house.state(run) == "running")
        asked(house, 60)
        assert house.state(run) == "running"
        everybody = [process.pid, *senders(house.journal / run)]
        assert len(everybody) == 2
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(3)
        asked(house, 2)
        assert house.state(run) == "crashed"
        for pid in everybody:
            os.kill(pid, signal.SIGCONT)
        assert until(lambda: house.state(run) == "running")
        for pid in everybody:
            os.kill(pid, signal.SIGKILL)
        process.wait()
        time.sleep(3)
        asked(house, 2)
        assert house.state(run) == "crashed"
        assert until(lambda: house.is_delivered(run))
        assert house.state(run) == "crashed"
        steps = [step for step, _, _ in house.history(run, "x")]
        assert steps == list(range(len(steps)))
    finally:
        process.kill()
        process.wait()
