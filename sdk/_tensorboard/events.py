"""What an event of TensorBoard's says: scalars (old and new style), hyper-parameters; what else it holds is named, not read."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from . import proto
from .proto import Malformed, f32, f64, fields, numbers, signed, text

# DataType of tensor.proto: (struct code of tensor_content, field of the typed list, its code)
_TYPES: dict[int, tuple[str, int, str]] = {
    1: ("f", 5, "f"),
    2: ("d", 6, "d"),
    3: ("i", 7, "v"),
    4: ("B", 7, "v"),
    5: ("h", 7, "v"),
    6: ("b", 7, "v"),
    9: ("q", 10, "v"),
    10: ("?", 11, "v"),
    17: ("H", 7, "v"),
    19: ("e", 13, "v"),
    22: ("I", 16, "v"),
    23: ("Q", 17, "v"),
}
_BFLOAT16, _HALF, _BOOL = 14, 19, 10
_HPARAMS = "_hparams_/session_start_info"


@dataclass
class Event:
    wall_time: float = 0.0
    step: int = 0
    scalars: dict[str, float | int] = field(default_factory=dict)
    hparams: dict[str, Any] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)  # kinds of values that are no scalars


def decode(data: memoryview) -> Event:
    """Raises Malformed."""
    event, summaries = Event(), []
    for number, kind, value in fields(data):
        if number == 1 and kind == 1:
            event.wall_time = f64(value)
        elif number == 2 and kind == 0:
            event.step = signed(value)
        elif number == 5 and kind == 2:
            summaries.append(value)
    for summary in summaries:
        for number, kind, value in fields(summary):
            if number == 1 and kind == 2:
                _value(event, value)
    return event


def _value(event: Event, data: memoryview) -> None:
    tag, plugin, content, simple, tensor, other = "", "", None, None, None, ""
    for number, kind, value in fields(data):
        if number == 1 and kind == 2:
            tag = text(value)
        elif number == 2 and kind == 5:
            simple = f32(value)
        elif number == 8 and kind == 2:
            tensor = value
        elif number == 9 and kind == 2:
            plugin, content = _metadata(value)
        elif number in (4, 5, 6):
            other = {4: "image", 5: "histogram", 6: "audio"}[number]
    if plugin == "hparams":
        if tag == _HPARAMS and content is not None:
            event.hparams.update(_hparams(content))
        return
    if simple is not None:
        event.scalars[tag] = simple
        return
    if tensor is not None and plugin in ("", "scalars"):
        found = _scalar(tensor)
        if found is not None:
            event.scalars[tag] = found
            return
    event.others.append(other or plugin or "tensor")


def _metadata(data: memoryview) -> tuple[str, memoryview | None]:
    """(plugin's name, its content)."""
    for number, kind, value in fields(data):
        if number == 1 and kind == 2:
            name, content = "", None
            for inner, inner_kind, part in fields(value):
                if inner == 1 and inner_kind == 2:
                    name = text(part)
                elif inner == 2 and inner_kind == 2:
                    content = part
            return name, content
    return "", None


def _scalar(data: memoryview) -> float | int | None:
    """The value of a tensor of one number; None for any other."""
    dtype, size, content, lists = 0, 1, None, []
    for number, kind, value in fields(data):
        if number == 1 and kind == 0:
            dtype = value
        elif number == 2 and kind == 2:
            for inner, _, dimension in fields(value):
                if inner == 2:
                    size *= next((signed(length) for part, _, length in fields(dimension) if part == 1), 0)
        elif number == 4 and kind == 2:
            content = value
        elif number >= 5:
            lists.append((number, kind, value))
    if size != 1:
        return None
    if dtype == _BFLOAT16:
        bits = (content and int.from_bytes(content[:2], "little")) or next((numbers(k, v, "v")[0] for n, k, v in lists if n == 13), 0)
        return f32(memoryview(struct.pack("<I", (bits & 0xFFFF) << 16)))
    if dtype not in _TYPES:
        return None
    code, place, list_code = _TYPES[dtype]
    if content is not None and len(content):
        if len(content) != struct.calcsize(f"<{code}"):
            return None
        found = struct.unpack(f"<{code}", content)[0]
    else:
        # An empty list stands for zero, as proto3 leaves zeros out.
        raw = next((values[0] for n, k, v in lists if n == place and (values := numbers(k, v, list_code))), 0)
        if dtype == _HALF:
            found = struct.unpack("<e", struct.pack("<H", int(raw) & 0xFFFF))[0]
        elif list_code == "v" and dtype not in (10, 22, 23):
            found = signed(int(raw))
        else:
            found = raw
    return int(found) if dtype == _BOOL else found


def _hparams(content: memoryview) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, kind, value in fields(content):
        if number == 3 and kind == 2:  # session_start_info
            for inner, inner_kind, entry in fields(value):
                if inner == 1 and inner_kind == 2:  # map<string, Value>
                    name, given = "", None
                    for part, part_kind, data in fields(entry):
                        if part == 1 and part_kind == 2:
                            name = text(data)
                        elif part == 2 and part_kind == 2:
                            given = _struct_value(data)
                    if name:
                        found[name] = given
    return found


def _struct_value(data: memoryview, depth: int = 0) -> Any:
    """google.protobuf.Value."""
    for number, kind, value in fields(data):
        if number == 2 and kind == 1:
            real = f64(value)
            return int(real) if real.is_integer() and abs(real) < 2**53 else real
        if number == 3 and kind == 2:
            return text(value)
        if number == 4 and kind == 0:
            return bool(value)
        if number == 6 and kind == 2 and depth < 16:
            return [_struct_value(item, depth + 1) for part, _, item in fields(value) if part == 1]
    return None


__all__ = ["Event", "Malformed", "decode", "proto"]
