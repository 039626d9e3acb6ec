"""log_later(): values that a device still computes. Their copy is started without waiting, the record is written once it is there.

Asked at later calls of log() and log_later() (one query of the device's event), and at finish. Records keep the step and the time of
their call and are written in the order of the calls; a log() made after may be written before. At most 1,000 calls wait.
"""

from __future__ import annotations

import sys
import time
from time import monotonic_ns
from typing import Any

from . import _values
from ._device import Captured, capturing, grouped, stacked
from ._journal import Writer

MAX_WAITING = 1000
FINISH_SECONDS = 10.0


class _Call:
    """One call on its way: its values in order, those of the device filled in when they come."""

    __slots__ = ("at", "parts", "step", "values")

    def __init__(self, values: dict[str, Any], parts: list[Any], step: int, at: int) -> None:
        self.values, self.parts, self.step, self.at = values, parts, step, at

    def arrived(self) -> bool:
        return all(part.arrived() for part in self.parts)

    def take(self) -> dict[str, Any]:
        for part in self.parts:
            part.put_into(self.values)
        return self.values


class _Tensors:
    """torch: one copy of all tensors of a device and dtype into pinned memory, and an event behind it."""

    def __init__(self, members: list[tuple[str, Any]]) -> None:
        torch: Any = sys.modules["torch"]
        self.keys = [key for key, _ in members]
        device = members[0][1].device
        backend = getattr(torch, device.type)
        self.source = stacked([value for _, value in members])  # kept until it is copied
        self.host = torch.empty(len(members), dtype=self.source.dtype, pin_memory=device.type in ("cuda", "xpu"))
        self.host.copy_(self.source, non_blocking=True)
        self.event = backend.Event()
        stream = getattr(backend, "current_stream", None)
        if stream is None:
            self.event.record()
        else:
            self.event.record(stream(device))

    def arrived(self) -> bool:
        return bool(self.event.query())

    def put_into(self, values: dict[str, Any]) -> None:
        values.update(zip(self.keys, self.host.tolist(), strict=True))


class _Arrays:
    """jax: an array knows itself whether it is ready."""

    def __init__(self, key: str, array: Any) -> None:
        self.key, self.array = key, array
        array.copy_to_host_async()

    def arrived(self) -> bool:
        return bool(self.array.is_ready())

    def put_into(self, values: dict[str, Any]) -> None:
        values[self.key] = self.array.item()


def log_later(writer: Writer, data: Any, step: Any = None) -> None:
    """See sdk.log_later. Raises nothing (but under ENCORE_STRICT=1)."""
    if writer._forward is not None or writer.finished or not hasattr(data, "items"):
        return writer.log(data, step)
    if not writer.waiting and _plain(data):
        return writer.log(data, step)
    at = monotonic_ns()
    number = writer.next_step(step)
    if number is None:
        return
    refused: _values.Refused = []
    try:
        leaves, refused = _values.leaves_of(data)
        values, parts = _start(leaves)
    except Exception as error:
        return writer._drop(type(error).__name__, f"log_later() met {type(error).__name__}: {error}")
    if parts and len(writer.waiting) >= MAX_WAITING:
        writer._drop("too many device values wait", f"more than {MAX_WAITING} calls of log_later() wait for the device", len(values))
    elif parts or writer.waiting:
        writer.waiting.append(_Call(values, parts, number, at))
    else:
        writer.log_at(values, number, at)
    settle(writer)
    if refused:
        from ._media._desk import take

        refused = take(writer, data, refused, number)
    for key, kind in refused:
        writer._drop(kind, f"log_later() cannot take {key!r}: {kind}")


def _plain(data: Any) -> bool:
    """Numbers alone: then it is log()."""
    try:
        return all(type(value) is float or type(value) is int for value in list(data.values()))
    except Exception:
        return False


def _start(leaves: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """(key -> value as it is now, or a place for it; the copies that are on their way)."""
    values = dict(leaves)
    parts: list[Any] = []
    for key, value in leaves.items():
        if callable(getattr(value, "copy_to_host_async", None)) and callable(getattr(value, "is_ready", None)):
            parts.append(_Arrays(key, value))
    for members in grouped(leaves).values():
        if capturing(members[0][1]):
            values.update((key, Captured()) for key, _ in members)
            continue
        try:
            parts.append(_Tensors(members))
        except (AttributeError, NotImplementedError, TypeError):  # a backend without events, a dtype that cannot be stacked: read at once
            values.update((key, _values.number_of(value)) for key, value in members)
    coming = {key for part in parts for key in (part.keys if isinstance(part, _Tensors) else [part.key])}
    for key, value in values.items():
        if key not in coming and type(value) is not float:
            number = _values.number_of(value)  # a CPU tensor may be changed in place before the record is written
            values[key] = value if number is None else number
    return values, parts


def settle(writer: Writer, last: bool = False) -> None:
    """Write what has arrived. last: wait for the rest, for at most ten seconds; what is not there then is counted as lost."""
    waiting = writer.waiting
    deadline = time.monotonic() + FINISH_SECONDS
    try:
        turn = writer.turn.pop()  # one at a time, so that the order stays; nobody waits for it
    except IndexError:
        return
    try:
        while waiting:
            call = waiting[0]
            try:
                while not call.arrived():
                    if not last:
                        return
                    if time.monotonic() > deadline:
                        return _give_up(writer)
                    time.sleep(0.001)
                values = call.take()
            except Exception as error:  # the device's own failure shows at whatever is asked of it next
                waiting.popleft()
                writer._drop("device values could not be read", f"log_later() met {type(error).__name__}: {error}", len(call.values))
                continue
            waiting.popleft()
            writer.log_at(values, call.step, call.at)
    finally:
        writer.turn.append(turn)


def _give_up(writer: Writer) -> None:
    lost = sum(len(call.values) for call in writer.waiting)
    writer.waiting.clear()
    writer._drop("device values did not come", f"{lost} values of log_later() were not there {FINISH_SECONDS:.0f} s after the end", lost)
