"""Ranks of one launch find one run, with no word exchanged."""

from __future__ import annotations

import pytest

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


@pytest.mark.parametrize("given", ["none", "100", "my_job", ""])
def test_an_elastic_id_that_names_no_launch_is_not_taken_for_one(given: str) -> None:
    """Tutorials' ids would make one run of every training of everybody who copied the command."""
    env = {"TORCHELASTIC_RUN_ID": given, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    assert _launch.detect(env).id is None
    assert _launch.detect(env | {"TORCHELASTIC_RUN_ID": "exp-17"}).id == "exp-17"


def test_mpirun_in_a_job_has_one_name_on_all_nodes() -> None:
    """It starts daemons on other nodes by srun, so ranks there have a step and ranks beside it have none: the job and PMIx's name count."""
    env = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-h-12@1", "SLURM_JOB_ID": "41"}
    here = _launch.detect(env | {"OMPI_COMM_WORLD_RANK": "0"})
    there = _launch.detect(env | {"OMPI_COMM_WORLD_RANK": "2", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"})
    assert here.run_id() == there.run_id()
    assert here.run_id()[1]


def test_a_static_launch_over_several_nodes_is_not_certain() -> None:
    """torchrun's id is "none" on every launch of every user: each node opens its own run and says so."""
    env = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}
    assert not _launch.detect(env).run_id()[1]


def test_a_plain_program_is_a_run_of_its_own() -> None:
    """Also inside an sbatch script, where SLURM's variables are set but no step is."""
    for env in ({}, {"SLURM_JOB_ID": "41", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}):
        launch = _launch.detect(env)
        assert (launch.kind, launch.rank) == ("python", 0)
    first, second = _launch.detect({}).run_id()[0], _launch.detect({}).run_id()[0]
    assert first != second
