"""Series for charts: many keys of many runs in one answer, exact where the points fit, min/max/mean of buckets where they do not."""

from __future__ import annotations

import base64
import fnmatch
import json
import math
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tracker.domain import buckets as thinning
from tracker.domain import coordinates, series_answer
from tracker.domain import keys as meanings
from tracker.domain.errors import Invalid
from tracker.domain.ids import is_id
from tracker.domain.lineage import INHERITED, Fork, mark
from tracker.models import KeyDefinition, MetricSummary, Run
from tracker.services import lineage, lineage_clock, overviews, summaries
from tracker.services import ranks as rank_facts
from tracker.store import reading
from tracker.store.reading import Column, WriterInfo

MOST_RUNS = 1000
MOST_KEYS = 1000
MOST_SERIES = 5000
MOST_BUCKETS = 100_000
X = ("step", "relative", "wall")
REDUCED = ("reduce", "band")


@dataclass(frozen=True)
class Query:
    runs: tuple[str, ...]
    keys: tuple[str, ...]
    x: str = "step"
    lo: float | None = None
    hi: float | None = None
    buckets: int = 1000
    ranks: str | tuple[int, ...] = "reduce"
    since: str | None = None
    branch: str | int = reading.CURRENT
    """CURRENT or ALL; a number: what this attempt logged itself."""


def answer(*, user, query: dict[str, Any], as_json: bool = False) -> bytes | dict[str, Any]:
    """The series that ``query`` (docs/api.md, Series) asks for, of those runs that ``user`` may see; others are as if not there.

    Raises Invalid with the field that is wrong.
    """
    asked = parse(query)
    entries, fields = _answer(user, asked)
    return series_answer.as_json(entries, **fields) if as_json else series_answer.encode(entries, **fields)


def parse(query: Any) -> Query:
    if not isinstance(query, dict):
        raise Invalid("The query is a JSON object with runs and keys.")
    runs = _texts(query, "runs", MOST_RUNS)
    keys = _texts(query, "keys", MOST_KEYS)
    x = query.get("x", "step")
    if x not in X:
        raise Invalid(f"x is one of {', '.join(X)}.", x="unknown")
    lo, hi = (_number(query, name) for name in ("from", "to"))
    buckets = query.get("buckets", 1000)
    if not isinstance(buckets, int) or isinstance(buckets, bool) or not 1 <= buckets <= MOST_BUCKETS:
        raise Invalid(f"buckets is an integer from 1 to {MOST_BUCKETS}.", buckets="out of range")
    ranks = query.get("ranks", "reduce")
    if isinstance(ranks, list) and all(isinstance(r, int) and not isinstance(r, bool) and 0 <= r < 2**31 for r in ranks):
        ranks = tuple(ranks)
    elif ranks not in REDUCED and ranks != "all":
        raise Invalid('ranks is "reduce", "band", "all" or a list of ranks.', ranks="unknown")
    since = query.get("since")
    if since is not None and not isinstance(since, str):
        raise Invalid("since is the cursor of an earlier answer.", since="malformed")
    return Query(runs, keys, x, lo, hi, buckets, ranks, since, branch_of(query.get("branch"), query.get("attempt")))


def branch_of(branch: Any, attempt: Any) -> str | int:
    """What ``reading`` calls the branch that was asked for. Raises Invalid."""
    if attempt is not None:
        if not isinstance(attempt, int) or isinstance(attempt, bool) or not 1 <= attempt < 2**31:
            raise Invalid("attempt is the number of an attempt, from 1.", attempt="malformed")
        if branch is not None:
            raise Invalid("attempt and branch exclude each other.", attempt="with branch")
        return attempt
    if branch not in (None, reading.CURRENT, reading.ALL):
        raise Invalid('branch is "current" or "all".', branch="unknown")
    return branch or reading.CURRENT


def _texts(query: dict, name: str, most: int) -> tuple[str, ...]:
    found = query.get(name)
    if not isinstance(found, list) or not all(isinstance(item, str) and "\0" not in item and len(item) <= 500 for item in found):
        raise Invalid(f"{name} is a list of texts.", **{name: "malformed"})
    if len(found) > most:
        raise Invalid(f"{name} has more than {most} entries: ask in portions.", **{name: "too many"})
    return tuple(dict.fromkeys(found))


def _number(query: dict, name: str) -> float | None:
    found = query.get(name)
    if found is None:
        return None
    if (
        not isinstance(found, int | float)
        or isinstance(found, bool)
        or abs(found) > 2**63
        or (isinstance(found, float) and math.isnan(found))
    ):
        raise Invalid(f"{name} is a number within 64 bits.", **{name: "malformed"})
    return found


# -- the answer ------------------------------------------------------------------------------------------------------------------------


def _answer(user, query: Query) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    ids = [run for run in query.runs if is_id(run)]
    visible = Run.objects.visible_to(user)
    found = list(visible.filter(id__in=ids).values_list("id", "fork_run", "fork_step")) if ids else []
    there = {row[0] for row in found}
    runs = [run for run in ids if run in there]
    forks = lineage.forks_of(found, visible)
    before = _cursor_in(query.since) if query.since is not None else None
    if before is not None:
        writers = reading.writers_of(reading.with_ancestors(runs, forks))
        marks = _marks(runs, writers, forks)
        if any(before.get(run) != marks.get(run) for run in runs):
            # An attempt went back, or an ancestor came or went: what the client has is no longer the history.
            return [], {"cursor": query.since, "x": query.x, "reset": True}
        if all(info.next <= before.get(info.id, 0) for info in writers.values()):
            return [], {"cursor": _cursor(writers, marks), "x": query.x}  # nothing came: one query, nothing decoded
    keys = keys_of_runs(runs, query.keys)
    ranks = query.ranks if isinstance(query.ranks, tuple) else None
    shifts = lineage_clock.shifts(runs, forks) if query.x == "relative" and forks else {}
    asked = _Asked(runs, keys, ranks, _step_window(query), forks, query.branch, shifts)
    drawn: list[dict[str, Any]] = []
    tails: dict[tuple[str, str], int] = {}
    if before is None:
        drawn, left, seen = overviews.drawn(query, asked)  # series of many millions of points
        columns, writers = [], seen
        for part in left:
            found_columns, its = part.read()
            columns += found_columns
            writers = {**its, **writers}  # the older snapshot's: a tail repeats rather than misses
    else:
        columns, writers, tails = _read_tail(asked, before)
    entries = overviews.in_order(asked, drawn, _entries(query, columns, writers, tails if before is not None else None))
    return entries, {"cursor": _cursor(writers, _marks(runs, writers, forks)), "x": query.x}


@dataclass(frozen=True)
class _Asked:
    """A query as the store is asked, whole or in part."""

    runs: list[str]
    keys: list[str]
    ranks: tuple[int, ...] | None
    window: tuple[int, int]
    forks: dict[str, tuple[Fork, ...]]
    branch: str | int
    shifts: dict[str, dict[str, int]]

    def read(self, since: dict[str, int] | None = None, **part: Any) -> tuple[list[Column], dict[str, WriterInfo]]:
        asked = replace(self, **part)
        return reading.read(
            asked.runs, asked.keys, asked.ranks, lo_step=asked.window[0], hi_step=asked.window[1], since=since, forks=asked.forks,
            branch=asked.branch, shifts=asked.shifts,
        )  # fmt: skip


def _read_tail(asked: _Asked, before: dict[str, int]) -> tuple[list[Column], dict[str, WriterInfo], dict[tuple[str, str], int]]:
    """What a client that has all up to ``before`` must draw anew: of each (run, key) with news, all from their lowest step on."""
    news, writers = asked.read(since=before)
    lowest: dict[tuple[str, str], int] = {}
    for column in news:
        name, lo = (column.run, column.key), int(column.steps.min())
        lowest[name] = min(lo, lowest.get(name, lo))
    if not lowest:
        return [], writers, {}
    columns, writers = asked.read(
        runs=[run for run in asked.runs if any(run == r for r, _ in lowest)],
        keys=[key for key in asked.keys if any(key == k for _, k in lowest)],
        window=(max(asked.window[0], min(lowest.values())), asked.window[1]),
    )
    kept = []
    for column in columns:
        lo = lowest.get((column.run, column.key))
        if lo is not None and (cut := _from_step(column, lo)) is not None:
            kept.append(cut)
    return kept, writers, lowest


def _marks(runs: list[str], writers: dict[str, WriterInfo], forks: dict[str, tuple[Fork, ...]]) -> dict[str, int]:
    return {run: mark(plan) for run, plan in reading.plans_of(runs, writers, forks).items()}


def _from_step(column: Column, lo: int) -> Column | None:
    keep = np.flatnonzero(column.steps >= lo)
    if len(keep) == len(column.steps):
        return column
    attempt = column.attempt[keep]
    counts = [(int(a), int((attempt == a).sum())) for a in dict.fromkeys(attempt.tolist())]
    cut = Column(
        column.run, column.key, column.rank, column.records[keep], column.steps[keep], column.times[keep], column.values[keep], counts,
        branch=column.branch,
    )  # fmt: skip
    return cut if len(keep) else None


def _entries(
    query: Query, columns: list[Column], writers: dict[str, WriterInfo], tails: dict[tuple[str, str], int] | None
) -> list[dict[str, Any]]:
    starts = _starts(writers)
    grouped: dict[tuple[str, str, int | None], list[Column]] = defaultdict(list)
    for column in columns:
        grouped[column.run, column.key, column.branch].append(column)
    reductions = _reductions(grouped) if query.ranks in REDUCED else {}
    entries = []
    for (run, key, branch), mine in grouped.items():
        lines: list[tuple[int | None, list[Column]]]
        lines = [(None, mine)] if query.ranks in REDUCED else [(column.rank, [column]) for column in mine]
        for rank, group in lines:
            parts = [_winning(column) for column in group]
            how, over, groups = reductions.get((run, key, branch), ("mean", (), None))
            steps, times, values = thinning.reduce_ranks(parts, how, groups)
            stored = group
            band = None
            if query.ranks == "band" and len(parts) > 1:
                band = thinning.band(parts)
            entry = _entry(query, steps, times, values, starts.get(run, 0), band)
            if entry is None:
                continue
            n = _stored_in_window(query, stored, starts.get(run, 0))
            told = {"run": run, "key": key, "rank": rank, "attempts": sorted({a for c in group for a, _ in c.attempts}), "n": n}
            if rank is None:
                told["ranks"] = [column.rank for column in group]
                if len(group) > 1:
                    told["reduce"] = {"how": how, "over": list(over)}
            if branch is not None:
                told["branch"] = branch
            elif (forked := _fork_x(query, group, starts.get(run, 0))) is not None:
                told["fork_x"] = forked
            if tails is not None:
                told["from"] = _first_x(query, tails[run, key], steps, times, starts.get(run, 0))
            entries.append({**told, **entry})
    if len(entries) > MOST_SERIES:
        raise Invalid(f"This asks for {len(entries)} series, at most {MOST_SERIES} are answered: name fewer runs, keys or ranks.")
    return entries


def _fork_x(query: Query, columns: list[Column], start: int) -> float | None:
    """Where the last inherited point of a line stands; None where it has none."""
    ends = []
    for column in columns:
        if any(attempt == INHERITED for attempt, _ in column.attempts):
            at = np.flatnonzero(column.attempt == INHERITED)
            ends.append(float(_x_of(query.x, column.steps[at], column.times[at], start).max()))
    return max(ends, default=None)


def _winning(column: Column) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, times and float64 values of the winning points, by rising step."""
    values = column.values if column.values.dtype.kind == "f" else column.values.astype("f8")
    order = column.order
    if order is None:
        return column.steps, column.times, values
    return column.steps[order], column.times[order], values[order]


def _x_of(x: str, steps: np.ndarray, times: np.ndarray, start: int) -> np.ndarray:
    """Seconds for the two clocks: since the run's first writer, or since 1970."""
    if x == "step":
        return steps.astype("f8")
    return (times - start) / 1e6 if x == "relative" else times / 1e6


def _entry(
    query: Query, steps: np.ndarray, times: np.ndarray, values: np.ndarray, start: int, band: tuple[np.ndarray, ...] | None = None
) -> dict[str, Any] | None:
    """``band``: least and greatest over the ranks at each step."""
    x = _x_of(query.x, steps, times, start)
    band = band or ()
    if query.x != "step" and len(x) > 1 and not bool((x[1:] >= x[:-1]).all()):
        order = np.argsort(x, kind="stable")
        x, steps, values, *band = (array[order] for array in (x, steps, values, *band))
    if query.x != "step":  # steps were cut while reading
        a = 0 if query.lo is None else int(np.searchsorted(x, query.lo, "left"))
        b = len(x) if query.hi is None else int(np.searchsorted(x, query.hi, "right"))
        x, steps, values, *band = (array[a:b] for array in (x, steps, values, *band))
    if not len(x):
        return None
    nan, inf = thinning.odd_counts(values)
    if len(x) <= query.buckets:
        around = {"min": band[0], "max": band[1]} if band else {}
        return {"drawn": len(x), "exact": True, "nan": nan, "inf": inf, "x": x, "y": values, "steps": steps, **around}
    lo = float(x[0]) if query.lo is None else max(query.lo, float(x[0]))
    hi = float(x[-1]) if query.hi is None else min(query.hi, float(x[-1]))
    found = thinning.thin(x, values, lo, hi, query.buckets)
    if band:
        found.min, found.max = thinning.thin(x, band[0], lo, hi, query.buckets).min, thinning.thin(x, band[1], lo, hi, query.buckets).max
    return {
        "drawn": len(found.x), "exact": False, "nan": nan, "inf": inf, "x": found.x, "y": found.last, "min": found.min,
        "max": found.max, "mean": found.mean, "first": found.first, "last": found.last, "count": found.count,
    }  # fmt: skip


def _step_window(query: Query) -> tuple[int, int]:
    if query.x != "step":
        return reading.LO, reading.HI
    lo = reading.LO if query.lo is None else max(math.ceil(query.lo), reading.LO) if math.isfinite(query.lo) else reading.LO
    hi = reading.HI if query.hi is None else min(math.floor(query.hi), reading.HI) if math.isfinite(query.hi) else reading.HI
    return lo, hi


def _stored_in_window(query: Query, columns: list[Column], start: int) -> int:
    if query.x == "step" or (query.lo is None and query.hi is None):
        return sum(len(column.steps) for column in columns)
    total = 0
    for column in columns:
        x = _x_of(query.x, column.steps, column.times, start)
        lo = -math.inf if query.lo is None else query.lo
        hi = math.inf if query.hi is None else query.hi
        total += int(((x >= lo) & (x <= hi)).sum())
    return total


def _first_x(query: Query, lowest: int, steps: np.ndarray, times: np.ndarray, start: int) -> float:
    """From which x on the client replaces what it has."""
    return float(lowest) if query.x == "step" else float(_x_of(query.x, steps, times, start).min())


def _starts(writers: dict[str, WriterInfo]) -> dict[str, int]:
    """When each run began: zero of its relative axis."""
    starts: dict[str, int] = {}
    for info in writers.values():
        starts[info.run] = min(info.started_us, starts.get(info.run, info.started_us))
    return starts


Reduction = tuple[str, tuple[str, ...], list[tuple] | None]


def _reductions(grouped: dict[tuple[str, str, int | None], list[Column]]) -> dict[tuple[str, str, int | None], Reduction]:
    """How each (run, key) of several ranks goes together, over which axes, and which ranks that makes one group."""
    several = {name: [column.rank for column in columns] for name, columns in grouped.items() if len(columns) > 1}
    if not several:
        return {}
    definitions: dict[str, list] = defaultdict(list)
    rows = KeyDefinition.objects.filter(run_id__in={run for run, _, _ in several}).order_by("id").values_list("run_id", "pattern", "fields")
    for run, pattern, fields in rows:
        definitions[run].append((pattern, fields))
    found: dict[tuple[str, str, int | None], Reduction] = {}
    for (run, key, branch), ranks in several.items():
        meant = meanings.meaning(key, definitions[run])
        groups = coordinates.groups(ranks, rank_facts.coordinates_of(run), meant.over) if meant.over else None
        found[run, key, branch] = (meant.reduce, meant.over, groups)
    return found


# -- keys and cursors --------------------------------------------------------------------------------------------------------------------

_GLOB = re.compile(r"[*?\[]")


def keys_of_runs(runs: list[str], asked: tuple[str, ...]) -> list[str]:
    """Names as they are; globs as the names that match them in these runs, sorted."""
    if not any(_GLOB.search(key) for key in asked):
        return list(asked)
    by_run: dict[str, set[str]] = defaultdict(set)
    for run, key in MetricSummary.objects.filter(run_id__in=runs).values_list("run_id", "key"):
        by_run[run].add(key)
    there: set[str] = set()
    for run, names in by_run.items():  # a run of very many keys has rows of the first only
        there |= set(reading.keys_of(run)) if len(names) >= summaries.MOST_KEYS else names
    found: dict[str, None] = {}
    for key in asked:
        if key in there or not _GLOB.search(key):
            found[key] = None
            continue
        match = re.compile(fnmatch.translate(key)).match
        found.update(dict.fromkeys(sorted(name for name in there if match(name))))
    if len(found) > MOST_KEYS:
        raise Invalid(f"{len(found)} keys match; at most {MOST_KEYS} are answered: use a narrower glob.", keys="too many")
    return list(found)


def _cursor(writers: dict[str, WriterInfo], marks: dict[str, int]) -> str:
    """Where each writer stands, and which history each run has that is stitched."""
    text = json.dumps({info.id: info.next for info in writers.values()} | marks, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _cursor_in(cursor: str) -> dict[str, int]:
    try:
        found = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(found, dict) or not all(isinstance(n, int) and not isinstance(n, bool) for n in found.values()):
            raise ValueError
    except (ValueError, RecursionError):
        raise Invalid("since is no cursor of an earlier answer: ask once without it.", since="malformed") from None
    return found
