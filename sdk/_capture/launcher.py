"""Who started this process: torchrun, accelerate, mpirun, srun, … found among the parents' command lines."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from .. import _secrets

_MODULES = {
    "torch.distributed.run": "torchrun",
    "torch.distributed.launch": "torchrun",
    "accelerate.commands.launch": "accelerate",
    "accelerate.commands.accelerate_cli": "accelerate",
    "deepspeed.launcher.launch": "deepspeed",
    "deepspeed.launcher.runner": "deepspeed",
    "horovod.runner.launch": "horovod",
}
_PROGRAMS = {
    "torchrun": "torchrun",
    "accelerate": "accelerate",
    "accelerate-launch": "accelerate",
    **dict.fromkeys(("mpirun", "mpiexec", "mpiexec.hydra", "orterun", "prterun", "prun"), "mpi"),
    **dict.fromkeys(("srun", "slurmstepd"), "slurm"),
    "deepspeed": "deepspeed",
    "horovodrun": "horovod",
    "composer": "composer",
    "fabric": "lightning",
}
_PER_NODE = ("nproc-per-node", "nproc_per_node", "num_gpus", "num-gpus", "ntasks-per-node", "npernode", "ppn", "ppr", "nproc")
_TOTAL = ("num_processes", "num-processes", "np", "n", "ntasks")
_NODES = ("nnodes", "num_machines", "num-machines", "num_nodes", "nodes", "N")
MAX_DEPTH = 8


def kind_of(argv: list[str]) -> str | None:
    """Which launcher a command line is, or None."""
    for index, argument in enumerate(argv[:4]):
        if argument == "-m" and index + 1 < len(argv):
            return _MODULES.get(argv[index + 1])
        if index > 0 and argument == "-c":
            return None
        name = _PROGRAMS.get(os.path.basename(argument).removesuffix(".exe").rstrip(":"))
        if name == "accelerate" and os.path.basename(argument) == "accelerate" and "launch" not in argv[index + 1 : index + 2]:
            return None
        if name and (index == 0 or re.match(r"python[0-9.]*$|pypy", os.path.basename(argv[0]))):
            return name
        if index > 0 and not argument.startswith("-"):
            return None  # the interpreter's own script: another program
    return None


def option(argv: list[str], names: tuple[str, ...]) -> int | None:
    """A numeric option given as `--name n`, `--name=n`, `-n n`; ranges like `1:4` give their upper end."""
    for index, argument in enumerate(argv):
        if not argument.startswith("-"):
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        if name in names:
            text = value if equals else (argv[index + 1] if index + 1 < len(argv) else "")
            match = re.fullmatch(r"(?:\d+:)?(\d+)", text)
            if match:
                return int(match[1])
    return None


def _proc_parent(pid: int) -> tuple[int, list[str]] | None:
    """(parent's pid, own argv) from /proc; a cheap read, no library."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            parent = int(file.read().rpartition(b")")[2].split()[1])
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            argv = [os.fsdecode(each) for each in file.read().rstrip(b"\0").split(b"\0")]
        return parent, argv
    except (OSError, ValueError, IndexError):
        return None


def _psutil_parent(pid: int) -> tuple[int, list[str]] | None:
    try:
        import psutil

        process = psutil.Process(pid)
        return process.ppid(), process.cmdline()
    except Exception:
        return None


def facts(pid: int, environ: Mapping[str, str], look: Callable[[int], tuple[int, list[str]] | None] | None = None) -> dict[str, Any] | None:
    """The launcher of process `pid`, or None: `{"kind", "argv", "nproc_per_node", "nnodes"}`."""
    look = look or (_proc_parent if os.path.isdir("/proc/self") else _psutil_parent)
    argv, kind = None, None
    current = look(pid)
    for _ in range(MAX_DEPTH):
        if current is None or current[0] <= 1:
            break
        current = look(current[0])
        if current is None:
            break
        kind = kind_of(current[1])
        if kind is not None:
            argv = current[1]
            break
    if kind is None:
        kind = _by_environment(environ)
    if kind is None:
        return None
    own = argv or []
    # Options after the program's name are the program's own.
    end = next((i for i, each in enumerate(own) if i > 0 and each.endswith(".py") and not kind_of(own[: i + 1][-1:])), len(own))
    options = own[:end] if end else own
    nodes = option(options, _NODES) or _number(environ, "GROUP_WORLD_SIZE", "SLURM_NNODES", "SLURM_JOB_NUM_NODES") or 1
    per_node = option(options, _PER_NODE) or _number(
        environ, "LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE"
    )
    if per_node is None:
        total = option(options, _TOTAL) or _number(environ, "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")
        per_node = max(1, total // nodes) if total else None
    return {"kind": kind, "argv": _secrets.mask_argv(own) if argv else None, "nproc_per_node": per_node, "nnodes": nodes}


def _by_environment(environ: Mapping[str, str]) -> str | None:
    for name, kind in (
        ("TORCHELASTIC_RUN_ID", "torchrun"),
        ("OMPI_COMM_WORLD_SIZE", "mpi"),
        ("PMI_SIZE", "mpi"),
        ("HOROVOD_SIZE", "horovod"),
        ("SLURM_STEP_ID", "slurm"),
    ):
        if environ.get(name):
            return kind
    return "static" if environ.get("RANK") and environ.get("WORLD_SIZE") and environ.get("MASTER_ADDR") else None


def _number(environ: Mapping[str, str], *names: str) -> int | None:
    for name in names:
        match = re.match(r"\d+", environ.get(name, ""))
        if match:
            return int(match[0])
    return None
