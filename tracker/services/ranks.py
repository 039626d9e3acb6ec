"""The ranks of a run side by side: where each stands, how it keeps pace, what is odd."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from django.db.models import Count, Max, Sum
from django.utils import timezone

from tracker.domain import coordinates, keys, ranks
from tracker.domain.lifecycle import RunState
from tracker.models import KeyDefinition, MetricSummary, Run, Writer
from tracker.store import reading

RECENT = 200
"""Points of each rank that are looked at."""
MOST_SAME = 6
SYSTEM = "system/"
_CUMULATIVE = re.compile(r"elapsed|eta|run_?time|wall|timestamp|total|epoch", re.IGNORECASE)
_UNITS = ((re.compile(r"(?:^|[_/.])(?:ms|msec|millis\w*)$", re.IGNORECASE), 1e-3), (re.compile(r"(?:^|[_/.])us$", re.IGNORECASE), 1e-6))


@dataclass
class View:
    run: Run
    judged: ranks.Judged
    axes: list[str]
    pace_key: str | None
    own_key: str | None
    world_size: int


def place(writer: Writer, data: dict[str, Any]) -> None:
    """A writer said where it stands (event ``coordinates``): kept beside what its launcher told."""
    found = coordinates.clean(data)
    if not found:
        return
    launch = writer.info.get("launch") if isinstance(writer.info.get("launch"), dict) else {}
    known = coordinates.clean(launch.get("coordinates"))
    writer.info = {**writer.info, "launch": {**launch, "coordinates": {**known, **found}}}
    writer.save(update_fields=["info"])


def coordinates_of(run_id: str) -> dict[int, dict[str, int]]:
    """Of each rank, by its latest start."""
    rows = Writer.objects.filter(run_id=run_id, kind=Writer.Kind.TRAINER).order_by("attempt__number", "started_us")
    return {rank: coordinates.clean(told) for rank, told in rows.values_list("rank", "info__launch__coordinates") if told}


def view(run: Run) -> View:
    now = timezone.now()
    known = _latest(run)
    definitions = list(KeyDefinition.objects.filter(run=run).order_by("id").values_list("pattern", "fields"))
    pace, own, same, middle, stride = _chosen(run, definitions)
    columns = []
    if pace is not None:
        columns = reading.history([run.id], list(dict.fromkeys([pace, *same])), lo_step=max(reading.LO, middle - RECENT * stride))
    scale = next((unit for pattern, unit in _UNITS if own and pattern.search(own)), 1.0)
    for column in columns:
        one = known.get(column.rank)
        if column.key == pace and one is not None:
            one.steps, one.times, values = _recent(column, one.attempt)
            one.values = values * scale if own else None
    alike: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {key: {} for key in same}
    for column in columns:
        if column.key in alike and column.rank in known:
            steps, _, values = _recent(column, known[column.rank].attempt)
            alike[column.key][column.rank] = (steps, values)
    newest = max((one.attempt for one in known.values()), default=1)
    world_size = next((attempt.world_size for attempt in run.attempts.all() if attempt.number == newest), 1)
    judged = ranks.judge(
        list(known.values()), now_us=int(now.timestamp() * 1e6), live=not RunState(run.state).is_terminal, pace_key=pace, own_key=own,
        same=alike, world_size=world_size,
    )  # fmt: skip
    return View(run, judged, coordinates.axes([one.coordinates for one in known.values()]), pace, own, world_size)


MOST_COLUMNS = 100


def heat(found: View) -> dict[str, Any]:
    """Seconds a step of each rank over the recent steps, at most MOST_COLUMNS of them (means of neighbours); None where unknown."""
    steps, grid = found.judged.heat_steps[1:], found.judged.heat[:, 1:]  # the first has no step before it
    if not steps:
        return {"steps": [], "ranks": [row.rank for row in found.judged.rows], "seconds": []}
    edges = np.unique(np.linspace(0, len(steps), min(len(steps), MOST_COLUMNS) + 1).astype(int))
    known = ~np.isnan(grid)
    total, count = (np.add.reduceat(part, edges[:-1], axis=1) for part in (np.where(known, grid, 0.0), known.astype("i8")))
    means = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    seconds = [[None if np.isnan(value) else float(f"{value:.4g}") for value in row] for row in means]
    return {"steps": [steps[at] for at in edges[:-1]], "ranks": [row.rank for row in found.judged.rows], "seconds": seconds}


def _latest(run: Run) -> dict[int, ranks.Rank]:
    """Each rank by its latest start; children that it forked are no ranks, nor are those that a smaller restart does without."""
    now = timezone.now()
    rows = (
        run.writers.filter(kind=Writer.Kind.TRAINER)
        .order_by("attempt__number", "started_us", "id")
        .values_list("rank", "host", "attempt__number", "info__launch__coordinates", "last_step", "heartbeat_at", "finish", "skew_us")
    )
    found = {}
    for rank, host, attempt, told, last_step, heard, finish, skew_us in rows:
        found[rank] = ranks.Rank(
            rank=rank,
            host=host,
            attempt=attempt,
            coordinates=coordinates.clean(told),
            last_step=last_step,
            heard_seconds=None if heard is None else (now - heard).total_seconds(),
            ended=None if finish is None else str(finish.get("state") or "ended"),
            skew_seconds=None if skew_us is None else skew_us / 1e6,
        )
    newest = max((one.attempt for one in found.values()), default=1)
    size = next((attempt.world_size for attempt in run.attempts.all() if attempt.number == newest), 1)
    return {rank: one for rank, one in found.items() if one.attempt == newest or rank < size}


def _chosen(run: Run, definitions: list) -> tuple[str | None, str | None, list[str], int, int]:
    """(key for the pace, the same if it is a time that the ranks measured, keys that should be equal, where most are, steps a point).

    The pace is read off the key that most ranks log, and most often; a time that as many ranks measure themselves says more.
    """
    rows = (
        MetricSummary.objects.filter(run=run)
        .exclude(key__startswith=SYSTEM)
        .values("key")
        .annotate(ranks=Count("rank"), points=Sum("count"), front=Max("last_step"))
        .order_by("-ranks", "-points", "key")
    )
    found = [row for row in rows if row["front"] is not None]
    if not found:
        return None, None, [], 0, 1
    widest = [row for row in found if row["ranks"] == found[0]["ranks"]]
    # Of those that are logged as often as any, a loss rather than the learning rate: it is what people look at.
    often = [row for row in widest if row["points"] == found[0]["points"]]
    best = min(often, key=lambda row: (keys.meaning(row["key"], definitions).kind not in ("loss", "quality"), row["key"]))
    defined = [row for row in widest if _is_time(row["key"], definitions)]
    own = next((row for row in defined if row["points"] * 2 >= best["points"]), None) if best["ranks"] > 1 else None
    same = [row["key"] for row in widest if best["ranks"] > 1 and keys.meaning(row["key"], definitions).same][:MOST_SAME]
    chosen = own or best
    per_rank = max(1, chosen["points"] // chosen["ranks"])
    stride = max(1, -(-abs(chosen["front"]) // per_rank))
    # The middle of the ranks: neither one that died at the beginning nor one that has not resumed yet decides what is read.
    lasts = MetricSummary.objects.filter(run=run, key=chosen["key"], last_step__isnull=False).values_list("last_step", flat=True)
    middle = int(np.median(lasts)) if lasts else chosen["front"]
    return chosen["key"], own["key"] if own else None, same, middle, stride


def _is_time(key: str, definitions: list) -> bool:
    """A time of each step. By name alone, what adds up over the run is not taken for one."""
    if keys.meaning(key, definitions).kind != "time":
        return False
    return keys.meaning(key).kind != "time" or not _CUMULATIVE.search(key)


def _recent(column: reading.Column, attempt: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The last points of the rank's latest start: what an earlier one had done beyond is no front to be behind of."""
    keep = column.order if column.order is not None else np.arange(len(column.steps))
    if len(column.attempts) > 1:
        keep = keep[column.attempt[keep] == attempt]
    steps, times, values = column.steps[keep], column.times[keep], column.values[keep]
    return steps[-RECENT:], times[-RECENT:], values[-RECENT:].astype("f8")
