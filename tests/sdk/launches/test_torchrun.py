"""torchrun, the real one, with gloo on the loopback. Two "nodes" are two torchruns on this host."""

from __future__ import annotations

import sys

import pytest
from launching import GROUP_FIRST, INIT_FIRST, STEPS, TRAIN, Launcher, free_port

pytest.importorskip("torch")


def test_twice_in_one_shell_and_in_one_sbatch_are_two_runs(launcher: Launcher) -> None:
    """torchrun's default id is the same for both; its own process is not. Each run has both ranks."""
    script = launcher.script(TRAIN)
    torchrun = f"{sys.executable} -m torch.distributed.run --nproc-per-node 2 --master-port"
    sbatch = {"SLURM_JOB_ID": "71", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"} if launcher.offline else {}
    launcher.bash(f"{torchrun} {free_port()} {script}\n{torchrun} {free_port()} {script}", **sbatch)
    runs = launcher.runs(4)
    assert [sorted((about["rank"], about["world_size"]) for about in trainers) for trainers in runs.values()] == [[(0, 2), (1, 2)]] * 2


def test_several_nodes_are_one_run(launcher: Launcher) -> None:
    """No id is given, so nothing but torch's own store says that both nodes are one launch; each point arrives once, under rank 0's run."""
    backend, order, ranks = ("static", GROUP_FIRST, 1) if launcher.offline else ("c10d", INIT_FIRST, 2)
    script = launcher.script(order + STEPS)
    port = str(free_port())
    nodes = []
    for node in (0, 1):
        options = ["--nnodes", "2", "--nproc-per-node", str(ranks)]
        if backend == "static":
            options += ["--node-rank", str(node), "--master-addr", "127.0.0.1", "--master-port", port]
        else:
            options += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}"]
        nodes.append(launcher.torchrun(script, *options))
    launcher.done(*nodes)
    runs = launcher.runs(2 * ranks)
    assert len(runs) == 1, runs
    world = 2 * ranks
    assert sorted((about["rank"], about["world_size"]) for about in next(iter(runs.values()))) == [(rank, world) for rank in range(world)]
    for rank in range(world):
        assert launcher.server.points("rank", rank=rank) == [(i, rank) for i in range(5)]
        assert launcher.server.points("sum", rank=rank) == [(i, world * (world - 1) / 2) for i in range(5)]
    names = {about["run"]["name"] for about in launcher.server.writers.values()}
    assert len(names) == 1, names
    assert {batch["run"] for batches in launcher.server.batches.values() for batch in batches} == set(runs)
