"""What this machine has: told with hello, compared in the evidence. One table of small functions; each may fail alone."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def hardware() -> dict[str, Any]:
    """Of this machine, in the shape of the recipe's section ``hardware``; what cannot be found out is left out."""
    found: dict[str, Any] = {}
    for name, function in FACTS.items():
        try:
            found[name] = function()
        except Exception:  # noqa: S112  # a fact that is missing is missing
            continue
    return found


def usable_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def affinity_for(threads: dict[str, Any]) -> tuple[list[int] | None, str | None]:
    """CPUs to pin a program to so that it sees as many as it did, and what differs if that cannot be had.

    The number of usable cores decides how many threads numeric libraries start, which decides the order of their sums.
    """
    here = usable_cores()
    recorded = threads.get("affinity")
    if isinstance(recorded, list) and recorded and all(isinstance(cpu, int) for cpu in recorded):
        wanted = len(recorded)
        if set(recorded) <= set(here):
            return (None if len(recorded) == len(here) else sorted(recorded)), None
    else:
        cores = threads.get("cores")
        wanted = cores if isinstance(cores, int) else 0
    if not wanted or wanted == len(here):
        return None, None
    if wanted < len(here):
        return here[:wanted], None
    return None, f"the run had {wanted} usable cores, this machine has {len(here)}"


def _cpu() -> dict[str, Any]:
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {"model": model, "cores": len(usable_cores())}


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpus() -> list[dict[str, Any]]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(gpu)
            gpus.append(
                {
                    "model": pynvml.nvmlDeviceGetName(gpu),
                    "uuid": pynvml.nvmlDeviceGetUUID(gpu),
                    "memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(gpu).total,
                    "driver": driver,
                    "compute": f"{major}.{minor}",
                }
            )
        return gpus
    finally:
        pynvml.nvmlShutdown()


FACTS: dict[str, Callable[[], Any]] = {
    "host": platform.node,
    "os": platform.platform,
    "kernel": platform.release,
    "cpu": _cpu,
    "memory_bytes": _memory,
    "gpus": _gpus,
}


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free
