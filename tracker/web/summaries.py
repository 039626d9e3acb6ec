"""Metric summaries of runs, reduced over ranks for tables."""

from __future__ import annotations

import math

from tracker.models import MetricSummary, Run
from tracker.services import metrics


def last_value(row: MetricSummary):
    """Exact where the float is not: NaN, Inf, integers beyond 2**53."""
    if row.last_text:
        try:
            return int(row.last_text)
        except ValueError:
            return float(row.last_text.replace("Infinity", "inf"))
    if row.last is not None and math.isfinite(row.last) and row.last.is_integer() and abs(row.last) < 1e15:
        return int(row.last)
    return row.last


def metric_rows(run: Run, limit: int) -> list[dict]:
    """By key: ``key, last, last_step, min, max, mean, count, nan_count, first_nan_step, ranks``; of several ranks the last is reduced.

    Of the program's own keys: the machine's stand on a tab of their own.
    """
    rows: dict[str, dict] = {}
    for row in MetricSummary.objects.filter(run=run).exclude(key__startswith="system/").order_by("key", "rank"):
        one = rows.get(row.key)
        if one is None:
            if len(rows) >= limit:
                break
            one = rows[row.key] = {
                "key": row.key, "last": last_value(row), "last_step": row.last_step, "min": row.min, "max": row.max,
                "count": 0, "nan_count": 0, "first_nan_step": row.first_nan_step, "sum": 0.0, "finite": 0, "ranks": 0,
            }  # fmt: skip
        one["ranks"] += 1
        one["count"] += row.count
        one["nan_count"] += row.nan_count
        one["min"] = _pick(min, one["min"], row.min)
        one["max"] = _pick(max, one["max"], row.max)
        if row.first_nan_step is not None:
            one["first_nan_step"] = _pick(min, one["first_nan_step"], row.first_nan_step)
        if row.sum is not None:
            one["sum"] += row.sum
            one["finite"] += row.count - row.nan_count
    for (_, key), value in metrics.reduced_lasts((run.id, key) for key, one in rows.items() if one["ranks"] > 1).items():
        rows[key]["last"] = value
    for one in rows.values():
        one["mean"] = one["sum"] / one["finite"] if one["finite"] else None
    return list(rows.values())


def _pick(choose, a, b):
    return b if a is None else a if b is None else choose(a, b)


def last_values(run_ids: list[str], limit: int = 500) -> dict[str, dict]:
    """``{key: {run id: last value}}``; of several ranks their reduced."""
    table: dict[str, dict] = {}
    several: set[tuple[str, str]] = set()
    for row in MetricSummary.objects.filter(run__in=run_ids).order_by("key", "rank"):
        if row.key not in table and len(table) >= limit:
            continue
        if row.run_id in table.setdefault(row.key, {}):
            several.add((row.run_id, row.key))
        table[row.key].setdefault(row.run_id, last_value(row))
    for (run_id, key), value in metrics.reduced_lasts(several).items() if several else ():
        table[key][run_id] = value
    return table
