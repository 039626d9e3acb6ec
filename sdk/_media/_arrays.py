"""Arrays of numpy and torch by one door. Neither is ever imported: who gives us such an array has it loaded."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

from .._device import capturing
from ._base import MOST_RAW_BYTES, Refused


def torch_of(value: Any) -> Any:
    """torch, if the value is one of its tensors."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(value, getattr(torch, "Tensor", ())) else None


def is_array(value: Any) -> bool:
    return torch_of(value) is not None or hasattr(value, "__array__") or hasattr(value, "__array_interface__")


class Snapshot:
    """A private copy of an array: `size` bytes, `shape`; `get()` gives it, once, in the encoding thread.

    As numpy where that is loaded, else as a CPU tensor. `channels_first`: it was a tensor, of which that is the habit.
    """

    def __init__(self, value: Any) -> None:
        torch = torch_of(value)
        self.channels_first = torch is not None
        self.get: Callable[[], Any]
        if torch is not None:
            value = value.detach()
            if hasattr(value, "full_tensor"):
                raise Refused("a DTensor is spread over ranks; gather it yourself (x.full_tensor()) and log it on one of them")
            if capturing(value):
                raise Refused("a tensor inside a CUDA graph's capture has no value yet")
            self.shape, self.size = tuple(value.shape), value.numel() * value.element_size()
            _check(self.size)
            self.get = _torch_copy(torch, value)
        else:
            numpy = sys.modules.get("numpy")
            if numpy is None:
                raise Refused(f"{type(value).__name__} is no array that can be read without numpy")
            if hasattr(value, "nbytes"):
                _check(int(value.nbytes))
            copied = numpy.array(value, copy=True, order="C")
            if copied.dtype == object:
                raise Refused("an array of Python objects is no array of numbers")
            self.shape, self.size = copied.shape, int(copied.nbytes)
            _check(self.size)
            self.get = lambda: copied


def _check(size: int) -> None:
    if size > MOST_RAW_BYTES:
        raise Refused(f"an array of {size / 2**20:.0f} MiB is more than the {MOST_RAW_BYTES >> 20} MiB that one value may have")


def _torch_copy(torch: Any, value: Any) -> Callable[[], Any]:
    """A clone on the tensor's own device, in the order of its stream: the caller does not wait for the device."""
    if value.device.type == "cpu" and (found := numpy_of(value)) is not None:
        copied = found.copy()  # one thread copies as fast as memory goes; torch's threads would wait for each other on busy cores
        return lambda: copied
    copied = value.clone()
    if not value.is_cuda:
        return lambda: _settled(copied)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(value.device))

    def get() -> Any:
        done.synchronize()  # here, in our thread; the copy below would not wait for another stream
        return _settled(copied)

    return get


def _settled(tensor: Any) -> Any:
    tensor = tensor.cpu().contiguous()
    found = numpy_of(tensor)
    return tensor if found is None else found


def numpy_of(tensor: Any) -> Any:
    """A CPU tensor as numpy (the same memory), where that is loaded: one thread is used then, not those that training needs."""
    if "numpy" not in sys.modules:
        return None
    torch = sys.modules["torch"]
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    try:
        return tensor.numpy()
    except Exception:  # a torch that was built for another numpy, or a type that numpy has not
        return None


def torch_bytes(tensor: Any) -> bytes:
    tensor = tensor.contiguous()
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size()) if tensor.numel() else b""


def as_bytes(array: Any) -> bytes:
    return torch_bytes(array) if torch_of(array) is not None else array.tobytes()
