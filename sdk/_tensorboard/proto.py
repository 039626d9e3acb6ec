"""As much of protobuf's wire format as an event needs: fields by number, nested messages as bytes. No schema, no dependency."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

_F64, _F32 = struct.Struct("<d"), struct.Struct("<f")


class Malformed(ValueError):
    """Bytes that are no message."""


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """(value, place behind it) of an unsigned varint."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise Malformed("a varint does not end")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7


def fields(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """(number, wire type, value): an int for 0, 8 and 4 bytes for 1 and 5, the bytes for 2."""
    at, size = 0, len(data)
    while at < size:
        key, at = varint(data, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise Malformed("a field of number 0")
        if kind == 0:
            value, at = varint(data, at)
            yield number, kind, value
            continue
        if kind == 2:
            length, at = varint(data, at)
        elif kind == 1:
            length = 8
        elif kind == 5:
            length = 4
        else:
            raise Malformed(f"wire type {kind}")
        if at + length > size:
            raise Malformed("a field ends behind its message")
        yield number, kind, data[at : at + length]
        at += length


def signed(value: int, bits: int = 64) -> int:
    """int32 and int64 are varints of their two's complement."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def f64(data: memoryview) -> float:
    found: float = _F64.unpack(data)[0]
    return found


def f32(data: memoryview) -> float:
    found: float = _F32.unpack(data)[0]
    return found


def text(data: memoryview) -> str:
    return bytes(data).decode("utf-8", "replace")


def numbers(kind: int, value: Any, code: str) -> list[Any]:
    """A repeated number, packed or one by one. `code`: a struct code for fixed sizes, "v" for varints."""
    if kind == 0:
        return [value]
    if code != "v":
        size = struct.calcsize(code)
        return list(struct.unpack(f"<{len(value) // size}{code}", value[: len(value) // size * size]))
    found, at = [], 0
    while at < len(value):
        one, at = varint(value, at)
        found.append(one)
    return found
