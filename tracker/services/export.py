"""Answers of any length, made as they are sent: all runs of a question, all points of many runs. Constant memory, one page at a time.

Each page is a question of its own, so no transaction stays open while a slow client reads. Between pages a cursor goes out: a client that
was cut off asks again from there. The last word says that all came; without it the answer broke off.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from django.db.models import Max, Min, Sum

from tracker.domain.errors import EncoreError, Invalid
from tracker.models import MetricSummary, Run, User
from tracker.services import lineage, metrics, runs, series
from tracker.services.paging import Page
from tracker.store import reading
from tracker.store.reading import Column

PAGE = 500
RUNS_AT_ONCE = 100
POINTS_AT_ONCE = 1_000_000
MOST_KEYS = 1000
MAGIC, VERSION = b"ENCH", 1
HEAD = struct.Struct("<4sHH")
FRAME = struct.Struct("<IIQ")  # header bytes, crc32 of all behind, bytes of columns


def pages(*, user: User, limit: int, asked: dict[str, Any]) -> Iterator[Page]:
    """The pages of a question as runs.find takes it. The first is there at once, so that a mistake in it is answered as an error."""
    cursor = asked.pop("cursor", None)
    page = runs.find(user=user, limit=limit, cursor=cursor, **asked)

    def rest() -> Iterator[Page]:
        found = page
        while True:
            yield found
            if found.next is None:
                return
            found = runs.find(user=user, limit=limit, cursor=found.next, **asked)

    return rest()


# Runs ---------------------------------------------------------------------------------------------------------------------------


def run_lines(found: Iterator[Page], keys: list[str] | None = None) -> Iterator[bytes]:
    """NDJSON: a run a line; after each page ``{"cursor"}``; at the end ``{"complete": true, "runs": n}``, or ``{"error"}``."""
    count = 0
    try:
        for page in found:
            last = _last_values(page.results, keys)
            lines = [_json(run_row(run, last.get(run.id, {}))) for run in page.results]
            count += len(lines)
            if page.next is not None:
                lines.append(_json({"cursor": page.next}))
            yield b"".join(lines)
        yield _json({"complete": True, "runs": count})
    except EncoreError as error:
        yield _json({"error": {"code": error.code, "message": error.message, "status": error.status}})


def run_row(run: Run, last: dict[str, Any]) -> dict[str, Any]:
    """As GET runs shows it (tracker/api/runs.py, RunRow), ten times as fast."""
    return {
        "id": run.id,
        "name": run.name,
        "project": run.project.slug,
        "user": run.user.username if run.user is not None else None,
        "state": run.state,
        "group": run.group,
        "job_type": run.job_type,
        "tags": run.tags,
        "notes": run.notes,
        "config": run.config,
        "summary": run.summary,
        "host": run.host,
        "created_at": _moment(run.created_at),
        "started_at": _moment(run.started_at),
        "finished_at": _moment(run.finished_at),
        "heartbeat_at": _moment(run.heartbeat_at),
        "stop_requested_at": _moment(run.stop_requested_at),
        "exit_code": run.exit_code,
        "signal": run.signal,
        "archived_at": _moment(run.archived_at),
        "metrics": last,
    }


def _moment(value: Any) -> str | None:
    return None if value is None else value.isoformat().replace("+00:00", "Z")


def _last_values(found: list[Run], keys: list[str] | None) -> dict[str, dict]:
    """``keys``: those metrics' last values; ["*"]: all that have a summary."""
    if not keys:
        return {}
    return metrics.last_of_runs([run.id for run in found], None if "*" in keys else keys[:MOST_KEYS])


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


# Histories ----------------------------------------------------------------------------------------------------------------------


def ranks_asked(found: Any) -> tuple[int, ...] | str | None:
    """None (the lowest rank that logged the key), "all", or a list of ranks."""
    if found is None or found == "all":
        return found
    if isinstance(found, list) and all(isinstance(r, int) and not isinstance(r, bool) and 0 <= r < 2**31 for r in found):
        return tuple(found)
    raise Invalid('ranks is null (the lowest that logged the key), "all" or a list of ranks.', ranks="unknown")


def history_frames(
    found: Iterator[Page],
    keys: tuple[str, ...],
    ranks: tuple[int, ...] | str | None,
    lo_step: int | None,
    hi_step: int | None,
    *,
    user: User,
    branch: str | int = reading.CURRENT,
) -> Iterator[bytes]:
    """docs/formats.md, *Histories*: a frame for each series that has points, in the order of the runs; forks as ``user`` may see them.

    ``branch``: reading.CURRENT, or a number: what this attempt logged itself.
    """
    yield HEAD.pack(MAGIC, VERSION, 0)
    count = points = 0
    window = (reading.LO if lo_step is None else lo_step, reading.HI if hi_step is None else hi_step)
    try:
        for page in found:
            told = [(run.id, run.fork_run, run.fork_step) for run in page.results]
            forks = lineage.forks_of(told, Run.objects.visible_to(user))
            for some, names, chosen in _portions([run.id for run in page.results], keys, ranks):
                read = reading.history(some, names, chosen, lo_step=window[0], hi_step=window[1], forks=forks, branch=branch)
                for column in _lowest(read) if ranks is None else read:
                    frame, n = series_frame(column)
                    count, points = count + 1, points + n
                    yield frame
            if page.next is not None:
                yield frame_of({"cursor": page.next})
        yield frame_of({"complete": True, "series": count, "points": points})
    except EncoreError as error:
        yield frame_of({"error": {"code": error.code, "message": error.message, "status": error.status}})


def _portions(
    run_ids: list[str], keys: tuple[str, ...], ranks: tuple[int, ...] | str | None
) -> Iterator[tuple[list[str], list[str], list[int] | None]]:
    """(runs, keys, ranks to read) that hold about POINTS_AT_ONCE points, by what the summaries know."""
    names = series.keys_of_runs(run_ids, keys)
    if not names:
        return
    rows = (
        MetricSummary.objects.filter(run__in=run_ids, key__in=names) if len(names) < 900 else MetricSummary.objects.filter(run__in=run_ids)
    )
    sizes: dict[str, dict[str, int]] = {}
    lows: set[int] = set()
    for run, key, count, low, high in rows.values_list("run_id", "key").annotate(Sum("count"), Min("rank"), Max("rank")):
        # The lowest rank alone is wanted, and read where it is the same for all.
        sizes.setdefault(run, {})[key] = count // (high - low + 1) if ranks is None else count
        lows.add(low)
    whole = all(len(sizes.get(run, ())) == len(names) for run in run_ids)
    chosen = list(ranks) if isinstance(ranks, tuple) else sorted(lows) if ranks is None and whole and len(lows) == 1 else None
    gathered: list[str] = []
    size = 0
    for run in run_ids:
        mine = sum(sizes.get(run, {}).values())
        if gathered and size + mine > POINTS_AT_ONCE:
            yield gathered, names, chosen
            gathered, size = [], 0
        if mine <= POINTS_AT_ONCE:
            gathered.append(run)
            size += mine
            continue
        part: list[str] = []
        for key in names:
            points = sizes.get(run, {}).get(key, 0)
            if part and size + points > POINTS_AT_ONCE:
                yield [run], part, chosen
                part, size = [], 0
            part.append(key)
            size += points
        yield [run], part, chosen
        size = 0
    if gathered:
        yield gathered, names, chosen


def _lowest(columns: list[Column]) -> Iterator[Column]:
    """Of each run and key the lowest rank, which comes first."""
    before: tuple[str, str] | None = None
    for column in columns:
        name = (column.run, column.key)
        if name != before:
            yield column
        before = name


def series_frame(column: Column) -> tuple[bytes, int]:
    """The frame of a column's winning points, and how many."""
    order = column.order
    steps, times, values = column.steps, column.times, column.values
    bits, is_int = column.bits, column.is_int
    if order is not None:
        steps, times, values = steps[order], times[order], values[order]
        if bits is not None and is_int is not None:
            bits, is_int = bits[order], is_int[order]
    told: dict[str, Any] = {"run": column.run, "key": column.key, "rank": column.rank, "n": len(steps)}
    parts: list[np.ndarray] = []
    stride = int(steps[1]) - int(steps[0]) if len(steps) > 1 else 1
    # In Python's integers: the ends of 64 bits have no difference within them.
    if len(steps) and int(steps[-1]) == int(steps[0]) + stride * (len(steps) - 1) and bool((np.diff(steps) == stride).all()):
        told["steps"] = {"start": int(steps[0]), "stride": stride}
    else:
        parts.append(steps.astype("<i8", copy=False))
    parts.append(times.astype("<i8", copy=False))
    if bits is not None and is_int is not None:
        told["type"] = "m"
        parts += [bits.astype("<i8", copy=False), is_int.astype("u1")]
    else:
        told["type"] = "q" if values.dtype.kind == "i" else "d"
        parts.append(values.astype("<i8" if told["type"] == "q" else "<f8", copy=False))
    return frame_of(told, [np.ascontiguousarray(part).tobytes() for part in parts]), len(steps)


def frame_of(header: dict[str, Any], columns: list[bytes] | None = None) -> bytes:
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join([part + bytes(-len(part) % 8) for part in columns or ()])
    return FRAME.pack(len(text), zlib.crc32(body, zlib.crc32(text)), len(body)) + text + body
