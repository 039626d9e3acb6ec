"""What a run's metric keys amount to, and their points, for people and programs that want plain JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tracker.domain import keys as meanings
from tracker.domain import storable
from tracker.models import MetricSummary, Run, RunValue
from tracker.services import lineage, summaries
from tracker.store import reading

MOST_KEYS = 20_000


def last_of(row: MetricSummary) -> Any:
    """The exact last value: a number, or NaN and the infinities as text."""
    if row.last_text:
        text = row.last_text
        return int(text) if text.lstrip("-").isdigit() else text
    return storable.value(row.last)


def of_run(run: Run) -> dict[str, dict]:
    """Per key: ``ranks``, ``count``, ``last`` (the ranks' reduced), ``min``, ``max``, ``mean`` over all ranks."""
    found: dict[str, list[MetricSummary]] = {}
    for row in MetricSummary.objects.filter(run=run).order_by("key", "rank")[:MOST_KEYS]:
        found.setdefault(row.key, []).append(row)
    reduced = reduced_lasts((run.id, key) for key, rows in found.items() if len(rows) > 1)
    together = {key: _together(rows) for key, rows in found.items()}
    for (_, key), value in reduced.items():
        together[key]["last"] = storable.value(value)
    return together


def reduced_lasts(several: Iterable[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """Of (run, key) that several ranks logged: their last values, put together as the key states."""
    wanted = set(several)
    runs = list({run for run, _ in wanted})
    for run, own in Run.objects.filter(id__in=runs).values_list("id", "summary"):
        wanted -= {(run, key) for key in own}  # there the value is the program's own word
    keys = list({key for _, key in wanted})
    found: dict[tuple[str, str], float] = {}
    for start in range(0, len(keys), 500):
        rows = RunValue.objects.filter(kind=RunValue.Kind.SUMMARY, run__in=runs, path__in=keys[start : start + 500])
        for run, key, number, text in rows.values_list("run_id", "path", "number", "text"):
            if (run, key) in wanted and (number is not None or text in _SPECIAL):
                found[run, key] = float(text.replace("Infinity", "inf")) if text in _SPECIAL else number
    return found


_SPECIAL = ("NaN", "Infinity", "-Infinity")


def _together(rows: list[MetricSummary]) -> dict:
    count = sum(row.count for row in rows)
    numbers = count - sum(row.nan_count for row in rows)
    lows = [row.min for row in rows if row.min is not None]
    highs = [row.max for row in rows if row.max is not None]
    total = math.fsum(row.sum for row in rows if row.sum is not None and math.isfinite(row.sum))
    endless = any(row.sum is not None and not math.isfinite(row.sum) for row in rows)
    return {
        "ranks": [row.rank for row in rows],
        "count": count,
        "nan_count": count - numbers,
        "last": last_of(rows[0]),
        "last_step": rows[0].last_step,
        "min": storable.value(min(lows)) if lows else None,
        "max": storable.value(max(highs)) if highs else None,
        "mean": None if endless or not numbers else storable.value(total / numbers),
    }


def last_of_runs(run_ids: list[str], keys: list[str] | None) -> dict[str, dict]:
    """``{run: {key: last value}}``; of several ranks their reduced. ``keys`` None: of all that have a summary."""
    if not run_ids or keys == []:
        return {}
    named = {} if keys is None else {"key__in": [key.replace("\x00", "") for key in keys]}
    rows = MetricSummary.objects.filter(run__in=run_ids, **named).only("run_id", "key", "rank", "last", "last_text")
    found: dict[str, dict] = {}
    several: set[tuple[str, str]] = set()
    for row in rows.order_by("rank").iterator():
        if row.key in found.setdefault(row.run_id, {}):
            several.add((row.run_id, row.key))
        found[row.run_id].setdefault(row.key, last_of(row))
    for (run_id, key), value in reduced_lasts(several).items() if several else ():
        found[run_id][key] = storable.value(value)
    return found


def keys(run: Run) -> list[dict]:
    """Each metric key with its numbers and what it means."""
    definitions = list(run.key_definitions.order_by("id").values_list("pattern", "fields"))
    found = of_run(run)
    if len(found) >= summaries.MOST_KEYS:
        # Summaries are bounded per run; the other keys are named with what their blocks' directories and last batches say.
        lasts = reading.last_values([run.id])
        for key, ranks in reading.keys_of(run.id).items():
            if key not in found:
                last = lasts.get((run.id, key, min(ranks)))
                told = {} if last is None else {"last": storable.value(last.value), "last_step": last.step}
                found[key] = {**_UNKNOWN, "ranks": list(ranks), "count": sum(ranks.values()), **told}
    return [{"key": key, **row, "definition": definition(key, definitions)} for key, row in sorted(found.items())]


_UNKNOWN = {"nan_count": None, "last": None, "last_step": None, "min": None, "max": None, "mean": None}


def definition(key: str, definitions: list) -> dict:
    meaning = meanings.meaning(key, definitions)
    return {name: getattr(meaning, name, None) for name in ("goal", "kind", "reduce", "over", "same", "x", "evidence")}


def history(run: Run, key: str, rank: int | None = None, *, user, branch: str | int = reading.CURRENT) -> dict:
    """Every winning point of a key, of the lowest rank that logged it unless ``rank`` says another.

    With ``branch`` ALL, ``branches`` beside it: what each attempt that went back left behind. A number: that attempt's own points.
    """
    logged = MetricSummary.objects.filter(run=run, key=key).order_by("rank").values_list("rank", flat=True)
    chosen = rank if rank is not None else logged.first()
    forks = lineage.forks_for(user, run) if run.fork_run else {}
    points: list[list] = []
    branches: dict[int, list[list]] = {}
    for column in reading.history([run.id], [key], None if chosen is None else [chosen], forks=forks, branch=branch):
        if chosen is None:  # not summarised yet: the first rank that is there
            chosen = column.rank
        if column.rank == chosen:
            (points if column.branch is None else branches.setdefault(column.branch, [])).extend(_points(column))
    told = {"run": run.id, "key": key, "rank": chosen, "points": points}
    if branch == reading.ALL:
        steps = dict(run.attempts.filter(number__in=branches).values_list("number", "rewound_to"))
        told["branches"] = [{"attempt": n, "rewound_to": steps.get(n), "points": left} for n, left in sorted(branches.items())]
    return told


def _points(column: reading.Column) -> list[list]:
    rows = zip(column.steps.tolist(), column.times.tolist(), column.values.tolist(), column.winner.tolist(), strict=True)
    return sorted(([step, time, storable.value(value)] for step, time, value, winner in rows if winner), key=lambda point: point[0])
