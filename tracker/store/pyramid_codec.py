"""The pyramid of a block (docs/formats.md, Block, pyramid): what each 256 points of a column amount to, for charts of very long series.

Only axes of at least ``LEAST_ROWS`` rows whose steps rise strictly have one: there an entry is a stretch of the series.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

ENTRY_POINTS = 256
LEAST_ROWS = 16_384
"""A shorter axis is read as fast in full; this many rows are 64 entries."""
TABLE = np.dtype([("what", "<u4"), ("bytes", "<u4"), ("at", "<u8"), ("crc", "<u4"), ("zero", "<u4")])
"""One row for each axis and column that has a pyramid: ``what`` is the column's place, or ``AXES`` + the axis's."""
AXES = 2**31
_COUNT = struct.Struct("<II")
"""Behind the table, at the directory's end: its rows, and 0."""
_AXIS_HEAD = struct.Struct("<BBHII")
_COLUMN_HEAD = struct.Struct("<BBBBIII")
Pack = Callable[[np.ndarray], tuple[int, bytes]]
Unpack = Callable[[bytes, int, str, int], np.ndarray]
"""(bytes, codec, dtype, length) → array; raises DamagedBlock."""


@dataclass
class AxisEntries:
    """Of each entry, int64: the first and the last point's step and time (µs UTC), and how many points it covers."""

    first_step: np.ndarray
    last_step: np.ndarray
    first_time: np.ndarray
    last_time: np.ndarray
    count: np.ndarray

    @property
    def nbytes(self) -> int:
        return 5 * self.count.nbytes


@dataclass
class ColumnEntries:
    """Of each entry: min and max (NaN if all are), sum over what is not NaN (float64), first and last point as logged, NaN and Inf counts.

    min, max, first and last are of the column's own type, float64 or int64.
    """

    min: np.ndarray
    max: np.ndarray
    first: np.ndarray
    last: np.ndarray
    sum: np.ndarray
    nan: np.ndarray
    inf: np.ndarray

    @property
    def nbytes(self) -> int:
        return 6 * self.sum.nbytes


def table_bytes(rows: int) -> int:
    return rows * TABLE.itemsize + _COUNT.size


def with_count(table: np.ndarray) -> bytes:
    return table.tobytes() + _COUNT.pack(len(table), 0)


def without_table(directory: bytes, shift: int) -> tuple[bytes, np.ndarray]:
    """The directory before the table, and the table; ``shift`` is added to its offsets. Raises ValueError."""
    count = _COUNT.unpack_from(directory, len(directory) - _COUNT.size)[0] if len(directory) >= _COUNT.size else 0
    start = len(directory) - table_bytes(count)
    if start < 0 or not count:
        raise ValueError("its table of pyramids is cut short")
    table = np.frombuffer(directory, TABLE, count, start)
    if shift:
        table = table.copy()
        table["at"] += np.uint64(shift)
    return directory[:start], table


def entries(rows: int) -> int:
    return -(-rows // ENTRY_POINTS)


def counts(rows: int) -> np.ndarray:
    found = np.full(entries(rows), ENTRY_POINTS, np.int64)
    if rows % ENTRY_POINTS:
        found[-1] = rows % ENTRY_POINTS
    return found


def has_pyramid(records: np.ndarray, steps: np.ndarray) -> bool:
    """Whether a block's axis gets one."""
    return len(steps) >= LEAST_ROWS and bool((steps[1:] > steps[:-1]).all() and (records[1:] >= records[:-1]).all())


def of_axis(steps: np.ndarray, times: np.ndarray) -> AxisEntries:
    firsts = np.arange(0, len(steps), ENTRY_POINTS)
    lasts = np.minimum(firsts + ENTRY_POINTS, len(steps)) - 1
    return AxisEntries(steps[firsts], steps[lasts], times[firsts], times[lasts], counts(len(steps)))


def of_column(values: np.ndarray) -> ColumnEntries:
    """``values``: float64 or int64, at least one."""
    firsts = np.arange(0, len(values), ENTRY_POINTS)
    lasts = np.minimum(firsts + ENTRY_POINTS, len(values)) - 1
    first, last = values[firsts], values[lasts]
    nothing = np.zeros(len(firsts), "<u4")
    if values.dtype.kind == "i":
        low, high = np.minimum.reduceat(values, firsts), np.maximum.reduceat(values, firsts)
        return ColumnEntries(low, high, first, last, np.add.reduceat(values.astype("<f8"), firsts), nothing, nothing)
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = np.fmin.reduceat(values, firsts), np.fmax.reduceat(values, firsts)
        total = np.add.reduceat(values, firsts)
        if np.isfinite(total).all():
            return ColumnEntries(low, high, first, last, total, nothing, nothing)
        is_nan = np.isnan(values)
        total = np.add.reduceat(np.where(is_nan, 0.0, values), firsts)
        nan, inf = (np.add.reduceat(odd.astype("<u4"), firsts).astype("<u4") for odd in (is_nan, np.isinf(values)))
    return ColumnEntries(low, high, first, last, total, nan, inf)


# -- bytes -------------------------------------------------------------------------------------------------------------------------------


def axis_bytes(found: AxisEntries, pack: Pack) -> bytes:
    steps = pack(np.concatenate([found.first_step, found.last_step]).astype("<i8"))
    times = pack(np.concatenate([found.first_time, found.last_time]).astype("<i8"))
    return _AXIS_HEAD.pack(steps[0], times[0], 0, len(steps[1]), len(times[1])) + steps[1] + times[1]


def column_bytes(found: ColumnEntries, pack: Pack) -> bytes:
    values = pack(np.concatenate([found.min, found.max, found.first, found.last]))
    total = pack(found.sum)
    odd = pack(np.concatenate([found.nan, found.inf])) if found.nan.any() or found.inf.any() else (0, b"")
    return _COLUMN_HEAD.pack(values[0], total[0], odd[0], 0, len(values[1]), len(total[1]), len(odd[1])) + values[1] + total[1] + odd[1]


def axis_from(raw: bytes, rows: int, unpack: Unpack) -> AxisEntries:
    steps_codec, times_codec, _, steps_bytes, times_bytes = _AXIS_HEAD.unpack_from(raw)
    number, at = entries(rows), _AXIS_HEAD.size
    steps = unpack(raw[at : at + steps_bytes], steps_codec, "<i8", 2 * number)
    times = unpack(raw[at + steps_bytes : at + steps_bytes + times_bytes], times_codec, "<i8", 2 * number)
    return AxisEntries(steps[:number], steps[number:], times[:number], times[number:], counts(rows))


def column_from(raw: bytes, rows: int, dtype: str, unpack: Unpack) -> ColumnEntries:
    values_codec, sum_codec, odd_codec, _, values_bytes, sum_bytes, odd_bytes = _COLUMN_HEAD.unpack_from(raw)
    number, at = entries(rows), _COLUMN_HEAD.size
    values = unpack(raw[at : at + values_bytes], values_codec, dtype, 4 * number)
    at += values_bytes
    total = unpack(raw[at : at + sum_bytes], sum_codec, "<f8", number)
    at += sum_bytes
    odd = unpack(raw[at : at + odd_bytes], odd_codec, "<u4", 2 * number) if odd_bytes else np.zeros(2 * number, "<u4")
    low, high, first, last = (values[n * number : (n + 1) * number] for n in range(4))
    return ColumnEntries(low, high, first, last, total, odd[:number], odd[number:])
