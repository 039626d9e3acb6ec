"""The machine: processor, memory, boards and their drivers."""

from __future__ import annotations

import os
import platform
import socket
from typing import Any

from . import digests, system


def facts(nvml: Any = None) -> dict[str, Any]:
    """The hardware section, less what only the trainer knows (CUDA, cuDNN and NCCL of its torch)."""
    release = platform.freedesktop_os_release() if platform.system() == "Linux" and os.path.exists("/etc/os-release") else {}
    gpus, driver_cuda = boards(nvml)
    value: dict[str, Any] = {
        "host": socket.gethostname(),
        "os": release.get("PRETTY_NAME") or f"{platform.system()} {platform.release()}",
        "kernel": platform.release(),
        "cpu": cpu(),
        "memory_bytes": memory_bytes(),
        "gpus": gpus,
    }
    if driver_cuda:
        value["driver_cuda"] = driver_cuda
    return value


def cpu(file: str = "/proc/cpuinfo") -> dict[str, Any]:
    """Model, cores and a digest of the instruction flags: vector instructions decide which kernels run."""
    fields: dict[str, str] = {}
    try:
        with open(file, encoding="utf-8", errors="replace") as opened:
            for line in opened:
                name, _, text = line.partition(":")
                fields.setdefault(name.strip(), text.strip())
    except OSError:
        pass
    flags = sorted((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "model": fields.get("model name") or fields.get("Processor") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "flags_digest": digests.digest(" ".join(flags).encode()) if flags else None,
        "vector": [each for each in ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve") if each in flags],
    }


def memory_bytes() -> int | None:
    try:
        import psutil

        return int(psutil.virtual_memory().total)
    except Exception:
        return None


def boards(nvml: Any = None) -> tuple[list[dict[str, Any]], str | None]:
    """(GPUs with model, uuid, memory, driver, compute capability; the driver's CUDA version). Empty without NVML."""
    nvml, devices = system._open_nvml(nvml)
    if nvml is None:
        return [], None

    def ask(look: Any) -> Any:
        try:
            value = look()
            return value.decode() if isinstance(value, bytes) else value
        except Exception:
            return None

    driver = ask(nvml.nvmlSystemGetDriverVersion)
    cuda = ask(nvml.nvmlSystemGetCudaDriverVersion)
    found = []
    for device in devices:
        compute = ask(lambda device=device: nvml.nvmlDeviceGetCudaComputeCapability(device))
        found.append(
            {
                "model": ask(lambda device=device: nvml.nvmlDeviceGetName(device)),
                "uuid": ask(lambda device=device: nvml.nvmlDeviceGetUUID(device)),
                "memory_bytes": ask(lambda device=device: nvml.nvmlDeviceGetMemoryInfo(device).total),
                "driver": driver,
                "compute": ".".join(map(str, compute)) if compute else None,
            }
        )
    ask(nvml.nvmlShutdown)
    return found, f"{cuda // 1000}.{cuda % 1000 // 10}" if isinstance(cuda, int) else None
