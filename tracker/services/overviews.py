"""Chart lines of series too long to be read in full, out of the blocks' pyramids (``store/pyramid.py``); the rest is left to be read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tracker.store import pyramid, reading
from tracker.store.columns import WriterInfo


def drawn(query, asked) -> tuple[list[dict[str, Any]], list[Any], dict[str, WriterInfo]]:
    """(entries of the answer, what of ``asked`` is left to be read, writers of the snapshot).

    ``query``: a series.Query; ``asked``: its question to the store. Lines of several ranks, old branches and other axes than steps need
    their points.
    """
    if query.x != "step" or query.branch != reading.CURRENT:
        return [], [asked], {}
    found, writers = pyramid.look(
        asked.runs, asked.keys, asked.ranks, lo_step=asked.window[0], hi_step=asked.window[1], count=query.buckets, forks=asked.forks
    )
    if not found:
        return [], [asked], {}
    is_reduced = isinstance(query.ranks, str) and query.ranks != "all"
    ranks: dict[tuple[str, str], list[int]] = defaultdict(list)
    for run, key, rank in found:
        ranks[run, key].append(rank)
    entries = [
        _entry(run, key, rank, is_reduced, overview)
        for (run, key, rank), overview in found.items()
        if not is_reduced or len(ranks[run, key]) == 1
    ]
    answered = {(entry["run"], entry["key"]) for entry in entries}
    return entries, _left(asked, answered), writers


def _entry(run: str, key: str, rank: int, is_reduced: bool, found: pyramid.Overview) -> dict[str, Any]:
    told: dict[str, Any] = {"run": run, "key": key, "rank": None if is_reduced else rank, "attempts": list(found.attempts), "n": found.n}
    if is_reduced:
        told["ranks"] = [rank]
    return {
        **told, "drawn": len(found.x), "exact": False, "nan": found.nan, "inf": found.inf, "x": found.x, "y": found.last,
        "min": found.min, "max": found.max, "mean": found.mean, "first": found.first, "last": found.last, "count": found.count,
    }  # fmt: skip


def _left(asked, answered: set[tuple[str, str]]) -> list[Any]:
    """Runs that miss the same keys are asked together."""
    runs_of: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for run in asked.runs:
        keys = tuple(key for key in asked.keys if (run, key) not in answered)
        if keys:
            runs_of[keys].append(run)
    return [replace(asked, runs=runs, keys=list(keys)) for keys, runs in runs_of.items()]


def in_order(asked, entries: Sequence[dict[str, Any]], more: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Both together as one read would have them: by run, then key."""
    if not entries:
        return more
    run_at, key_at = ({name: at for at, name in enumerate(names)} for names in (asked.runs, asked.keys))
    return sorted([*entries, *more], key=lambda entry: (run_at[entry["run"]], key_at[entry["key"]]))
