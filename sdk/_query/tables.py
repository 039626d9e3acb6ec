"""Tables for people who analyse: pandas frames and Arrow tables, made of buffers, loaded only when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import UsageError
from .numbers import maybe_number

EXACT = 2**53


def library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(f"this form needs {name}, which is not installed here: pip install {name}") from None


# Points -------------------------------------------------------------------------------------------------------------------------


def points_to_pandas(series: list[Any], names: bool = True) -> Any:
    """``value`` is int64 where all are ints, float64 where that is exact, else it holds Python's own numbers."""
    pandas, numpy = library("pandas"), library("numpy")
    lengths = [len(one) for one in series]

    def joined(parts: list[Any], dtype: str) -> Any:
        arrays = [numpy.frombuffer(part, dtype) if len(part) else numpy.empty(0, dtype) for part in parts]
        return numpy.concatenate(arrays) if arrays else numpy.empty(0, dtype)

    columns: dict[str, Any] = {}
    if names:
        for name in ("run", "key"):
            known: dict[str, int] = {}
            codes = [known.setdefault(getattr(one, name), len(known)) for one in series]
            columns[name] = pandas.Categorical.from_codes(numpy.repeat(numpy.array(codes, "i4"), lengths), list(known))
        columns["rank"] = numpy.repeat(numpy.array([one.rank for one in series], "i4"), lengths)
    columns["step"] = joined([one.steps for one in series], "i8")
    times = joined([one.times for one in series], "i8").astype("M8[us]")
    columns["time"] = pandas.Series(times).dt.tz_localize("UTC")
    columns["value"] = _numpy_values(numpy, series, joined)
    return pandas.DataFrame(columns)


def _numpy_values(numpy: Any, series: list[Any], joined: Any) -> Any:
    kinds = {one.kind for one in series}
    if kinds == {"q"}:
        return joined([one.bits for one in series], "i8")
    if kinds <= {"d"}:
        return joined([one.bits for one in series], "f8")
    parts, inexact = [], False
    for one in series:
        bits = numpy.frombuffer(one.bits, "i8")
        whole = numpy.ones(len(bits), bool) if one.kind == "q" else numpy.zeros(len(bits), bool)
        if one.kind == "m":
            whole = numpy.frombuffer(one.is_int, "u1").astype(bool)
        inexact = inexact or bool(((bits > EXACT) | (bits < -EXACT))[whole].any())
        parts.append(numpy.where(whole, bits.astype("f8"), bits.view("f8")))
    if inexact:
        return numpy.array([value for one in series for value in one.values], dtype=object)
    return numpy.concatenate(parts)


def points_to_arrow(series: list[Any], names: bool = True) -> Any:
    """``value`` as in ``points_to_pandas``, but where neither type holds all exactly: then ``integer`` holds the ints beside it."""
    pa = library("pyarrow")
    integer, real = pa.int64(), pa.float64()
    moment = pa.timestamp("us", tz="UTC")

    def column(parts: list[Any], kind: Any) -> Any:
        arrays = [pa.Array.from_buffers(kind, len(part), [None, pa.py_buffer(part)]) for part in parts]
        return pa.chunked_array(arrays, type=kind)

    columns: dict[str, Any] = {}
    if names:
        for name in ("run", "key"):
            known: dict[str, int] = {}
            codes = [known.setdefault(getattr(one, name), len(known)) for one in series]
            words = pa.array(list(known), pa.string())
            parts = [
                pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(code, pa.int32()), len(one)), words)
                for code, one in zip(codes, series, strict=True)
            ]
            columns[name] = pa.chunked_array(parts, type=pa.dictionary(pa.int32(), pa.string()))
        columns["rank"] = pa.chunked_array([pa.repeat(pa.scalar(one.rank, pa.int32()), len(one)) for one in series], type=pa.int32())
    columns["step"] = column([one.steps for one in series], integer)
    columns["time"] = column([one.times for one in series], moment)
    kinds = {one.kind for one in series}
    if kinds == {"q"}:
        columns["value"] = column([one.bits for one in series], integer)
    elif kinds <= {"d"}:
        columns["value"] = column([one.bits for one in series], real)
    else:
        values = [one.values for one in series]
        columns["value"] = pa.chunked_array([pa.array([float(v) for v in some], real) for some in values], type=real)
        if any(type(v) is int and abs(v) > EXACT for some in values for v in some):
            columns["integer"] = pa.chunked_array([pa.array([v if type(v) is int else None for v in some], integer) for some in values])
    return pa.table(columns)


# Runs ---------------------------------------------------------------------------------------------------------------------------

_FACTS = ("id", "name", "project", "state", "user", "group", "job_type", "tags", "notes", "host", "created_at", "started_at", "finished_at",
          "exit_code")  # fmt: skip
_MOMENTS = ("created_at", "started_at", "finished_at")


def run_columns(found: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A list a column: what a run is, then ``config.…`` (nested by dots), ``summary.…`` and ``metrics.…``; None where a run has none."""
    columns: dict[str, list[Any]] = {name: [] for name in _FACTS}
    rows = 0
    for data in found:
        for name in _FACTS:
            columns[name].append(data.get(name))
        for part in ("config", "summary", "metrics"):
            value = data.get(part)
            if value:
                _put(columns, rows, part, value)
        rows += 1
    for column in columns.values():
        if len(column) < rows:
            column.extend([None] * (rows - len(column)))
    return columns


def _put(columns: dict[str, list[Any]], row: int, prefix: str, value: Mapping[str, Any]) -> None:
    for key, inner in value.items():
        name = f"{prefix}.{key}"
        if isinstance(inner, dict) and inner:
            _put(columns, row, name, inner)
            continue
        column = columns.get(name)
        if column is None:
            column = columns[name] = [None] * row
        elif len(column) < row:
            column.extend([None] * (row - len(column)))
        if len(column) > row:  # "a.b" beside {"a": {"b": …}}
            column[row] = maybe_number(inner)
        else:
            column.append(maybe_number(inner))


def runs_to_pandas(found: Iterable[Mapping[str, Any]]) -> Any:
    pandas = library("pandas")
    columns = run_columns(found)
    for name in _MOMENTS:
        columns[name] = pandas.to_datetime(pandas.Series(columns[name], dtype=object), utc=True, format="ISO8601")
    return pandas.DataFrame(columns)


def runs_to_arrow(found: Iterable[Mapping[str, Any]]) -> Any:
    import datetime
    import json

    pa = library("pyarrow")
    columns = run_columns(found)
    arrays: dict[str, Any] = {}
    for name, values in columns.items():
        if name in _MOMENTS:
            moments = [None if v is None else datetime.datetime.fromisoformat(v.replace("Z", "+00:00")) for v in values]
            arrays[name] = pa.array(moments, pa.timestamp("us", tz="UTC"))
            continue
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # a key that is a number here and a text there
            texts = [None if v is None else v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
            arrays[name] = pa.array(texts, pa.string())
    return pa.table(arrays)
