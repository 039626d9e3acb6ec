"""sdk.throughput: what a step is worth. The sender makes tokens per second and MFU of it; training only says the figures, once."""

from __future__ import annotations

import math
from typing import Any

from . import _run
from ._plain import text
from .errors import UsageError

# Dense peaks (without sparsity) in FLOP/s of one device, from the makers' data sheets: NVIDIA A100, H100, H200, B200, L40S, L4, V100, T4;
# AMD Instinct MI250X, MI300X; Google Cloud TPU v4, v5e, v5p, v6e. "H100" and "H200" are the SXM boards; a PCIe H100 reaches 756e12.
PEAKS: dict[str, dict[str, float]] = {
    "v100": {"fp16": 125e12, "fp32": 15.7e12},
    "t4": {"fp16": 65e12, "fp32": 8.1e12},
    "l4": {"bf16": 121e12, "fp16": 121e12, "fp8": 242e12, "tf32": 60e12, "fp32": 30.3e12},
    "l40s": {"bf16": 362e12, "fp16": 362e12, "fp8": 733e12, "tf32": 183e12, "fp32": 91.6e12},
    "a100": {"bf16": 312e12, "fp16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
    "h100": {"bf16": 989.4e12, "fp16": 989.4e12, "fp8": 1978.9e12, "tf32": 494.7e12, "fp32": 67e12},
    "h100 pcie": {"bf16": 756e12, "fp16": 756e12, "fp8": 1513e12, "tf32": 378e12, "fp32": 51e12},
    "h200": {"bf16": 989.4e12, "fp16": 989.4e12, "fp8": 1978.9e12, "tf32": 494.7e12, "fp32": 67e12},
    "b200": {"bf16": 2250e12, "fp16": 2250e12, "fp8": 4500e12, "tf32": 1125e12, "fp32": 75e12},
    "mi250x": {"bf16": 383e12, "fp16": 383e12, "fp32": 47.9e12},
    "mi300x": {"bf16": 1307.4e12, "fp16": 1307.4e12, "fp8": 2614.9e12, "fp32": 163.4e12},
    "tpu v4": {"bf16": 275e12},
    "tpu v5e": {"bf16": 197e12},
    "tpu v5p": {"bf16": 459e12},
    "tpu v6e": {"bf16": 918e12},
}


def peak_of(given: Any) -> float | None:
    """FLOP/s of one device: a number as it is, or a name such as "H100 bf16" from the table. Raises UsageError."""
    if given is None or (isinstance(given, (int, float)) and not isinstance(given, bool) and math.isfinite(given) and given > 0):
        return None if given is None else float(given)
    if isinstance(given, str):
        board, _, precision = given.strip().lower().rpartition(" ")
        found = PEAKS.get(board, {}).get(precision)
        if found is not None:
            return found
        known = ", ".join(f"{name} ({', '.join(kinds)})" for name, kinds in PEAKS.items())
        raise UsageError(f"peak_flops={given!r} is not known; give a number of FLOP/s, or a board and a precision: {known}")
    raise UsageError(f"peak_flops is FLOP/s of one device as a number, or such as 'H100 bf16', not {given!r}")


def throughput(
    tokens_per_step: float | str | None = None,
    *,
    flops_per_token: float | None = None,
    peak_flops: float | str | None = None,
    devices: int | None = None,
) -> None:
    """See docs/system-metrics.md."""
    peak = peak_of(peak_flops)
    for name, value in (("tokens_per_step", tokens_per_step), ("flops_per_token", flops_per_token), ("devices", devices)):
        if isinstance(value, str) and name == "tokens_per_step" and value:
            continue
        if value is not None and (isinstance(value, (str, bool)) or not math.isfinite(float(value)) or float(value) <= 0):
            raise UsageError(f"{name} is a number above 0, not {value!r}")
    run = _run.current
    if run is None:
        return
    run._emit(
        {
            "type": "throughput",
            "tokens_per_step": text(tokens_per_step) if isinstance(tokens_per_step, str) else _number(tokens_per_step),
            "flops_per_token": _number(flops_per_token),
            "peak_flops": peak,
            "devices": int(devices) if devices is not None else run.launch.world_size,
        }
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
