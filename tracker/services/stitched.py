"""Summaries of runs whose history is stitched: made again from the winning points, since what is rewound cannot be counted off.
What only goes on beyond all that is there is added as in any other run (services/summaries.py).

Keys are marked stale where something changes them (services/lineage.py, services/summaries.py) and made again at the next beat. A run
that is costly to read rests between two turns, so that this stays a small share of the worker's time.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
import structlog

from tracker.domain.errors import EncoreError
from tracker.domain.lineage import is_measured
from tracker.models import MetricSummary, Run, RunValue, StaleSummary
from tracker.services import lineage, summaries, wide_keys
from tracker.store import reading, rows
from tracker.store.reading import Column

log = structlog.get_logger()

POINTS_AT_ONCE = 4_000_000
KEYS_AT_ONCE = 200
SHARE = 0.05
"""Of the worker's time that one run may take."""
LONGEST_REST_SECONDS = 600
REST_AFTER_FAILURE_SECONDS = 60
_rest_until: dict[str, float] = {}


def recompute_due(seconds: float = 10) -> int:
    """Make stale summaries again, for at most ``seconds``; the number of runs. Safe to run twice at once."""
    due = list(StaleSummary.objects.order_by("run_id").values_list("run_id", flat=True).distinct())
    until = time.monotonic() + seconds
    done = 0
    for run_id in due:
        began = time.monotonic()
        if began >= until:
            break
        if _rest_until.get(run_id, 0) > began:
            continue
        least = 0.0
        try:
            recompute(run_id)
            done += 1
        except EncoreError:  # a damaged block, or the store is away: the run stays marked, and the others do not wait for it
            log.exception("the summaries of a stitched run cannot be made, it will be tried again", run=run_id)
            least = REST_AFTER_FAILURE_SECONDS
        now = time.monotonic()
        _rest_until[run_id] = now + max(least, min((now - began) * (1 / SHARE - 1), LONGEST_REST_SECONDS))
    if len(_rest_until) > 10_000:
        _rest_until.clear()
    return done


def recompute(run_id: str) -> None:
    """Make all stale summaries of a run again."""
    marks = {key: (id, count) for id, key, count in StaleSummary.objects.filter(run_id=run_id).values_list("id", "key", "marks")}
    run = Run.objects.only("id", "project_id", "fork_run", "fork_step", "deleted_at").filter(id=run_id).first()
    if not marks:
        return
    if run is None or run.deleted_at is not None:
        StaleSummary.objects.filter(run_id=run_id).delete()
        return
    forks = lineage.forks_for_summaries(run)
    every = "" in marks
    keys = _all_keys(run, forks) | set(marks) if every else set(marks)
    for portion in _portions(run_id, sorted(key for key in keys if key and not is_measured(key))):
        columns = reading.history([run_id], portion, forks=forks)
        seen = {"": marks[""]} if every else {key: marks[key] for key in portion}
        if not _store(run_id, portion, columns, seen):
            return  # another process has made them
    if every:
        _settle(run_id, marks)


def _all_keys(run: Run, forks) -> set[str]:
    ancestors = [fork.run for fork in forks.get(run.id, ())]
    keys = set(MetricSummary.objects.filter(run_id__in=[run.id, *ancestors]).values_list("key", flat=True).distinct())
    # A stitched ancestor has no row of what it has gone back behind since, or of what waits to be made: it may count here all the same.
    chosen = wide_keys.chooser(run.id, run.project_id, most=summaries.MOST_KEYS)
    for ancestor in Run.objects.filter(id__in=ancestors, is_stitched=True).order_by("id").values_list("id", flat=True):
        try:
            more = reading.keys_of(ancestor)
        except reading.DamagedBlock as problem:  # perhaps beyond what is inherited; if not, the read of the points says so
            log.warning("the metrics of an ancestor are not all known", run=run.id, ancestor=ancestor, problem=str(problem))
            continue
        for key in more:
            if key not in keys and not is_measured(key) and chosen(key, keys):
                keys.add(key)
    return keys


def _portions(run_id: str, keys: list[str]) -> Iterator[list[str]]:
    """As many keys as have some millions of points between them, by what was counted the last time."""
    counts: dict[str, int] = defaultdict(int)
    for key, count in MetricSummary.objects.filter(run_id=run_id).values_list("key", "count"):
        counts[key] += count
    portion: list[str] = []
    points = 0
    for key in keys:
        if portion and (points + counts[key] > POINTS_AT_ONCE or len(portion) >= KEYS_AT_ONCE):
            yield portion
            portion, points = [], 0
        portion.append(key)
        points += counts[key]
    if portion:
        yield portion


def _store(run_id: str, keys: list[str], columns: Iterable[Column], marks: dict[str, tuple[int, int]]) -> bool:
    """The rows of these keys. False, and nothing done, if somebody else has taken the marks away: theirs is as new, or newer."""
    made = [row_of(run_id, column) for column in columns]
    with rows.lock_run_summaries(run_id):
        left = StaleSummary.objects.filter(id__in=[id for id, _ in marks.values()])
        if left.count() != len(marks):
            return False
        run = Run.objects.only("project_id", "summary").filter(id=run_id).first()
        if run is None:
            return False
        there = dict(MetricSummary.objects.filter(run_id=run_id).values_list("key", "id"))
        allowed = set(there)
        chosen = wide_keys.chooser(run_id, run.project_id, most=summaries.MOST_KEYS)
        for row in made:
            if row.key not in allowed and chosen(row.key, allowed):
                allowed.add(row.key)
        made = [row for row in made if row.key in allowed]
        MetricSummary.objects.bulk_create(
            made, batch_size=60, update_conflicts=True, unique_fields=["run", "key", "rank"], update_fields=summaries.FIELDS
        )
        _forget_the_rest(run, keys, {(row.key, row.rank) for row in made})
        summaries.write_values(run, list(dict.fromkeys(row.key for row in made)))
        if "" not in marks:
            _settle(run_id, marks)
    return True


def _settle(run_id: str, marks: dict[str, tuple[int, int]]) -> None:
    """Take the marks away that nothing has been added to since."""
    for id, count in marks.values():
        StaleSummary.objects.filter(id=id, marks=count).delete()


def _forget_the_rest(run: Run, keys: list[str], kept: set[tuple[str, int]]) -> None:
    """Rows of keys and ranks that have no point left."""
    found = MetricSummary.objects.filter(run_id=run.id, key__in=keys).values_list("id", "key", "rank")
    gone = [(id, key) for id, key, rank in found if (key, rank) not in kept]
    MetricSummary.objects.filter(id__in=[id for id, _ in gone]).delete()
    own = run.summary if isinstance(run.summary, dict) else {}
    over = {key for _, key in gone} - {key for key, _ in kept} - set(own)
    RunValue.objects.filter(run_id=run.id, kind=RunValue.Kind.SUMMARY, path__in=over).delete()


def row_of(run_id: str, column: Column) -> MetricSummary:
    """What the winning points of a column amount to. Last is the latest of the latest attempt that has any."""
    order = np.arange(len(column.steps)) if column.order is None else column.order
    steps, values = column.steps[order], column.values[order]
    row = MetricSummary(run_id=run_id, key=column.key, rank=column.rank, count=len(order))
    numbers = values
    if values.dtype.kind == "f":
        nan = np.isnan(values)
        row.nan_count = int(nan.sum())
        if row.nan_count:
            row.first_nan_step = int(steps[nan.argmax()])
            numbers = values[~nan]
    if len(numbers):
        row.min, row.max = float(numbers.min()), float(numbers.max())
        with np.errstate(invalid="ignore", over="ignore"):
            total = float(numbers.sum(dtype="f8"))
        row.sum = None if math.isnan(total) else total
    attempts = column.attempt[order]
    latest = np.flatnonzero(attempts == attempts.max())
    times = column.times[order[latest]]
    at = int(order[latest[np.flatnonzero(times == times.max())]].max())
    row.last, row.last_text = summaries.storable_value(_exact(column, at))
    row.last_step, row.last_time, row.hi_step = int(column.steps[at]), int(column.times[at]), int(steps[-1])
    return row


def _exact(column: Column, at: int) -> float | int:
    if column.bits is not None and column.is_int is not None and column.is_int[at]:
        return int(column.bits[at])
    return column.values[at].item()
