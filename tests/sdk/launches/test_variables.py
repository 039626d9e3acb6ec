"""Ranks of one launch find one run, with no word exchanged."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap

import pytest
from helpers import Shop, until
from server import Server

from sdk import _launch


def both(ranks: list[dict[str, str]]) -> list[_launch.Launch]:
    return [_launch.detect(env) for env in ranks]


@pytest.mark.parametrize(
    ("kind", "shared", "per_rank"),
    [
        (
            "torchrun",
            {"TORCHELASTIC_RUN_ID": "job-7", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "2"},
            lambda r: {"RANK": str(r), "LOCAL_RANK": "0", "GROUP_RANK": str(r)},
        ),
        (
            "slurm",
            {
                "SLURM_JOB_ID": "41",
                "SLURM_STEP_ID": "0",
                "SLURM_NTASKS": "2",
                "SLURM_CLUSTER_NAME": "c",
                "SLURM_NNODES": "2",
                "SLURM_RESTART_COUNT": "2",
            },
            lambda r: {"SLURM_PROCID": str(r), "SLURM_LOCALID": "0"},
        ),
        (
            "mpi",
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-h-12@1"},
            lambda r: {"OMPI_COMM_WORLD_RANK": str(r)},
        ),
        ("mpi", {"PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"}, lambda r: {"PMI_RANK": str(r), "MPI_LOCALRANKID": str(r)}),
        (
            "horovod",
            {
                "HOROVOD_SIZE": "2",
                "HOROVOD_LOCAL_SIZE": "2",
                "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
                "HOROVOD_GLOO_RENDEZVOUS_PORT": "4711",
            },
            lambda r: {"HOROVOD_RANK": str(r), "HOROVOD_LOCAL_RANK": str(r)},
        ),
        (
            "deepspeed",
            {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "CROSS_RANK": "0", "CROSS_SIZE": "1"},
            lambda r: {"RANK": str(r), "LOCAL_RANK": str(r)},
        ),
        (
            "accelerate",
            {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_MIXED_PRECISION": "no"},
            lambda r: {"RANK": str(r)},
        ),
    ],
)
def test_each_launcher(kind, shared, per_rank) -> None:
    """Rank, world size, restarts; the same run id on both ranks, another one for the next run of the same processes."""
    first, second = both([{**shared, **per_rank(rank)} for rank in (0, 1)])
    assert (first.kind, first.rank, second.rank, first.world_size) == (kind, 0, 1, 2)
    assert first.run_id(0) == second.run_id(0)
    assert first.run_id(0)[1]
    assert first.run_id(0) != first.run_id(1)
    if kind in ("torchrun", "slurm"):
        assert first.restart_count == 2


def test_launches_of_the_same_name_space_differ() -> None:
    """Another SLURM step, another elastic id, another cluster: other runs."""
    base = {"SLURM_JOB_ID": "41", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_CLUSTER_NAME": "c"}
    ids = {
        _launch.detect({**base, **change}).run_id()[0]
        for change in ({}, {"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "42"}, {"SLURM_CLUSTER_NAME": "d"})
    }
    assert len(ids) == 4


def test_a_static_launch_over_several_nodes_is_not_certain() -> None:
    """torchrun's id is "none" on every launch of every user: each node opens its own run and says so."""
    env = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}
    assert not _launch.detect(env).run_id()[1]


def test_a_plain_program_is_a_run_of_its_own() -> None:
    """Also inside an sbatch script, where SLURM's variables are set but no step is."""
    for env in ({}, {"SLURM_JOB_ID": "41", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}):
        launch = _launch.detect(env)
        assert (launch.kind, launch.rank) == ("python", 0)
        assert launch.run_id()[0] != launch.run_id()[0]


def test_torchrun_with_two_ranks_gives_one_run(shop: Shop, server: Server) -> None:
    """Real torchrun, gloo: one run, two writers of rank 0 and 1, every point of both, all-reduced the same."""
    pytest.importorskip("torch")
    script = shop.work / "ddp.py"
    script.write_text(
        textwrap.dedent("""
        import torch, torch.distributed as dist, sdk
        dist.init_process_group("gloo")
        rank = dist.get_rank()
        run = sdk.init(project="ddp")
        for i in range(10):
            x = torch.tensor(float(rank + i)); dist.all_reduce(x)
            sdk.log({"sum": x, "rank": rank}, step=i)
        dist.destroy_process_group()
        """)
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port, str(script)]
    done = subprocess.run(
        command, env=shop.environment(server, OMP_NUM_THREADS="1"), cwd=shop.work, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert until(lambda: len(server.finishes()) == 2)
    trainers = [about for about in server.writers.values() if about["kind"] == "trainer"]
    assert {about["run"]["id"] for about in server.writers.values()} == {trainers[0]["run"]["id"]}
    assert sorted((about["rank"], about["world_size"]) for about in trainers) == [(0, 2), (1, 2)]
    for rank in (0, 1):
        assert server.points("sum", rank=rank) == [(i, 2.0 * i + 1) for i in range(10)]
        assert server.points("rank", rank=rank) == [(i, rank) for i in range(10)]
    assert {data["state"] for data in server.finishes().values()} == {"finished"}
    assert done.stderr.count("encore: run http") >= 1
