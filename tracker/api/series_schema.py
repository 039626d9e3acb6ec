"""The chart API's question and answer as OpenAPI schemas; docs/series.md says what they mean."""

from __future__ import annotations

from typing import Any

from tracker.domain import series_query as q
from tracker.domain.across import BANDS, LINES

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number", "nullable": True}
_ARRAY: Schema = {"type": "array", "items": {}, "description": "In JSON numbers, with NaN, Infinity and -Infinity as text."}


def _of(schema: Schema, *, nullable: bool = True, **more: Any) -> Schema:
    return {**schema, **({"nullable": True} if nullable else {}), **more}


def _list(most: int, schema: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": schema, "maxItems": most, **more}


def _whole(low: int, high: int, **more: Any) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high, "nullable": True, **more}


def _smooth(kind: str, name: str) -> Schema:
    return {"type": "object", "required": ["kind", name], "properties": {"kind": {"enum": [kind]}, name: {"type": "number"}}}


_METRIC: Schema = {"type": "object", "required": ["metric"], "properties": {"metric": _TEXT}}
_GROUP: Schema = {"type": "object", "required": ["name", "runs"], "properties": {"name": _TEXT, "runs": _list(q.MOST_RUNS, _TEXT)}}
QUERY: Schema = {
    "type": "object",
    "required": ["keys"],
    "additionalProperties": False,
    "properties": {
        "runs": _list(q.MOST_RUNS, _TEXT, nullable=True, description="Ids; or else project, filter, …"),
        "keys": _list(q.MOST_KEYS, _TEXT, description="Names, globs, or re: with a regular expression."),
        "project": _of(_TEXT),
        "filter": _of(_TEXT),
        "state": _of(_TEXT),
        "sort": _of(_TEXT),
        "limit": _whole(1, q.MOST_RUNS, default=q.LIMIT),
        "archived": {"type": "boolean", "nullable": True},
        "ranks": {"oneOf": [{"enum": ["reduce", "band", "all"]}, _list(10_000, {"type": "integer", "minimum": 0})], "default": "reduce"},
        "x": {"oneOf": [{"enum": list(q.X)}, _METRIC], "default": "step"},
        "from": _NUMBER,
        "to": _NUMBER,
        "buckets": _whole(1, q.MOST_BUCKETS),
        "points": _whole(0, q.MOST_POINTS),
        "smooth": {"oneOf": [_smooth(kind, name) for kind, name in q.KINDS.items()], "nullable": True},
        "group_by": {"oneOf": [_TEXT, _list(q.MOST_RUNS, _GROUP)], "nullable": True},
        "line": {"enum": list(LINES), "nullable": True},
        "band": {"enum": list(BANDS), "nullable": True},
        "ddof": _whole(0, 1),
        "since": _of(_TEXT),
        "branch": {"enum": [q.CURRENT, q.ALL], "nullable": True},
        "attempt": _whole(1, 2**31 - 1),
        "floats": {"enum": ["f8", "f4"], "nullable": True},
        "arrays": _list(len(q.ARRAYS), {"enum": list(q.ARRAYS)}, nullable=True),
    },
}
_ENTRY: Schema = {
    "type": "object",
    "properties": {
        "run": _of(_TEXT),
        "key": _TEXT,
        "rank": {"type": "integer", "nullable": True},
        "n": {"type": "integer"},
        "drawn": {"type": "integer"},
        "exact": {"type": "boolean"},
        "nan": {"type": "integer"},
        "inf": {"type": "integer"},
        "error": _TEXT,
        "x": _ARRAY,
        **{name: _ARRAY for name in q.ARRAYS if name != "odd"},
        **{f"odd_{part}": _ARRAY for part in ("kind", "first", "last", "count")},
    },
    "additionalProperties": {},
}
ANSWER: Schema = {
    "type": "object",
    "required": ["series", "cursor", "x"],
    "properties": {
        "series": {"type": "array", "items": _ENTRY},
        "cursor": _TEXT,
        "x": {"oneOf": [_TEXT, _METRIC]},
        "reset": {"type": "boolean"},
        "runs": {"type": "array", "items": _TEXT},
        **{name: {"type": "integer"} for name in ("buckets", "points", "n", "drawn")},
    },
}
