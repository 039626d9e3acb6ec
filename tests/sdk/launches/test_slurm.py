"""SLURM, which no test machine has: real programs of ours with the variables that slurmd sets (man sbatch, man srun)."""

from __future__ import annotations

import sys

from launching import TRAIN, Launcher

JOB = {"SLURM_JOB_ID": "4711", "SLURM_CLUSTER_NAME": "alps"}


def step(number: int, rank: int = 0, tasks: int = 1, **more: str) -> dict[str, str]:
    said = {"SLURM_STEP_ID": str(number), "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_NUM_TASKS": str(tasks)}
    return JOB | said | {"SLURM_NTASKS": str(tasks), "SLURM_NNODES": "1"} | more


def test_each_srun_step_is_a_run_of_all_its_tasks(launcher: Launcher) -> None:
    """Two steps of two tasks: two runs of two ranks."""
    script = launcher.script(TRAIN)
    for number in (0, 1):
        launcher.done(*[launcher.python(script, **step(number, rank, 2)) for rank in (0, 1)])
    runs = launcher.runs(4)
    assert [sorted((w["rank"], w["world_size"], w["launch"]["kind"]) for w in found) for found in runs.values()] == [
        [(0, 2, "slurm"), (1, 2, "slurm")]
    ] * 2


def test_a_requeued_job_goes_on_in_its_runs(launcher: Launcher) -> None:
    """--requeue gives the same job and step ids and SLURM_RESTART_COUNT: the same runs, of steps and of sbatch's own lines alike."""
    script = launcher.script(TRAIN)

    def job(**more: str) -> None:
        launcher.bash(f"{sys.executable} {script} a; {sys.executable} {script} b", **JOB, **more)
        launcher.done(launcher.python(script, **step(0, **more)))

    job()
    first = list(launcher.runs(3))
    assert len(first) == 3
    job(SLURM_RESTART_COUNT="1")
    again = launcher.runs(6)
    assert sorted(again) == sorted(first)
    for writers in again.values():
        assert [writer["launch"].get("requeue", 0) for writer in writers] == [0, 1]


def test_the_same_line_twice_in_one_sbatch_is_two_runs_also_when_requeued(online: Launcher) -> None:
    """Counted on the node: the first is the first again."""
    script = online.script(TRAIN)
    twice = f"{sys.executable} {script}; {sys.executable} {script}"
    online.bash(twice, **JOB)
    first = list(online.runs(2))
    online.bash(twice, **JOB, SLURM_RESTART_COUNT="1")
    again = online.runs(4)
    assert list(again) == first
    assert [len(writers) for writers in again.values()] == [2, 2]


def test_programs_started_by_hand_in_srun_pty_bash_are_runs_of_their_own(online: Launcher) -> None:
    """The step is one, the programs in its shell are not; also beside each other."""
    script = online.script(TRAIN)
    online.bash(f"{sys.executable} {script}; {sys.executable} {script} & {sys.executable} {script}; wait", **step(0))
    assert [len(writers) for writers in online.runs(3).values()] == [1, 1, 1]


def test_tasks_of_a_job_array_are_runs_in_one_group(launcher: Launcher) -> None:
    """Each has a job id of its own; the group is the array's, unless one is given."""
    script = launcher.script(TRAIN)
    for task in (0, 1):
        array = {"SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_ID": str(4700 + task)}
        launcher.done(launcher.python(script, **(step(0) | array)))
    launcher.done(launcher.python(script, **(step(0) | {"SLURM_ARRAY_JOB_ID": "4700", "SLURM_JOB_ID": "4702", "ENCORE_GROUP": "mine"})))
    runs = launcher.runs(3)
    assert [writers[0]["run"]["group"] for writers in runs.values()] == ["4700", "4700", "mine"]


def test_torchrun_in_sbatch_goes_on_in_its_run_when_requeued(online: Launcher) -> None:
    """The id that SLURM's users give (--rdzv-id=$SLURM_JOB_ID) is one for all torchruns of a job; the second is another run still."""
    script = online.script(TRAIN)
    ranks = {"TORCHELASTIC_RUN_ID": "4711", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    agent = f"bash -c '{sys.executable} {script}; exit $?'"  # a process that starts ranks, and torchrun's variables
    online.bash(f"{agent}; {agent}", **JOB, **ranks)
    first = list(online.runs(2))
    assert len(first) == 2
    online.bash(f"{agent}; {agent}", **JOB, **ranks, SLURM_RESTART_COUNT="1")
    assert list(online.runs(4)) == first
