"""Values that lie on a device: read together, one transfer for all of a kind, since each reading stops the stream.

torch and jax are looked at in sys.modules and never imported.
"""

from __future__ import annotations

import sys
from typing import Any


def on_device(value: Any) -> bool:
    """A torch tensor of one element that the CPU cannot read without a transfer."""
    torch: Any = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)
    if tensor is None or not isinstance(value, tensor):
        return False
    try:
        return value.device.type not in ("cpu", "meta") and value.numel() == 1
    except Exception:
        return False


def capturing(value: Any) -> bool:
    """Inside a CUDA graph's capture: reading a value there breaks the capture, and training with it."""
    torch: Any = sys.modules.get("torch")
    try:
        return value.device.type == "cuda" and bool(torch.cuda.is_current_stream_capturing())
    except Exception:
        return False


class Captured:
    """Stands for a value that could not be looked at."""

    shape = ()


Captured.__name__ = "value of a CUDA graph under capture"
Captured.__module__ = "builtins"


def fetched(leaves: dict[str, Any]) -> dict[str, Any]:
    """The same with device values as Python numbers: tensors of one device and dtype are stacked and brought over at once."""
    groups = grouped(leaves)
    for value in leaves.values():
        start = (
            None if type(value) is float else getattr(value, "copy_to_host_async", None)
        )  # jax: all are on their way before the first is waited for
        if start is not None and callable(start):
            try:
                start()
            except Exception:  # noqa: S112 - number_of() will meet it too
                continue
    if not groups:
        return leaves
    found = dict(leaves)
    for members in groups.values():
        if capturing(members[0][1]):
            found.update((key, Captured()) for key, _ in members)
        elif len(members) > 1:
            try:
                read = stacked([value for _, value in members]).cpu().tolist()
            except Exception:  # noqa: S112 - a dtype that cannot be stacked: one by one, by number_of()
                continue
            found.update((key, value) for (key, _), value in zip(members, read, strict=True))
    return found


def grouped(leaves: dict[str, Any]) -> dict[Any, list[tuple[str, Any]]]:
    """(device, dtype) -> [(key, tensor)] of those on a device."""
    groups: dict[Any, list[tuple[str, Any]]] = {}
    for key, value in leaves.items():
        if type(value) is not float and on_device(value):
            groups.setdefault((value.device, value.dtype), []).append((key, value))
    return groups


def stacked(tensors: list[Any]) -> Any:
    torch: Any = sys.modules["torch"]
    return torch.stack([tensor.detach().reshape(()) for tensor in tensors])
