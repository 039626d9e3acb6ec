"""``runs.parquet``: a row a run, with config and summary as JSON text and as typed columns where all runs agree on the type.

Two passes over the pages of the question: the first learns which columns there are, the second writes them, a page in memory at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, BinaryIO

from tracker.domain import storable
from tracker.models import Run
from tracker.services import metrics
from tracker.services.paging import Page

MOST_COLUMNS = 1_000
MOST_LEAVES = 2_000
MOST_KEYS_A_RUN = 500
"""Last values of a run's metrics that become columns; a run of 100,000 keys would make a table nobody opens."""
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_TEXTS = ("name", "group", "job_type", "state", "host", "notes")
_TIMES = ("created_at", "started_at", "finished_at", "archived_at")


def write(pages: Callable[[], Iterator[Page]], sink: BinaryIO) -> int:
    """The table of all runs of ``pages()`` (called twice) into ``sink``; how many runs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds: dict[str, list] = {}  # path -> [kind, runs that have it]
    for page in pages():
        for leaves in _leaves_of(page.results):
            for path, value in leaves.items():
                _learn(kinds, path, value)
    chosen = sorted(kinds.items(), key=lambda item: (-item[1][1], item[0]))
    types = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "str": pa.string()}
    flat = dict(sorted([(path, types[kind]) for path, (kind, _) in chosen if kind in types][:MOST_COLUMNS]))
    when = pa.timestamp("us", tz="UTC")
    schema = pa.schema(
        [pa.field(name, pa.string(), nullable=False) for name in ("id", "project")]
        + [pa.field(name, pa.string()) for name in _TEXTS]
        + [("user", pa.string()), ("tags", pa.list_(pa.string())), *((name, when) for name in _TIMES)]
        + [("exit_code", pa.int64()), ("signal", pa.int64()), ("fork_run", pa.string()), ("fork_step", pa.int64())]
        + [("config", pa.string()), ("summary", pa.string()), ("metrics", pa.string())]
        + list(flat.items())
    )
    count = 0
    with pq.ParquetWriter(sink, schema, compression="zstd", store_schema=False) as writer:
        for page in pages():
            rows = []
            for run, last, leaves in zip(page.results, _last(page.results), _leaves_of(page.results), strict=True):
                rows.append(_fixed(run, last) | {path: _fit(leaves.get(path), kinds[path][0]) for path in flat})
            count += len(rows)
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema))
    return count


def _fixed(run: Run, last: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": run.id,
        "project": run.project.slug,
        "user": run.user.username if run.user is not None else None,
        **{name: getattr(run, name) for name in (*_TEXTS, *_TIMES, "exit_code", "signal", "fork_step")},
        "fork_run": run.fork_run or None,
        "tags": [str(tag) for tag in run.tags],
        "config": _json(run.config),
        "summary": _json(run.summary),
        "metrics": _json(last),
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _last(found: list[Run]) -> list[dict[str, Any]]:
    """The last value of each metric of each run, those that the table may have columns for."""
    last = metrics.last_of_runs([run.id for run in found], None)
    return [dict(sorted(last.get(run.id, {}).items())[:MOST_KEYS_A_RUN]) for run in found]


def _leaves_of(found: list[Run]) -> list[dict[str, Any]]:
    every = []
    for run, last in zip(found, _last(found), strict=True):
        leaves = {f"config.{path}": value for path, value in storable.leaves(run.config, MOST_LEAVES).items()}
        # What the program set itself stands over what the metrics say, as in tables and filters.
        leaves |= {f"summary.{key}": value for key, value in last.items()}
        leaves |= {f"summary.{path}": value for path, value in storable.leaves(run.summary, MOST_LEAVES).items()}
        every.append(leaves)
    return every


def _kind(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(2**63) <= value < 2**63 else "other"
    if isinstance(value, float) or (isinstance(value, str) and value in _SPECIAL):
        return "float"
    return "str" if isinstance(value, str) else "other"


def _learn(kinds: dict[str, list], path: str, value: Any) -> None:
    kind = _kind(value)
    if kind is None:
        return
    known = kinds.setdefault(path, [kind, 0])
    known[1] += 1
    if known[0] != kind:
        known[0] = "float" if {known[0], kind} == {"int", "float"} else "other"


def _fit(value: Any, kind: str) -> Any:
    """The value as its column takes it; null for what came since the first pass and is of another type."""
    found = _kind(value)
    if found is None or isinstance(value, datetime):
        return None
    if kind == "float" and found in ("int", "float"):
        return _SPECIAL[value] if isinstance(value, str) else float(value)
    return value if found == kind else None
