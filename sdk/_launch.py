"""Who started this process, as which rank of how many, and the run id that all ranks of one launch find with no word exchanged."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import _process
from ._ids import derived_id, new_id

LAUNCH_VARIABLE = "ENCORE_LAUNCH"  # "run id,pid,start time" of the process that called init, for ranks it starts itself (Lightning)


@dataclass(frozen=True)
class Launch:
    kind: str = "python"
    id: str | None = None  # the launcher's own name of this launch, when it is globally unique
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int | None = None
    restart_count: int = 0
    one_node: bool = True
    starter: str | None = None  # pid + start time of what all ranks of this node have in common
    joins: str | None = None  # the run of the parent process
    coordinates: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        shared = self.id
        if (
            shared is None and self.kind != "python" and self.starter is not None
        ):  # no name for ever, but the ranks of this start have it in common
            shared = derived_id("starter", _process.boot_id(), _process.pid_namespace(), _process.host(), self.starter)
        return {"kind": self.kind, "id": shared, "restart_count": self.restart_count, "coordinates": self.coordinates}

    def run_id(self, turn: int = 0) -> tuple[str, bool]:
        """(run id, certain). turn: how many runs this process has begun before: the second init of a launch is a second run.

        Not certain: several nodes, and nothing that names this launch alone; each node then opens a run of its own.
        """
        if self.joins is not None and turn == 0:
            return self.joins, True
        if self.id is not None:
            return derived_id("launch", self.kind, self.id, turn), True
        if self.kind == "python" or self.starter is None:
            return new_id(), self.world_size == 1
        return derived_id("starter", _process.boot_id(), _process.pid_namespace(), _process.host(), self.starter, turn), self.one_node


def detect(environ: Mapping[str, str] | None = None) -> Launch:
    env = os.environ if environ is None else environ
    for look in (_torchrun, _horovod, _mpi, _pmi, _torch_environment, _slurm):
        launch = look(env)
        if launch is not None:
            return launch
    return Launch(joins=None)


def _int(env: Mapping[str, str], *names: str, default: int | None = None) -> int | None:
    for name in names:
        try:
            return int(env[name])
        except (KeyError, ValueError):
            continue
    return default


def _parent() -> str | None:
    pid = os.getppid()
    start = _process.started(pid)
    return None if start is None else f"{pid}:{start}"


def _self() -> str:
    return f"{os.getpid()}:{_process.started(os.getpid())}"


def _slurm_step(env: Mapping[str, str]) -> str | None:
    """Unique for ever on a cluster; an array task has a job id of its own. None outside a step (sbatch's script, salloc's shell)."""
    job, step = env.get("SLURM_JOB_ID") or env.get("SLURM_JOBID"), env.get("SLURM_STEP_ID") or env.get("SLURM_STEPID")
    if not job or not (step or "").isdigit():
        return None
    return f"{env.get('SLURM_CLUSTER_NAME', '')}/{job}/{step}"


def _coordinates(env: Mapping[str, str]) -> dict[str, int]:
    names = {"node": ("GROUP_RANK", "NODE_RANK", "SLURM_NODEID", "HOROVOD_CROSS_RANK"), "local": ("LOCAL_RANK", "SLURM_LOCALID")}
    found = {key: _int(env, *variables) for key, variables in names.items()}
    return {key: value for key, value in found.items() if value is not None}


def _torchrun(env: Mapping[str, str]) -> Launch | None:
    """torchrun and what stands on it (Accelerate on several processes, Lightning under torchrun)."""
    if "TORCHELASTIC_RUN_ID" not in env or "RANK" not in env:
        return None
    world = _int(env, "WORLD_SIZE", default=1) or 1
    local_world = _int(env, "LOCAL_WORLD_SIZE", default=world) or world
    given = env["TORCHELASTIC_RUN_ID"]
    step = _slurm_step(env)
    unique: str | None = given if given not in ("", "none") else None
    if unique is None and step is not None:  # static rendezvous inside a SLURM step: several can follow each other in it
        unique = f"{step}/{env.get('MASTER_ADDR')}:{env.get('MASTER_PORT')}"
    return Launch(
        kind="accelerate" if any(name.startswith("ACCELERATE_") for name in env) else "torchrun",
        id=unique,
        rank=_int(env, "RANK", default=0) or 0,
        local_rank=_int(env, "LOCAL_RANK", default=0) or 0,
        world_size=world,
        local_world_size=local_world,
        restart_count=_int(env, "TORCHELASTIC_RESTART_COUNT", default=0) or 0,
        one_node=local_world == world,
        starter=_parent(),
        coordinates=_coordinates(env),
    )


def _horovod(env: Mapping[str, str]) -> Launch | None:
    rank = _int(env, "HOROVOD_RANK")
    if rank is None:
        return None
    world, local = _int(env, "HOROVOD_SIZE", default=1) or 1, _int(env, "HOROVOD_LOCAL_SIZE", default=1) or 1
    rendezvous = env.get("HOROVOD_GLOO_RENDEZVOUS_ADDR"), env.get("HOROVOD_GLOO_RENDEZVOUS_PORT")
    # Each rank has a shell of its own as parent; the rendezvous port is taken anew for each launch.
    starter = f"horovod {rendezvous[0]}:{rendezvous[1]}" if all(rendezvous) else _parent()
    return Launch(
        "horovod",
        _slurm_step(env),
        rank,
        _int(env, "HOROVOD_LOCAL_RANK", default=0) or 0,
        world,
        local,
        0,
        local == world,
        starter,
        None,
        _coordinates(env),
    )


def _mpi(env: Mapping[str, str]) -> Launch | None:
    rank = _int(env, "OMPI_COMM_WORLD_RANK")
    if rank is None:
        return None
    world, local = _int(env, "OMPI_COMM_WORLD_SIZE", default=1) or 1, _int(env, "OMPI_COMM_WORLD_LOCAL_SIZE", default=1) or 1
    name = env.get("PMIX_NAMESPACE") or env.get("OMPI_MCA_ess_base_jobid")
    starter = f"mpi {name}" if name else _parent()  # unique on the host that ran mpirun, not in the world
    return Launch(
        "mpi",
        _slurm_step(env),
        rank,
        _int(env, "OMPI_COMM_WORLD_LOCAL_RANK", default=0) or 0,
        world,
        local,
        0,
        local == world,
        starter,
        None,
        _coordinates(env),
    )


def _pmi(env: Mapping[str, str]) -> Launch | None:
    """MPICH, Intel MPI, MVAPICH: Hydra starts all ranks of a node from one proxy. Under srun the PMI variables are SLURM's."""
    rank, world = _int(env, "PMI_RANK", "MV2_COMM_WORLD_RANK"), _int(env, "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
    if rank is None or world is None or "SLURM_PROCID" in env:
        return None
    local = _int(env, "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE", default=world) or world
    return Launch(
        "mpi",
        None,
        rank,
        _int(env, "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK", default=0) or 0,
        world,
        local,
        0,
        local == world,
        _parent(),
        None,
        _coordinates(env),
    )


def _torch_environment(env: Mapping[str, str]) -> Launch | None:
    """DeepSpeed's launcher, Lightning's own, and anything else that sets torch's variables by hand."""
    local_rank, world = _int(env, "LOCAL_RANK"), _int(env, "WORLD_SIZE")
    if local_rank is None or world is None:
        return None
    deepspeed = "CROSS_RANK" in env or "CROSS_SIZE" in env
    local_world = _int(env, "LOCAL_WORLD_SIZE", "LOCAL_SIZE")
    node = _int(env, "NODE_RANK", "GROUP_RANK", "CROSS_RANK", default=0) or 0
    rank = _int(env, "RANK")
    if rank is None:
        rank = node * (local_world or world) + local_rank
    joins, starter = _joined(env)
    return Launch(
        "deepspeed" if deepspeed else "lightning" if "PL_GLOBAL_SEED" in env or "NODE_RANK" in env else "torch",
        _slurm_step(env),
        rank,
        local_rank,
        world,
        local_world,
        0,
        (local_world or world) == world,
        starter,
        joins,
        _coordinates(env),
    )


def _joined(env: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Lightning's rank 0 is the user's own process and starts the others from itself: then it is what the ranks have in common.

    If it had called init before, its children inherit the run's id; if not, the variables are missing in the environment it began with.
    """
    run, _, starter = env.get(LAUNCH_VARIABLE, "").partition(",")
    parent = _parent()
    if run and starter and starter == parent:
        return run, parent
    try:
        with open("/proc/self/environ", "rb") as file:
            began_with = {entry.split(b"=", 1)[0] for entry in file.read().split(b"\0")}
        if b"LOCAL_RANK" not in began_with:
            return None, _self()
    except OSError:
        pass
    return None, parent


def _slurm(env: Mapping[str, str]) -> Launch | None:
    step, rank = _slurm_step(env), _int(env, "SLURM_PROCID")
    if step is None or rank is None:
        return None
    world = _int(env, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS", default=1) or 1
    nodes = _int(env, "SLURM_STEP_NUM_NODES", "SLURM_NNODES", default=1) or 1
    restarts = _int(env, "SLURM_RESTART_COUNT", default=0) or 0
    return Launch(
        "slurm", step, rank, _int(env, "SLURM_LOCALID", default=0) or 0, world, None, restarts, nodes == 1, None, None, _coordinates(env)
    )


def announce(run_id: str) -> None:
    """Let ranks that this process starts itself find its run."""
    os.environ[LAUNCH_VARIABLE] = f"{run_id},{_self()}"
