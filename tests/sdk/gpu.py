"""A stand-in for a GPU, at the lowest boundary there is without one: torch's dispatcher.

`Tensor` is a real torch tensor that says it lies on cuda:0; what would be a kernel or a transfer is noted in `device.calls`. A copy that
does not block is done when `device.run()` says so, as on a GPU; an event recorded behind it is over then. No test here has seen a real GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map

READS = ("aten._to_copy", "aten._local_scalar_dense")


class Device:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.queue: list[Callable[[], None]] = []
        self.done = 0
        self.pinned = 0
        self.broken = False

    def run(self, number: int = 1 << 30) -> None:
        """The stream goes on: what was enqueued happens."""
        for action in self.queue[self.done : self.done + number]:
            action()
            self.done += 1

    @property
    def transfers(self) -> list[str]:
        return [call for call in self.calls if call.startswith((*READS, "aten.copy_"))]


device = Device()


class Event:
    def __init__(self) -> None:
        self.after = 0

    def record(self, stream: Any = None) -> None:
        self.after = len(device.queue)

    def query(self) -> bool:
        if device.broken:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return device.done >= self.after


class Tensor(torch.Tensor):
    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Tensor:
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=torch.device("cuda:0"), requires_grad=inner.requires_grad
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        device.calls.append(str(function))
        bare = tree_map(lambda value: value.inner if isinstance(value, Tensor) else value, (args, dict(kwargs or {})))
        if str(function).startswith("aten.copy_") and len(args) > 2 and args[2]:
            target, source = bare[0][0], bare[0][1]
            device.queue.append(lambda: target.copy_(source))
            return args[0]
        if "device" in bare[1]:
            bare[1]["device"] = torch.device("cpu")
        result = function(*bare[0], **bare[1])
        if str(function).startswith(READS):
            return result
        return tree_map(lambda value: Tensor(value) if isinstance(value, torch.Tensor) else value, result)


def install(monkeypatch: Any) -> Device:
    device.__init__()  # type: ignore[misc]
    empty = torch.empty

    def pinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        device.pinned += pin_memory
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return device
