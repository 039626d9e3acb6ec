"""Keeping MetricSummary and RunValue rows up to what has come: each segment is counted once, in the commit that moves the watermark."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from django.db.models import Exists, Max, OuterRef

from tracker.domain import buckets as thinning
from tracker.domain import coordinates
from tracker.domain import keys as meanings
from tracker.domain.lineage import is_measured
from tracker.models import Attempt, MetricSummary, Run, RunValue, StaleSummary, Writer
from tracker.services import lineage, ranks, wide_keys
from tracker.store import blocks, rows, wire
from tracker.store.metrics import DamagedSegment, metric_store

MOST_KEYS = wide_keys.MOST_KEYS
"""Keys of a run that have rows, by first seen, beside those that are chosen (wide_keys.py); the others are found in the series
themselves (reading.keys_of)."""
POINTS_AT_ONCE = 4_000_000
PAUSE_SECONDS = 0.005
EXACT = 2**53
FIELDS = ["count", "nan_count", "first_nan_step", "last", "last_text", "last_step", "last_time", "min", "max", "sum", "hi_step"]


def summarise_due(seconds: float = 10) -> int:
    """Summarise every run that has something new, for at most ``seconds``; the number of runs. Safe to run twice at once."""
    until = time.monotonic() + seconds
    with rows.cursor() as cursor:
        cursor.execute('SELECT DISTINCT run_id FROM tracker_writer WHERE summarised < "next"')  # index writer_unsummarised
        due = [run_id for (run_id,) in cursor.fetchall()]
    done = 0
    for run_id in due:
        if time.monotonic() >= until:
            break
        began = time.monotonic()
        summarise_run(run_id)
        done += 1
        if not rows.on_postgres():  # SQLite's locks know no queue: let the batches in between
            time.sleep(min(time.monotonic() - began, PAUSE_SECONDS))
    return done


def summarise_run(run_id: str) -> None:
    """Count what the run's writers sent since the last time."""
    while _summarise_some(run_id):
        pass


class _Overtaken(Exception):
    """Another process counted meanwhile what this one has counted."""


def _summarise_some(run_id: str) -> bool:
    """A bounded part of it; whether more is left. Counted under a snapshot, so that the database's one writer waits for the rows alone."""
    project_id = Run.objects.filter(id=run_id).values_list("project_id", flat=True).first()
    known = _Known(
        MetricSummary.objects.filter(run_id=run_id).values_list("key", flat=True),
        wide_keys.chooser(run_id, project_id or "", most=MOST_KEYS),
    )
    news: dict[int, dict[str, _News]] = defaultdict(dict)
    moved: list[tuple[int, str, int]] = []
    change = lineage.Change()
    more, budget = False, POINTS_AT_ONCE
    with rows.snapshot() as cursor:
        cursor.execute(
            'SELECT id, rank, summarised, "next", attempt_id, last_step FROM tracker_writer '
            'WHERE run_id = %s AND summarised < "next" ORDER BY started_us, id',
            [run_id],
        )
        for writer_id, rank, summarised, following, attempt_id, last_step in cursor.fetchall():
            # Only below ``following``: in a caller's transaction on PostgreSQL more may have been committed since it was read.
            heads = [head for head in metric_store().segment_heads(cursor, run_id, writer_id, summarised) if head.first < following]
            taken = []
            for head in heads:
                if taken and budget < head.points:
                    break
                taken.append(head)
                budget -= head.points
            upto = following if len(taken) == len(heads) else taken[-1].last + 1
            more |= upto < following
            if taken:
                try:
                    batches = metric_store().batches(cursor, run_id, writer_id, taken[0].first, taken[-1].first)
                except DamagedSegment:  # compaction tells of it; the other writers go on
                    continue
                _count(batches, news[rank], known)
                change.logged(batches)
            change.came_to(attempt_id, last_step)
            moved.append((upto, writer_id, summarised))
            if budget <= 0:
                more |= True
                break
    if not moved:
        return False
    try:
        with rows.lock_run_summaries(run_id), rows.cursor() as cursor:
            # Forks are asked for with the row itself, so that a run without any costs no query more.
            run = _with_forks(Run.objects.only("project_id", "summary", "is_stitched").filter(id=run_id)).first()
            if run is None:
                return False
            for step in sorted(moved, key=lambda each: each[1]):  # writers are locked in the order of their ids, as at ingest
                cursor.execute("UPDATE tracker_writer SET summarised = %s WHERE id = %s AND summarised = %s", step)
                if cursor.rowcount != 1:
                    raise _Overtaken
            if run.has_forks:
                lineage.mark_stale(change.heirs(run_id))
            if run.is_stitched:
                news = _addable(run_id, news, [writer for _, writer, _ in moved])
            elif len(known.keys) >= MOST_KEYS:
                news = _beyond_what_was_made(run_id, news)
            wide_keys.record(run, known.others)
            write_values(run, _write(run, news))
    except _Overtaken:
        return True
    return more


class _Known:
    """Which keys have rows, and what else came by."""

    def __init__(self, keys, chosen) -> None:
        self.keys, self.chosen = set(keys), chosen
        self.others: set[str] = set()

    def see(self, keys: list[str]) -> None:
        for key in keys:
            if key not in self.keys and key not in self.others:
                if self.chosen(key, self.keys):
                    self.keys.add(key)
                else:
                    self.others.add(key)


def _beyond_what_was_made(run_id: str, news: dict[int, dict[str, _News]]) -> dict[int, dict[str, _News]]:
    """A key that got its row late had it made from its series (services/stitched.py), perhaps with points that are counted only now:
    what does not lie beyond is made again."""
    made = {(row.key, row.rank): row for row in MetricSummary.objects.filter(run_id=run_id, hi_step__isnull=False)}
    late = {key for key, _ in made}
    if not late:
        return news
    fits = {key for key in late if all(_is_beyond(made.get((key, r)), n[key]) for r, n in news.items() if key in n)}
    again = sorted({key for n in news.values() for key in n if key in late and key not in fits})
    lineage.mark_stale([run_id], again)
    return {rank: {key: found for key, found in by_key.items() if key not in again} for rank, by_key in news.items()}


def _with_forks(runs):
    return runs.annotate(has_forks=Exists(Run.objects.filter(fork_run=OuterRef("id"))))


def _addable(run_id: str, news: dict[int, dict[str, _News]], writers: list[str]) -> dict[int, dict[str, _News]]:
    """What of a stitched run's news can be added as it is: points of its latest attempt beyond all that it has, which is what a live
    run sends. The other keys are marked, to be made again from their series."""
    keys = {key for by_key in news.values() for key in by_key if not is_measured(key)}
    stale = set(StaleSummary.objects.filter(run_id=run_id).values_list("key", flat=True))
    latest = Attempt.objects.filter(run_id=run_id).aggregate(latest=Max("number"))["latest"]
    is_latest = not Writer.objects.filter(id__in=writers).exclude(attempt__number=latest).exists()
    beyond: set[str] = set()
    if is_latest and "" not in stale:
        known = {}
        for start in range(0, len(keys), 500):
            for row in MetricSummary.objects.filter(run_id=run_id, key__in=sorted(keys)[start : start + 500]):
                known[row.key, row.rank] = row
        beyond = {key for key in keys - stale if all(_is_beyond(known.get((key, r)), n[key]) for r, n in news.items() if key in n)}
    lineage.mark_stale([run_id], sorted(keys - beyond))
    return {rank: {key: found for key, found in by_key.items() if is_measured(key) or key in beyond} for rank, by_key in news.items()}


def _is_beyond(row: MetricSummary | None, found: _News) -> bool:
    if row is None or row.hi_step is None or row.last_time is None:
        return False
    return found.is_rising and found.lo_step > row.hi_step and found.last_time >= row.last_time


# -- counting --------------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _News:
    """What new points of one (key, rank) amount to."""

    count: int = 0
    nan_count: int = 0
    first_nan_step: int | None = None
    last: float | int = 0.0
    last_step: int = 0
    last_time: int = 0
    record: int = -1
    lo_step: int = 2**63 - 1
    hi_step: int = -(2**63)
    is_rising: bool = True
    """Each step is higher than the one before, so that all of these points count."""
    min: float | None = None
    max: float | None = None
    sum: float = 0.0


def _count(batches: list[wire.Batch], news: dict[str, _News], known: _Known) -> None:
    """Add the batches of one writer, in order; keys without rows are passed over."""
    dense: dict[str, list[wire.Dense]] = {}
    for batch in batches:
        for frame in batch.frames:
            if not frame.points:
                continue
            if not isinstance(frame, wire.Dense):
                known.see(frame.keys)
                _count_sparse(frame, news, known.keys)
                continue
            if frame.keylist not in dense:
                known.see(frame.keys)
            dense.setdefault(frame.keylist, []).append(frame)
    for group in dense.values():
        _count_dense(group, news, known.keys)


def _count_dense(group: list[wire.Dense], news: dict[str, _News], known: set[str]) -> None:
    keys, types = group[0].keys, np.frombuffer(group[0].types.encode(), "u1") == ord("q")
    chosen = np.array([at for at, key in enumerate(keys) if key in known], int)
    if not len(chosen):
        return
    steps, times, records = (np.concatenate([getattr(f, name) for f in group]) for name in ("steps", "times", "records"))
    matrix = np.concatenate([f.matrix[chosen] for f in group], axis=1)
    types = types[chosen]
    for kind in (blocks.F64, blocks.I64):
        at = np.flatnonzero(types == bool(kind))
        if len(at):
            _add([keys[i] for i in chosen[at]], kind, matrix[at], steps, times, records, news)


def _count_sparse(frame: wire.Sparse, news: dict[str, _News], known: set[str]) -> None:
    group = frame.index.astype(np.int64) * 2 + frame.types
    # Of 100,000 names logged one by one, 500 are counted here: the others are not even sorted.
    is_known = np.fromiter((key in known for key in frame.keys), bool, len(frame.keys))
    chosen = np.flatnonzero(is_known[frame.index])
    if not len(chosen):
        return
    order = chosen[np.argsort(group[chosen], kind="stable")]
    starts = np.flatnonzero(np.r_[True, group[order][1:] != group[order][:-1]])
    for start, end in zip(starts, np.r_[starts[1:], len(order)], strict=True):
        at = order[start:end]
        key = frame.keys[int(group[at[0]]) >> 1]
        if key in known:
            bits = frame.bits[at].reshape(1, -1)
            _add([key], int(group[at[0]]) & 1, bits, frame.steps[at], frame.times[at], frame.records[at], news)


def _add(keys: list[str], kind: int, bits: np.ndarray, steps, times, records, news: dict[str, _News]) -> None:
    entries = np.zeros(len(keys), blocks.COLUMN)
    blocks.statistics(entries, np.arange(len(keys)), kind, bits)
    dtype = "<i8" if kind == blocks.I64 else "<f8"
    lows, highs = (np.ascontiguousarray(entries[name]).view(dtype).tolist() for name in ("min", "max"))
    lasts = np.ascontiguousarray(bits[:, -1]).view(dtype).tolist()
    rows_, lowest, highest = len(steps), int(steps.min()), int(steps.max())
    is_rising = bool((steps[1:] > steps[:-1]).all())
    for at, (key, nan, total) in enumerate(zip(keys, entries["nan"].tolist(), entries["sum"].tolist(), strict=True)):
        found = news.setdefault(key, _News())
        found.count += rows_
        found.is_rising &= is_rising and lowest > found.hi_step
        found.lo_step, found.hi_step = min(found.lo_step, lowest), max(found.hi_step, highest)
        if nan:
            if found.first_nan_step is None:
                found.first_nan_step = int(steps[np.isnan(bits[at].view("<f8")).argmax()])
            found.nan_count += nan
        if nan < rows_:
            found.min = lows[at] if found.min is None else min(found.min, lows[at])
            found.max = highs[at] if found.max is None else max(found.max, highs[at])
            found.sum += total
        if int(records[-1]) > found.record:
            found.record, found.last = int(records[-1]), lasts[at]
            found.last_step, found.last_time = int(steps[-1]), int(times[-1])


# -- rows ------------------------------------------------------------------------------------------------------------------------------


def _write(run: Run, news: dict[int, dict[str, _News]]) -> list[str]:
    """Merge into the rows; the keys that changed."""
    changed: list[str] = []
    for rank, by_key in news.items():
        keys = list(by_key)
        changed += keys
        there = {}
        for start in range(0, len(keys), 500):
            for row in MetricSummary.objects.filter(run_id=run.id, rank=rank, key__in=keys[start : start + 500]):
                there[row.key] = row
        fresh = [_merge(MetricSummary(run_id=run.id, key=key, rank=rank), found) for key, found in by_key.items() if key not in there]
        MetricSummary.objects.bulk_create(fresh, batch_size=60)
        old = [_merge(there[key], found) for key, found in by_key.items() if key in there]
        if old:
            # One statement for all; bulk_update's CASE for each field is ten times slower.
            MetricSummary.objects.bulk_create(
                old, batch_size=60, update_conflicts=True, unique_fields=["run", "key", "rank"],
                update_fields=FIELDS,
            )  # fmt: skip
    return list(dict.fromkeys(changed))


def _merge(row: MetricSummary, news: _News) -> MetricSummary:
    row.count += news.count
    row.nan_count += news.nan_count
    if row.hi_step is not None:
        row.hi_step = max(row.hi_step, news.hi_step)
    if row.first_nan_step is None:
        row.first_nan_step = news.first_nan_step
    if row.last_time is None or news.last_time >= row.last_time:
        row.last, row.last_text = storable_value(news.last)
        row.last_step, row.last_time = news.last_step, news.last_time
    if news.min is not None:
        row.min = float(news.min if row.min is None else min(row.min, news.min))
        row.max = float(news.max if row.max is None else max(row.max, news.max))
        if row.sum is not None or row.count == news.count:
            row.sum = (row.sum or 0.0) + news.sum
        if row.sum is not None and math.isnan(row.sum):  # inf - inf: there is no sum
            row.sum = None
    return row


def storable_value(value: float | int) -> tuple[float | None, str]:
    """SQL has no NaN that both databases keep, and floats no integers beyond 2**53: those are in the text."""
    if isinstance(value, int):
        return float(value), str(value) if abs(value) > EXACT else ""
    if math.isnan(value):
        return None, "NaN"
    if math.isinf(value):
        return value, "Infinity" if value > 0 else "-Infinity"
    return value, ""


def write_values(run: Run, keys: list[str]) -> None:
    """The value that runs are sorted and filtered by: the last of each rank, reduced. What the program set itself stays."""
    own = run.summary if isinstance(run.summary, dict) else {}
    keys = [key for key in keys if key not in own]
    if not keys:
        return
    lasts: dict[str, list[MetricSummary]] = defaultdict(list)
    for start in range(0, len(keys), 500):
        for row in MetricSummary.objects.filter(run_id=run.id, key__in=keys[start : start + 500]).order_by("rank"):
            lasts[row.key].append(row)
    definitions = list(run.key_definitions.order_by("id").values_list("pattern", "fields"))
    values = []
    where = None
    for key, found in lasts.items():
        meant, groups = meanings.meaning(key, definitions), None
        if meant.over and len(found) > 1:
            where = where if where is not None else ranks.coordinates_of(run.id)
            groups = coordinates.groups([row.rank for row in found], where, meant.over)
        number, text = _reduced(found, meant.reduce, groups)
        values.append(RunValue(project_id=run.project_id, run_id=run.id, kind=RunValue.Kind.SUMMARY, path=key, number=number, text=text))
    RunValue.objects.bulk_create(
        values, batch_size=150, update_conflicts=True, unique_fields=["run", "kind", "path"], update_fields=["number", "text"]
    )


def _reduced(found: list[MetricSummary], how: str, groups: list[tuple] | None) -> tuple[float | None, str | None]:
    """As the ranks' lines are put together, each with the one point that is its last."""
    at = np.zeros(1, "i8")
    parts = [(at, np.array([row.last_time or 0]), np.array([math.nan if row.last is None else row.last])) for row in found]
    value = float(thinning.reduce_ranks(parts, how, groups)[2][0])
    if math.isnan(value):
        return None, "NaN"
    if math.isinf(value):
        return value, "Infinity" if value > 0 else "-Infinity"
    return value, None
