"""Launches without a launcher's word: plain programs, children, notebooks, mp.spawn; and those of launchers that only set variables."""

from __future__ import annotations

import sys

import pytest
from helpers import until
from launching import TRAIN, Launcher


def test_plain_python_is_a_run_each_time(launcher: Launcher) -> None:
    """Rank 0 of 1, no group."""
    script = launcher.script(TRAIN)
    for _ in range(2):
        launcher.done(launcher.python(script))
    runs = launcher.runs(2)
    assert [[(w["rank"], w["world_size"], w["launch"]["kind"], w["run"]["group"]) for w in found] for found in runs.values()] == [
        [(0, 1, "python", None)]
    ] * 2


def test_a_child_training_is_a_run_of_its_own_and_no_rank(launcher: Launcher) -> None:
    """A rank starts an evaluation, which inherits RANK, WORLD_SIZE, SLURM's step and ENCORE_RUN_ID: it is rank 0 of a run of its own."""
    launcher.script('import sdk; sdk.init(project="launched", job_type="eval"); sdk.log({"accuracy": 0.5}, step=0)', "eval.py")
    script = launcher.script(
        """
        import subprocess, sys, sdk
        run = sdk.init(project="launched")
        subprocess.run([sys.executable, "eval.py"], check=True)
        subprocess.run(["sh", "-c", f"{sys.executable} eval.py"], check=True)
        sdk.log({"loss": 1.0}, step=0)
        """
    )
    ranks = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "job-7"}
    slurm = {"SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    plain: dict[str, str] = {}
    given = {"ENCORE_RUN_ID": "nightly-7"}
    for env in (ranks, slurm, plain, given) if not launcher.offline else (ranks, given):
        launcher.done(launcher.python(script, **env))
    many = 6 if launcher.offline else 12
    runs = launcher.runs(many)
    assert len(runs) == many
    evaluations = [writers[0] for writers in runs.values() if writers[0]["run"]["job_type"] == "eval"]
    trainings = {writers[0]["run"]["id"] for writers in runs.values() if writers[0]["run"]["job_type"] is None}
    assert len(evaluations) == 2 * len(trainings)
    assert {(w["rank"], w["world_size"], w["launch"]["kind"]) for w in evaluations} == {(0, 1, "python")}
    assert {w["launch"]["parent"] for w in evaluations} == trainings


def test_a_child_that_is_a_rank_joins(launcher: Launcher) -> None:
    """Lightning's own launcher: the user's program is rank 0 and starts the others from itself, before or after init."""
    main = """
        import os, subprocess, sys, sdk
        child = "LOCAL_RANK" in os.environ
        if not child and "{order}" == "init first":
            sdk.init(project="launched")
        os.environ.setdefault("LOCAL_RANK", "0")
        os.environ.update(NODE_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", PL_GLOBAL_SEED="1")
        if not child:
            other = subprocess.Popen([sys.executable, __file__], env={{**os.environ, "LOCAL_RANK": "1"}})
        if child or "{order}" != "init first":
            sdk.init(project="launched")
        sdk.log({{"loss": 1.0}}, step=0)
        if not child:
            assert other.wait() == 0
    """
    for order in ("init first", "init last"):
        launcher.done(launcher.python(launcher.script(main.format(order=order))))
    runs = launcher.runs(4)
    assert [sorted(w["rank"] for w in writers) for writers in runs.values()] == [[0, 1], [0, 1]]


def test_mp_spawn_is_one_run_once_its_group_is_up(launcher: Launcher) -> None:
    """No variable says the rank: torch.distributed does, and its store joins the ranks."""
    pytest.importorskip("torch")
    script = launcher.script(
        """
        import os, socket, torch, torch.distributed as dist, torch.multiprocessing as mp

        def work(rank, port):
            import sdk
            dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
            run = sdk.init(project="launched")
            for i in range(5):
                x = torch.tensor(float(rank)); dist.all_reduce(x)
                sdk.log({"sum": x, "rank": rank}, step=i)
            dist.barrier()
            dist.destroy_process_group()
            sdk.finish()

        if __name__ == "__main__":
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            mp.spawn(work, (port,), nprocs=2)
        """
    )
    launcher.done(launcher.python(script))
    runs = launcher.runs(2)
    assert [sorted((w["rank"], w["world_size"]) for w in writers) for writers in runs.values()] == [[(0, 2), (1, 2)]]
    assert launcher.server.points("rank", rank=1) == [(i, 1.0) for i in range(5)]


def test_multiprocessing_spawn_gives_each_child_that_calls_init_its_run(launcher: Launcher) -> None:
    """A search over seeds in a pool of processes: children of one run, which they name."""
    script = launcher.script(
        """
        import multiprocessing, sdk

        def work(seed):
            with sdk.init(project="launched", config={"seed": seed}):
                sdk.log({"loss": float(seed)}, step=0)

        if __name__ == "__main__":
            sdk.init(project="launched", name="search")
            context = multiprocessing.get_context("spawn")
            workers = [context.Process(target=work, args=(seed,)) for seed in range(2)]
            [worker.start() for worker in workers]
            [worker.join() for worker in workers]
        """
    )
    launcher.done(launcher.python(script))
    runs = launcher.runs(3)
    assert [len(writers) for writers in runs.values()] == [1, 1, 1]
    search = next(run for run, writers in runs.items() if writers[0]["run"]["name"] == "search")
    assert [writers[0]["launch"].get("parent") for run, writers in runs.items() if run != search] == [search, search]


CELL = """
import sdk
run = sdk.init(project="launched")
for i in range(3):
    sdk.log({"loss": 1.0}, step=i)
print(run.id, flush=True)
"""


def test_a_notebook_cell_run_again_finishes_its_run_and_begins_another(launcher: Launcher) -> None:
    """And so does a restarted kernel. A kernel here is an interactive interpreter that gets cells, which is what ipykernel is too."""
    kernel = launcher.script(
        """
        import code, sys
        console = code.InteractiveInterpreter({"__name__": "__main__"})
        for cell in sys.stdin.read().split("%%"):
            console.runcode(compile(cell, "<cell>", "exec"))
        """,
        "kernel.py",
    )
    for last in ("import os; os.kill(os.getpid(), 9)", "run.name"):  # the first kernel is killed, as "restart" does
        process = launcher.start(sys.executable, kernel, stdin="%%".join([CELL, CELL, last]))
        out, err = process.communicate(timeout=120)
        assert len(set(out.split())) == 2, err
    runs = launcher.runs(4, ended=3)
    assert [len(writers) for writers in runs.values()] == [1, 1, 1, 1]
    ends = [launcher.server.finishes().get(writers[0]["writer"], {}).get("state") for writers in runs.values()]
    assert ends == ["finished", None, "finished", "finished"]
    if not launcher.offline:
        assert until(lambda: launcher.server.docs("event", "gone"))


@pytest.mark.parametrize(
    ("kind", "shared", "ranks"),
    [
        (
            "mpi",
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-h-12@1"},
            [{"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)} for rank in (0, 1)],
        ),
        (
            "horovod",
            {"HOROVOD_SIZE": "2", "HOROVOD_LOCAL_SIZE": "2", "HOROVOD_GLOO_RENDEZVOUS_ADDR": "h", "HOROVOD_GLOO_RENDEZVOUS_PORT": "47"},
            [{"HOROVOD_RANK": str(rank), "HOROVOD_LOCAL_RANK": str(rank)} for rank in (0, 1)],
        ),
        (
            "deepspeed",
            {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "CROSS_RANK": "0", "CROSS_SIZE": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"},
            [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)],
        ),
        (
            "accelerate",
            {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_MIXED_PRECISION": "no"},
            [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)],
        ),
    ],
)
def test_launchers_by_their_variables(online: Launcher, kind: str, shared: dict[str, str], ranks: list[dict[str, str]]) -> None:
    """mpirun, Horovod, DeepSpeed, Accelerate: real programs with the variables that these set; one run of two ranks."""
    script = online.script(TRAIN)
    both = [online.python(script, **shared, **rank) for rank in ranks]
    online.done(*both)
    runs = online.runs(2)
    assert [sorted((w["rank"], w["world_size"], w["launch"]["kind"]) for w in writers) for writers in runs.values()] == [
        [(0, 2, kind), (1, 2, kind)]
    ]
