"""What a rerun can touch."""

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from runner import pipeline, report, shell
from runner.isolations.overlay import Overlay

overlay_works = pytest.fixture(lambda play: Overlay().works(play.settings()) is None or pytest.skip("no overlayfs on this machine"))


def test_writing_beside_itself_and_to_absolute_paths_never_touches_the_originals(play, tmp_path, overlay_works):
    """out/ beside the script, an absolute path inside the repository, one outside, and a removal: all land in the job's folder."""
    repository = play.repository
    (repository / "out").mkdir()
    for path in (repository / "out" / "a", repository / "b", tmp_path / "c", tmp_path / "d"):
        path.write_text("original")
    script = f"""
import os
os.makedirs("out", exist_ok=True)
open("out/a", "w").write("rerun")
open({str(repository / "b")!r}, "w").write("rerun")
print("c was", os.path.exists({str(tmp_path / "c")!r}))
os.makedirs({str(tmp_path)!r}, exist_ok=True)
open({str(tmp_path / "c")!r}, "w").write("rerun")
open("/opt/encore-test-file", "w").write("rerun")
"""
    (repository / "train.py").write_text(script)
    outputs = [
        {"path": str(repository / "out/a"), "in_root": "out/a"},
        {"path": str(tmp_path / "c"), "in_root": None},
        {"path": "/opt/encore-test-file", "in_root": None},
    ]
    ended = play(play.recipe(data={"outputs": outputs}))
    assert ended.failure is None, (ended.failure, ended.output)
    assert [p.read_text() for p in (repository / "out/a", repository / "b", tmp_path / "c", tmp_path / "d")] == ["original"] * 4
    assert not os.path.exists("/opt/encore-test-file")
    assert "c was False" in ended.output, "what the original wrote is hidden, so a rerun neither resumes nor skips"
    assert {o["path"] for o in ended.evidence["outputs"]} >= {str(repository / "out/a"), "/opt/encore-test-file"}
    redirected = {entry["path"]: entry["to"] for entry in ended.evidence["redirected"]}
    assert Path(redirected["/opt/encore-test-file"]).read_text() == "rerun"
    assert (ended.folder / "source/out/a").read_text() == "rerun"
    assert (ended.folder / "source/b").read_text() == "rerun"


def test_folders_that_a_program_found_and_wrote_into_are_there_again(play, tmp_path, overlay_works):
    """An empty or ignored folder is in no snapshot, and the job's own /tmp begins empty; what the program made itself it makes again."""
    script = f"""
import os
open("ready/a", "w").write("rerun")
open({str(tmp_path / "scratch" / "b")!r}, "w").write("rerun")
os.mkdir({str(tmp_path / "made")!r})
open({str(tmp_path / "made" / "c")!r}, "w").write("rerun")
"""
    (play.repository / "train.py").write_text(script)
    outputs = [
        {"path": str(play.repository / "ready/a"), "in_root": "ready/a"},
        {"path": str(tmp_path / "scratch" / "b"), "in_root": None},
        {"path": str(tmp_path / "made"), "in_root": None, "by": "folder"},
        {"path": str(tmp_path / "made" / "c"), "in_root": None},
    ]
    ended = play(play.recipe(data={"outputs": outputs}))
    assert ended.failure is None, (ended.failure, ended.output)
    assert (ended.folder / "source/ready/a").read_text() == "rerun"
    assert not (tmp_path / "scratch").exists()
    assert not (tmp_path / "made").exists()


def test_the_workers_own_state_is_out_of_sight(play, tmp_path, overlay_works):
    """A program cannot read the token file or the cache of blobs, even with the worker's own rights."""
    encore_home = tmp_path / "encore-home"
    encore_home.mkdir()
    (encore_home / "token").write_text("secret")
    (play.repository / "train.py").write_text(
        f"import os\nprint(os.path.exists({str(encore_home / 'token')!r}), os.path.exists({str(play.home / 'blobs')!r}))\n"
    )
    ended = play(play.recipe(), settings={"encore_home": encore_home})
    assert ended.output.strip() == "False False"


def test_without_isolation_an_absolute_output_is_refused_by_name(play):
    """Nothing is started that would overwrite the original's file."""
    (play.repository / "train.py").write_text("open('/opt/model.bin', 'w')\n")
    ended = play(play.recipe(data={"outputs": [{"path": "/opt/model.bin", "in_root": None}]}), settings={"isolation": "none"})
    assert ended.failure["code"] == "would_overwrite"
    assert ended.failure["missing"] == "/opt/model.bin"
    assert not os.path.exists("/opt/model.bin")


def test_without_isolation_a_plain_script_runs_with_the_write_guard_on(play):
    """The source is restored elsewhere and the SDK's guard is told."""
    (play.repository / "train.py").write_text(
        "import os; os.makedirs('out'); open('out/x', 'w'); print(os.environ['ENCORE_WRITE_GUARD'], os.environ['TMPDIR'])\n"
    )
    outputs = [
        {"path": str(play.repository / "out"), "in_root": "out", "by": "folder"},
        {"path": str(play.repository / "out/x"), "in_root": "out/x"},
    ]
    recipe = play.recipe(data={"outputs": outputs})
    ended = play(recipe, settings={"isolation": "none"})
    assert ended.failure is None, (ended.failure, ended.output)
    assert ended.output.split() == ["1", f"{ended.folder}/tmp"]
    assert not (play.repository / "out").exists()
    assert ended.evidence["isolation"] == "none"


def test_without_isolation_a_stored_file_elsewhere_is_refused_by_name(play, tmp_path):
    """It would have to be put outside the job's folder."""
    (play.repository / "train.py").write_text("")
    digest = play.tracker.blob(b"data")
    entry = {
        "path": str(tmp_path / "gone.csv"),
        "in_root": None,
        "bytes": 4,
        "digest": digest,
        "strength": "full",
        "stored": True,
        "by": "open",
    }
    ended = play(play.recipe(data={"inputs": [entry]}), settings={"isolation": "none"})
    assert ended.failure["code"] == "would_overwrite"
    assert not (tmp_path / "gone.csv").exists()


TREE = """
import os, subprocess, sys, time
child = "import os, sys, time; os.setsid(); print('grandchild', os.getpid(), flush=True); time.sleep(1000)"
subprocess.Popen([sys.executable, "-c", f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])"])
print("program", os.getpid(), flush=True)
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(1000)
"""


@pytest.fixture
def hurried(monkeypatch):
    """The worker asks each half second instead of each five, and gives a program one second to end instead of five."""
    monkeypatch.setattr(report, "BEAT_SECONDS", 0.5)
    monkeypatch.setattr(shell, "GRACE_SECONDS", 1.0)


def pids(play, job, *names, seconds=120):
    """Process ids that the program has printed, once all of them have."""
    log = play.home / "jobs" / f"{job}-1" / "program.log"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        words = log.read_text().split() if log.exists() else []
        found = {name: int(words[words.index(name) + 1]) for name in names if name in words}
        if len(found) == len(names):
            return found
        time.sleep(0.05)
    raise AssertionError(f"the program did not say {names}: {log.read_text() if log.exists() else 'nothing'}")


def gone(pid, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def in_background(play, job, **settings):
    import threading

    result = {}
    thread = threading.Thread(target=lambda: result.update(state=pipeline.perform(job, settings=play.settings(**settings))))
    thread.start()
    return thread, result


@pytest.mark.parametrize("isolation", ["none", "auto"])
def test_cancel_stops_the_whole_tree(play, hurried, isolation):
    """The program, which ignores SIGTERM, and a grandchild in a session of its own whose parent is gone."""
    (play.repository / "train.py").write_text(TREE)
    job = play.order(play.recipe())
    thread, result = in_background(play, job, isolation=isolation)
    found = pids(play, job, "program", "grandchild")
    play.tracker.cancelled.add(job)
    thread.join(120)
    assert result["state"] == "cancelled"
    assert play.tracker.finished[job]["failure"]["code"] == "cancelled"
    assert play.tracker.steps(job)["execute"] == "cancelled"
    assert all(gone(pid) for pid in found.values())


def test_a_lost_lease_stops_the_program_and_writes_nothing_more(play, hurried):
    """The job belongs to another worker now."""
    (play.repository / "train.py").write_text(TREE)
    job = play.order(play.recipe())
    thread, result = in_background(play, job)
    found = pids(play, job, "program", "grandchild")
    play.tracker.lost.add(job)
    said = len(play.tracker.said)
    thread.join(120)
    assert result["state"] == "left"
    assert all(gone(pid) for pid in found.values())
    assert len(play.tracker.said) == said
    assert job not in play.tracker.finished


def test_a_tracker_out_of_reach_for_longer_than_the_lease_stops_the_program(play, hurried):
    """Nobody can tell the worker, so its own clock does."""
    (play.repository / "train.py").write_text(TREE)
    job = play.order(play.recipe(), lease_seconds=4)
    thread, result = in_background(play, job)
    found = pids(play, job, "program", "grandchild")
    play.tracker.close()
    thread.join(120)
    assert result["state"] == "left"
    assert all(gone(pid) for pid in found.values())


def test_a_limit_on_seconds_is_named(play, hurried):
    """The tree is stopped and the reason is the limit."""
    (play.repository / "train.py").write_text(TREE)
    ended = play(play.recipe(), limits={"seconds": 1})
    assert ended.failure["code"] == "limit"


def test_what_a_program_leaves_behind_ends_with_it(play, hurried):
    """A background process that outlives its program is stopped, and the program's own status counts."""
    script = TREE.rsplit("import signal", 1)[0] + "time.sleep(1)\n"
    (play.repository / "train.py").write_text(script)
    ended = play(play.recipe())
    assert ended.failure is None
    words = ended.output.split()
    assert gone(int(words[words.index("grandchild") + 1]))


def test_a_killed_worker_takes_its_program_with_it(play, tmp_path):
    """kill -9 of the worker's process ends the program's tree: the supervisor sees its pipe close."""
    import subprocess
    import sys

    (play.repository / "train.py").write_text(TREE)
    job = play.order(play.recipe())
    code = """if True:
        import json, sys
        from pathlib import Path
        from runner import pipeline, report, shell
        from runner.settings import Settings
        told = json.loads(sys.argv[2])
        pipeline.perform(sys.argv[1], settings=Settings(**{**told, "home": Path(told["home"])}))
    """
    plain = {"url": play.tracker.url, "home": str(play.home), "name": "t", "queues": ["default"], "token": "worker-token"}
    worker = subprocess.Popen([sys.executable, "-c", code, job, json.dumps(plain)], cwd=Path(__file__).parents[2])
    found = pids(play, job, "program", "grandchild")
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert all(gone(pid) for pid in found.values())
