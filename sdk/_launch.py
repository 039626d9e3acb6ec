"""Who started this process, as which rank of how many, and the run id that all ranks of one launch find with no word exchanged.

docs/launches.md is the truth table of what this module decides; each of its rows is a test in tests/sdk/launches.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import _ordinals, _process
from ._ids import derived_id, new_id

LAUNCH_VARIABLE = "ENCORE_LAUNCH"  # "run id,pid:start time,what the launcher's variables say" of the process that called init last
JOB_VARIABLES = ("SLURM_JOB_ID", "SLURM_JOBID", "PBS_JOBID", "LSB_JOBID")


@dataclass(frozen=True)
class Launch:
    kind: str = "python"
    id: str | None = None  # a name that all ranks know and that no other launch has
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int | None = None
    restart_count: int = 0  # elastic restarts; under plain srun those of SLURM
    one_node: bool = True
    starter: str | None = None  # pid + start time of what all ranks of this node have in common
    joins: str | None = None  # the run of the parent process
    coordinates: dict[str, int] = field(default_factory=dict)
    requeue: int = 0  # how often the scheduler has put the job back
    group: str | None = None  # what runs of one job array have in common
    parent: str | None = None  # the run whose process started this one, which is no rank of it
    counted: tuple[str, ...] | None = None  # several launches can follow each other under `id`: they are counted on this node

    def as_json(self) -> dict[str, Any]:
        shared = self.id
        if shared is None and self.kind != "python" and self.starter is not None and self.local_world_size == self.world_size:
            # No name for ever, but the ranks of this start have it in common. On several nodes they have nothing.
            shared = self._started_by()
        said: dict[str, Any] = {"kind": self.kind, "id": shared, "restart_count": self.restart_count, "coordinates": self.coordinates}
        if self.local_world_size and self.local_world_size != self.world_size:
            said["local_world_size"] = self.local_world_size  # several nodes: each agent counts its own restarts
        if self.requeue:
            said["requeue"] = self.requeue
        if self.parent:
            said["parent"] = self.parent
        return said

    def run_id(self, turn: int = 0, root: Path | None = None) -> tuple[str, bool]:
        """(run id, certain). turn: how many runs this process has begun before: the second init of a launch is a second run.

        root: the journals' folder, where launches that follow each other under one scheduler's name are counted.
        Not certain: several nodes, and nothing that names this launch alone; see _join.py.
        """
        if self.joins is not None and turn == 0:
            return self.joins, True
        if self.id is not None:
            number = self._number(root)
            if number is None:
                return new_id(), True
            return derived_id("launch", self.kind, self.id if not number else f"{self.id}#{number}", turn), True
        if self.kind == "python" or self.starter is None:
            return new_id(), self.world_size == 1
        return self._started_by(turn), self.one_node

    def _started_by(self, *turn: int) -> str:
        return derived_id("starter", _process.boot_id(), _process.pid_namespace(), _process.host(), self.starter, *turn)

    def _number(self, root: Path | None) -> int | None:
        """How many launches of this name this node has seen before. None: nobody can say, so this one is a run of its own."""
        if self.counted is None or root is None:
            return 0
        return _ordinals.number(root, self.counted, self.starter or _self(), alone=self.kind == "python")

    @property
    def is_spread(self) -> bool:
        """Perhaps over several nodes, which have no name in common: they ask torch's store, and rank 0 answers (_join.py)."""
        return self.world_size > 1 and self.local_world_size != self.world_size and self.id is None and self.joins is None


def detect(environ: Mapping[str, str] | None = None) -> Launch:
    env = os.environ if environ is None else environ
    launch = next((found for look in _LOOKS if (found := look(env)) is not None), None) or _batch(env)
    if environ is None:
        launch = _told_by_torch(launch)
    parent = _parent_run(env, launch)
    if parent is not None:
        return Launch(parent=parent, group=_group(env))
    return dataclasses.replace(launch, requeue=_int(env, "SLURM_RESTART_COUNT", default=0) or 0, group=_group(env))


def announce(run_id: str, launch: Launch) -> None:
    """Let ranks that this process starts itself find its run (Lightning), and let other programs that it starts know they are no ranks."""
    os.environ[LAUNCH_VARIABLE] = f"{run_id},{_self()},{_signature(os.environ, launch)}"


def inherited(environ: Mapping[str, str] | None = None) -> str | None:
    """The run of the process that this one was started by, directly or not."""
    run, starter, _ = _announced(os.environ if environ is None else environ)
    return run if run and starter != _self() else None


def _announced(env: Mapping[str, str]) -> tuple[str, str, str]:
    parts = (env.get(LAUNCH_VARIABLE, "") + ",,").split(",")
    return parts[0], parts[1], parts[2]


def _parent_run(env: Mapping[str, str], launch: Launch) -> str | None:
    """A program started by a rank inherits that rank's variables as they are: it is no rank, but a launch of its own."""
    run, starter, signature = _announced(env)
    if not run or not starter or starter == _self():
        return None
    return run if signature == _signature(env, launch) else None


def _signature(env: Mapping[str, str], launch: Launch) -> str:
    """What the launcher's variables say of this process."""
    named = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_ID", "PMIX_NAMESPACE", "HOROVOD_GLOO_RENDEZVOUS_PORT")
    more = [env.get(name) for name in named] if launch.kind != "python" else []
    return derived_id(launch.kind, launch.rank, launch.local_rank, launch.world_size, launch.restart_count, *more)


# What the environment says ------------------------------------------------------------------------------------------------------


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


def _job(env: Mapping[str, str]) -> str | None:
    """The scheduler's name of this job. SLURM gives a requeued job its old one, and each task of an array one of its own."""
    found = next((env[name] for name in JOB_VARIABLES if env.get(name)), None)
    return f"{env.get('SLURM_CLUSTER_NAME', '')}/{found}" if found else None


def _slurm_step(env: Mapping[str, str]) -> str | None:
    """Unique for ever on a cluster. None outside a step (sbatch's script, salloc's shell)."""
    job, step = env.get("SLURM_JOB_ID") or env.get("SLURM_JOBID"), env.get("SLURM_STEP_ID") or env.get("SLURM_STEPID")
    if not job or not (step or "").isdigit():
        return None
    return f"{_job(env)}/{step}"


def _in_step(env: Mapping[str, str], *more: object) -> tuple[str | None, tuple[str, ...] | None]:
    """(id, counted) inside a SLURM step: a step can hold a shell that starts several launches (srun --pty bash, srun bash train.sh)."""
    step = _slurm_step(env)
    if step is None:
        return None, None
    return step, ("step", step, env.get("SLURM_RESTART_COUNT", "0"), env.get("SLURM_PROCID", "0"), *map(str, more))


def _in_batch(env: Mapping[str, str]) -> tuple[str | None, tuple[str, ...] | None]:
    """(id, counted) in sbatch's own script: what a requeued job finds again is its k-th start of the same command line."""
    job = _job(env)
    if not env.get("SLURM_JOB_ID") or job is None or _slurm_step(env) is not None:
        return None, None
    words = [word for word in getattr(sys, "orig_argv", sys.argv) if "local_rank" not in word.replace("-", "_")]
    name = f"{job}/batch/{derived_id(*words)}"
    return name, ("batch", name, env.get("SLURM_RESTART_COUNT", "0"))


def _group(env: Mapping[str, str]) -> str | None:
    return env.get("SLURM_ARRAY_JOB_ID") or None


def _coordinates(env: Mapping[str, str]) -> dict[str, int]:
    names = {"node": ("GROUP_RANK", "NODE_RANK", "SLURM_NODEID", "HOROVOD_CROSS_RANK"), "local": ("LOCAL_RANK", "SLURM_LOCALID")}
    found = {key: _int(env, *variables) for key, variables in names.items()}
    return {key: value for key, value in found.items() if value is not None}


def _is_a_name(given: str, env: Mapping[str, str]) -> bool:
    """Whether an elastic id can name one launch: not torchrun's default, nor what tutorials put there ("100", "my_job")."""
    if given in ("", "none"):
        return False
    if any(env.get(name) == given for name in JOB_VARIABLES):
        return True
    return any(letter.isdigit() for letter in given) and not given.isdigit()


def _torchrun(env: Mapping[str, str]) -> Launch | None:
    """torchrun and what stands on it (Accelerate on several processes, Lightning under torchrun)."""
    if "TORCHELASTIC_RUN_ID" not in env or "RANK" not in env:
        return None
    world = _int(env, "WORLD_SIZE", default=1) or 1
    local_world = _int(env, "LOCAL_WORLD_SIZE", default=world) or world
    given = env["TORCHELASTIC_RUN_ID"]
    named = _is_a_name(given, env)
    of_job = named and env.get("SLURM_JOB_ID") == given  # as SLURM's users do: the same for every torchrun of the job
    unique, counted = given if named else None, None
    if not named or of_job:  # the step says more, and a job that is put back finds it again
        unique, counted = _in_step(env, "torchrun")
        if unique is None and local_world == world:
            unique, counted = _in_batch(env)
        unique = unique or (given if of_job else None)
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
        counted=counted,
    )


def _horovod(env: Mapping[str, str]) -> Launch | None:
    rank = _int(env, "HOROVOD_RANK")
    if rank is None:
        return None
    world, local = _int(env, "HOROVOD_SIZE", default=1) or 1, _int(env, "HOROVOD_LOCAL_SIZE", default=1) or 1
    address, port = env.get("HOROVOD_GLOO_RENDEZVOUS_ADDR"), env.get("HOROVOD_GLOO_RENDEZVOUS_PORT")
    # Each rank has a shell of its own as parent; the rendezvous port is taken anew for each launch.
    rendezvous = f"horovod {address}:{port}" if address and port else None
    unique, counted = _in_step(env)
    job = _job(env)
    return Launch(
        kind="horovod",
        id=unique or (f"{job}/{rendezvous}" if job and rendezvous else None),
        rank=rank,
        local_rank=_int(env, "HOROVOD_LOCAL_RANK", default=0) or 0,
        world_size=world,
        local_world_size=local,
        one_node=local == world,
        starter=rendezvous or _parent(),
        coordinates=_coordinates(env),
        counted=counted,
    )


def _mpi(env: Mapping[str, str]) -> Launch | None:
    rank = _int(env, "OMPI_COMM_WORLD_RANK")
    if rank is None:
        return None
    world, local = _int(env, "OMPI_COMM_WORLD_SIZE", default=1) or 1, _int(env, "OMPI_COMM_WORLD_LOCAL_SIZE", default=1) or 1
    name = env.get("PMIX_NAMESPACE") or env.get("OMPI_MCA_ess_base_jobid")
    job = _job(env)  # not the step: mpirun starts only its daemons on other nodes by srun, and its own node's ranks by itself
    return Launch(
        kind="mpi",
        id=f"{job}/{name}" if job and name else None,
        rank=rank,
        local_rank=_int(env, "OMPI_COMM_WORLD_LOCAL_RANK", default=0) or 0,
        world_size=world,
        local_world_size=local,
        one_node=local == world,
        starter=f"mpi {name}" if name else _parent(),  # unique on the host that ran mpirun, not in the world
        coordinates=_coordinates(env),
    )


def _pmi(env: Mapping[str, str]) -> Launch | None:
    """MPICH, Intel MPI, MVAPICH: Hydra starts all ranks of a node from one proxy. Under srun the PMI variables are SLURM's."""
    rank, world = _int(env, "PMI_RANK", "MV2_COMM_WORLD_RANK"), _int(env, "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
    if rank is None or world is None or "SLURM_PROCID" in env:
        return None
    local = _int(env, "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE", default=world) or world
    return Launch(
        kind="mpi",
        rank=rank,
        local_rank=_int(env, "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK", default=0) or 0,
        world_size=world,
        local_world_size=local,
        one_node=local == world,
        starter=_parent(),
        coordinates=_coordinates(env),
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
    unique, counted = _in_step(env, local_rank)
    return Launch(
        kind="deepspeed" if deepspeed else "lightning" if "PL_GLOBAL_SEED" in env or "NODE_RANK" in env else "torch",
        id=unique,
        rank=rank,
        local_rank=local_rank,
        world_size=world,
        local_world_size=local_world,
        one_node=(local_world or world) == world and node == 0,
        starter=starter,
        joins=joins,
        coordinates=_coordinates(env),
        counted=counted,
    )


def _joined(env: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Lightning's rank 0 is the user's own process and starts the others from itself: then it is what the ranks have in common.

    If it had called init before, its children inherit the run's id; if not, the variables are missing in the environment it began with.
    """
    run, starter, _ = _announced(env)
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
    step, counted = _in_step(env)
    rank = _int(env, "SLURM_PROCID")
    if step is None or rank is None:
        return None
    nodes = _int(env, "SLURM_STEP_NUM_NODES", "SLURM_NNODES", default=1) or 1
    return Launch(
        kind="slurm",
        id=step,
        rank=rank,
        local_rank=_int(env, "SLURM_LOCALID", default=0) or 0,
        world_size=_int(env, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS", default=1) or 1,
        restart_count=_int(env, "SLURM_RESTART_COUNT", default=0) or 0,
        one_node=nodes == 1,
        coordinates=_coordinates(env),
        counted=counted,
    )


def _batch(env: Mapping[str, str]) -> Launch:
    """A plain program; in sbatch's own script one that a requeued job finds again."""
    unique, counted = _in_batch(env)
    return Launch(id=unique, counted=counted)


_LOOKS = (_torchrun, _horovod, _mpi, _pmi, _torch_environment, _slurm)


# What torch says ----------------------------------------------------------------------------------------------------------------


def torch_distributed() -> Any:
    """torch.distributed, if the program has loaded it and its default group is up."""
    found = sys.modules.get("torch.distributed")
    try:
        return found if found is not None and found.is_available() and found.is_initialized() else None
    except Exception:  # half imported, or torch of another build
        return None


def _told_by_torch(launch: Launch) -> Launch:
    """Where no launcher says the rank, the process group does: mp.spawn, ranks started by hand, Lightning on several nodes.

    Ranks that no launcher started are known each by itself, and joined by the group's store.
    """
    group = torch_distributed()
    try:
        if group is None or "RANK" in os.environ or launch.kind not in ("python", "torch", "lightning"):
            return launch
        rank, world = int(group.get_rank()), int(group.get_world_size())
    except Exception:
        return launch
    if launch.kind != "python":
        return dataclasses.replace(launch, rank=rank, world_size=world)
    return launch if world < 2 else Launch(kind="torch", rank=rank, world_size=world, one_node=False, starter=_self())
