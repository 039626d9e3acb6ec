"""resume="auto": jobs that follow each other in one checkpoint folder are one run."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from launching import Launcher

CHAIN = """
    import os, sys, sdk
    run = sdk.init(project=os.environ.get("PROJECT", "launched"), resume=os.environ.get("RESUME", "auto"), checkpoint_dir="checkpoints")
    for i in range(3):
        sdk.log({"rank": float(os.environ.get("RANK", 0))}, step=i)
    print(run.id, flush=True)
    how = sys.argv[1]
    if how == "killed":
        os.kill(os.getpid(), 9)
    elif how == "preempted":
        sdk.finish(preempted=True)
    elif how == "waits":
        import time; time.sleep(600)
    elif how != "finished":
        sys.exit(int(how))
"""


def marker(launcher: Launcher) -> Path:
    return launcher.shop.work / "checkpoints" / ".encore-run.json"


def go(launcher: Launcher, how: str, status: int = 0, **env: str) -> tuple[str, str]:
    """(run id, stderr) of one job of the chain."""
    process = launcher.python(launcher.script(CHAIN), how, **env)
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    return out.strip(), err


def test_chained_jobs_are_one_run_until_one_finishes(launcher: Launcher) -> None:
    """Killed at its time limit, failed, left early by its own word: the next job goes on. After one that finished, a new run, and said."""
    first, _ = go(launcher, "killed", -signal.SIGKILL)
    assert json.loads(marker(launcher).read_text())["state"] == "running"
    assert go(launcher, "3", 3)[0] == first
    assert json.loads(marker(launcher).read_text())["state"] == "failed"
    assert go(launcher, "preempted")[0] == first
    assert json.loads(marker(launcher).read_text())["state"] == "preempted"
    last, said = go(launcher, "finished")
    assert last == first
    assert "new run" not in said
    new, said = go(launcher, "finished")
    assert new != first
    assert f"run {first}, whose checkpoints lie in" in said
    assert "has finished; this is a new run" in said
    runs = launcher.runs(5, ended=4)
    assert {run: len(writers) for run, writers in runs.items()} == {first: 4, new: 1}


def test_all_ranks_find_the_run_also_in_a_race_at_the_first_start(launcher: Launcher) -> None:
    """Rank 0 writes the marker while others look for it; what they derive without it is the same. The next job has other ranks of it."""
    script = launcher.script(CHAIN)

    def job(number: str, world: int, how: str, status: int) -> set[str]:
        slurm = {"SLURM_JOB_ID": number, "SLURM_STEP_ID": "0", "SLURM_NTASKS": str(world)}
        ranks = [launcher.python(script, how, **slurm, SLURM_PROCID=str(rank), RANK=str(rank)) for rank in range(world - 1)]
        outs = {process.communicate(timeout=120)[0].strip() for process in ranks}
        last = launcher.python(script, how, **slurm, SLURM_PROCID=str(world - 1), RANK=str(world - 1))  # so late that rank 0 has ended
        outs.add(last.communicate(timeout=120)[0].strip())
        assert all(process.returncode == status for process in [*ranks, last])
        return outs

    first = job("81", 3, "killed", -signal.SIGKILL)
    assert len(first) == 1
    assert job("82", 3, "finished", 0) == first
    launcher.runs(6, ended=3)


def test_ranks_that_look_while_rank_0_goes_on_find_the_run(online: Launcher) -> None:
    """The folder then names a process that lives: rank 0 of their own launch."""
    first, _ = go(online, "1", 1, ENCORE_MODE="offline")
    slurm = {"SLURM_JOB_ID": "83", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "ENCORE_MODE": "offline"}
    rank0 = online.python(online.script(CHAIN), "waits", **slurm, SLURM_PROCID="0", RANK="0")
    assert rank0.stdout is not None
    assert rank0.stdout.readline().strip() == first
    assert go(online, "finished", **slurm, SLURM_PROCID="1", RANK="1")[0] == first


def test_encore_run_id_goes_before_the_folder(launcher: Launcher) -> None:
    """Which is what chained jobs without a checkpoint folder of their own set; and the folder then is that run's."""
    given, _ = go(launcher, "1", 1, ENCORE_RUN_ID="chain-9")
    assert go(launcher, "1", 1, ENCORE_RUN_ID="chain-9")[0] == given
    assert go(launcher, "finished")[0] == given
    launcher.runs(3)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "cannot be read"),
        ('{"epoch": 3}', "names no run"),
        ('{"format": 2, "run": "%s"}' % ("a" * 26), "has format 2"),
        ('{"format": 1, "run": "%s", "project": "another"}' % ("a" * 26), "in project another"),
        ("\x00\xff", "cannot be read"),
    ],
)
def test_a_broken_or_foreign_marker_is_said_and_the_run_is_new(online: Launcher, content: str, why: str) -> None:
    """Training goes on; the folder is the new run's from then on."""
    marker(online).parent.mkdir()
    marker(online).write_bytes(content.encode("latin-1"))
    new, said = go(online, "1", 1, ENCORE_MODE="offline")
    assert why in said
    assert "this is a new run" in said
    assert new != "a" * 26
    assert json.loads(marker(online).read_text())["run"] == new
    assert go(online, "finished", ENCORE_MODE="offline")[0] == new


def test_a_run_that_is_still_written_is_not_resumed(online: Launcher) -> None:
    """Two trainings on one checkpoint folder: the second is a run of its own, and the folder stays the first's."""
    process = online.python(online.script(CHAIN), "waits", ENCORE_MODE="offline")
    assert process.stdout is not None
    first = process.stdout.readline().strip()
    second, said = go(online, "finished", ENCORE_MODE="offline")
    assert second != first
    assert f"is still written by process {process.pid}" in said
    assert json.loads(marker(online).read_text())["run"] == first


def test_must_resume_without_a_run_is_said_and_goes_on(online: Launcher) -> None:
    """init never fails a run; ENCORE_STRICT=1 raises. A folder that cannot be written costs the marker alone."""
    script = online.script('import sdk; sdk.init(project="launched", resume="must"); print("trains")')
    out, err = online.python(script, ENCORE_MODE="offline").communicate(timeout=120)
    assert out.strip() == "trains"
    assert 'resume="must": nothing says which run' in err
    strict = online.python(script, ENCORE_MODE="offline", ENCORE_STRICT="1")
    _, err = strict.communicate(timeout=120)
    assert strict.returncode == 1
    assert "UsageError" in err
    (online.shop.work / "checkpoints").write_text("a file")
    _, said = go(online, "finished", ENCORE_MODE="offline", RESUME="must")
    assert "cannot be" in said


def test_a_finished_run_can_be_resumed_by_asking_for_it(online: Launcher) -> None:
    """resume="must" or "allow" means the run of the folder, whatever its end."""
    first, _ = go(online, "finished", ENCORE_MODE="offline")
    assert go(online, "finished", ENCORE_MODE="offline", RESUME="must")[0] == first
    assert go(online, "finished", ENCORE_MODE="offline", RESUME="allow")[0] == first
    assert go(online, "finished", ENCORE_MODE="offline", RESUME="never")[0] != first
