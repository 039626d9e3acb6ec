"""The verdict: two runs' points in, one document and one sentence out (docs/formats.md, Verdict; docs/verdict.md for readers).

One pure function. It never says bit-exact of what was not compared: every evidence point that the original logged must have a twin
with the same bits, and the rerun must have no other. What is no evidence, and what was not looked at, is listed with why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tracker.domain import sentences as say
from tracker.domain import suspects
from tracker.domain.case import Case, Envelope, Row
from tracker.domain.compare import I64, Gap, Pair, Series, compare, exact_json, reduce_ranks, ulps
from tracker.domain.endings import End, Ending, of_rerun
from tracker.domain.facts import Difference
from tracker.domain.keys import KeyMeaning, meaning
from tracker.domain.summary import ENOUGH_POINTS, sentence

__all__ = ["End", "Envelope", "KeySeries", "judge"]

MOST_ROWS = 5000
"""Rows of ``per_metric`` kept in the document; those that differ and the evidence come first, the number left out is said."""
_STATES = {"bit_exact": "equal", "within_tolerance": "within tolerance", "diverged": "different"}
_UNRECORDED = (
    ("order", "order of samples"),
    ("checkpoints", "checkpoint tensors"),
    ("rng", "random state at the end"),
    ("outputs", "output files"),
)


@dataclass(frozen=True)
class KeySeries:
    """All ranks of one key in both runs."""

    key: str
    original: Sequence[Series] = ()
    rerun: Sequence[Series] = ()


def judge(
    series: Iterable[KeySeries],
    *,
    original: End,
    rerun: End | None,
    definitions: Any = (),
    failure: Mapping[str, Any] | None = None,
    evidence: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    differences: Sequence[Difference] = (),
    scope: Mapping[str, Any] | None = None,
    envelope: Envelope | None = None,
    not_looked_at: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """The Verdict document. ``series``: every key of either run, once; it may be a generator. ``recipe``: the original's, for suspects.
    ``scope``: ``{"steps": n}`` for a probe. ``not_looked_at``: ``{"key", "why"}`` of what the caller knows was left out."""
    steps = (scope or {}).get("steps")
    ending = of_rerun(rerun, failure, evidence)
    document = _document(steps, differences)
    document["not_compared"] += [dict(item) for item in not_looked_at]
    if ending.kind == "not_runnable" or rerun is None:
        return _unplayed(document, ending)
    reshaped = None not in (original.world_size, rerun.world_size) and original.world_size != rerun.world_size
    rows: list[Row] = []
    all_steps: I64 = np.empty(0, np.int64)
    for item in series:
        means = meaning(item.key, definitions)
        if item.key.startswith("system/"):
            document["not_compared"].append({"key": item.key, "what": "metric", "why": str(means.why_not)})
            continue
        if reshaped and means.over:
            # Which ranks made one group is not known here; copies that count once there would count twice.
            why = f"it is put together over {', '.join(means.over)}, and the rerun had another number of ranks"
            means = replace(means, evidence=False, why_not=why)
        for pair, at in _pairs(item, means, steps, envelope, reshaped):
            rows.append(Row(pair, means))
            if means.evidence and not pair.constant and not np.array_equal(all_steps, at):
                all_steps = np.union1d(all_steps, at)
    if not any(row.pair.rerun for row in rows):
        document["not_compared"].append({"key": "all metrics", "what": "metrics", "why": "the rerun logged nothing"})
    case = Case(original, rerun, ending, rows, steps, reshaped, envelope)
    _count(document, case, len(all_steps))
    document["execution"], document["reason"] = _execution(case)
    document["agreement"] = _agreement(document, case)
    _grade(document, case)
    if document["agreement"] == "diverged":
        start = min((row.pair.first_step for row in case.evident if row.pair.first_step is not None), default=None)
        document["suspects"] = suspects.rank(differences, at_start=document["step"] == start, recipe=recipe or {})
    _list_not_compared(document, case)
    document["sentence"] = sentence(document, case)
    return document


def _pairs(item: KeySeries, means: KeyMeaning, steps: int | None, envelope: Envelope | None, reshaped: bool) -> Iterable[tuple[Pair, I64]]:
    tolerance = envelope.bounds(item.key) if envelope else None
    a: dict[int | None, Series] = {s.rank: s.upto(steps) for s in item.original}
    b: dict[int | None, Series] = {s.rank: s.upto(steps) for s in item.rerun}
    if reshaped:
        a, b = (
            {None: reduce_ranks(item.key, list(a.values()), means.reduce)},
            {None: reduce_ranks(item.key, list(b.values()), means.reduce)},
        )
    for rank in sorted(a.keys() | b.keys(), key=lambda r: -1 if r is None else r):
        original, found = a.get(rank), b.get(rank)
        if (original is not None and len(original)) or (found is not None and len(found)):
            yield compare(item.key, rank, original, found, tolerance), original.steps if original is not None else np.empty(0, np.int64)


def _execution(case: Case) -> tuple[str, dict[str, Any] | None]:
    """(execution, reason)."""
    reason = {"message": case.ending.words, **case.ending.reason}
    if case.ending.kind == "inconclusive":
        return "inconclusive", reason
    if case.reproduced:
        return "completed", {**reason, "code": "failure_reproduced"}
    if case.ending.kind == "failed":
        return "rerun_failed", reason
    if case.short:
        return "stopped_early", {"code": "ended_early", "message": "the program ended by itself before the original's last step"}
    if case.ending.kind == "cut" and not case.probe_reached and not (case.first.kind == "cut" and case.whole):
        # A probe is cut on purpose; and a rerun that has all that a broken-off original logged went as far as it did.
        return "stopped_early", reason
    if case.ending.kind == "unsure" and not case.whole:
        return "inconclusive", reason
    if case.lost and case.divergence is None:
        return "inconclusive", {"code": "points_lost", "message": f"{say.count(case.lost, 'point')} may have been lost on the way"}
    return "completed", None


def _agreement(document: dict[str, Any], case: Case) -> str | None:
    """The word; fills in step, metric, rank and values, and the reason where the word needs one."""
    if case.divergence is not None and (gap := case.divergence.difference):
        pair = case.divergence.pair
        document.update(step=gap.step, metric=pair.key, rank=pair.rank, expected=exact_json(gap.expected), found=exact_json(gap.found))
    if case.logged < ENOUGH_POINTS:
        if document["execution"] != "completed":
            return None
        points = say.count(case.logged, "data-dependent point was", "data-dependent points were")
        few = {"code": "too_few_points", "message": f"{points} logged, {ENOUGH_POINTS} are needed"}
        document["reason"] = document["reason"] or (
            few if case.logged else {"code": "no_evidence", "message": "no data-dependent metric was logged"}
        )
        return "not_comparable"
    if case.divergence is not None:
        return "diverged"
    if (
        document["execution"] == "completed"
        and not case.reproduced
        and case.first.kind == "failed"
        and case.ending.kind in ("finished", "unsure")
    ):
        # The same numbers, but what ended the original did not happen again: the program did not do the same.
        document["step"] = max(case.ends_original.values())
        document["reason"] = {"code": "failure_not_reproduced", "message": case.first.words}
        return "diverged"
    if not case.whole or case.lost or document["execution"] == "inconclusive":
        return None
    return "within_tolerance" if any(row.pair.differing for row in case.evident) else "bit_exact"


# The document -----------------------------------------------------------------------------------------------------------------


def _document(steps: int | None, differences: Sequence[Difference]) -> dict[str, Any]:
    return {
        "format": 1, "sentence": "", "execution": "inconclusive",
        "scope": {"kind": "full" if steps is None else "probe", "from": None, "to": steps}, "agreement": None,
        "like_for_like": not any(d.numeric or d.override for d in differences), "differences": [d.document() for d in differences],
        "step": None, "metric": None, "rank": None, "expected": None, "found": None,
        "compared": {"points": 0, "logged": 0, "metrics": 0, "ranks": 0, "steps": 0}, "per_metric": [], "grade": [],
        "suspects": [], "reason": None, "not_compared": [],
    }  # fmt: skip


def _unplayed(document: dict[str, Any], ending: Ending) -> dict[str, Any]:
    document["execution"] = "not_runnable" if ending.kind == "not_runnable" else "inconclusive"
    document["reason"] = {"message": ending.words, **ending.reason}
    document["not_compared"].append({"key": "all metrics", "what": "metrics", "why": "the program did not run"})
    document["sentence"] = say.not_runnable(ending.reason) if ending.kind == "not_runnable" else f"Inconclusive: {ending.words}"
    return document


def _count(document: dict[str, Any], case: Case, steps: int) -> None:
    beyond_probe = sum(row.excused for row in case.evident) if case.probe_reached else 0
    document["compared"] = {
        "points": case.compared,
        "logged": case.logged - beyond_probe,
        "metrics": len({row.pair.key for row in case.evident}),
        "ranks": len({row.pair.rank for row in case.evident}),
        "steps": steps,
    }
    starts = [row.pair.first_step for row in case.evident if row.pair.first_step is not None]
    if starts and case.ends_rerun and case.ends_original:
        last = min(max(case.ends_rerun.values()), max(case.ends_original.values()))
        cut = [int(row.pair.missing[-row.excused]) for row in case.evident if row.excused]
        if cut and case.probe_reached:
            last = min(last, max(min(cut) - 1, min(starts)))
        document["scope"].update({"from": min(starts), "to": last})
    ordered = sorted(case.rows, key=lambda row: (not row.evidence, row.pair.key, row.rank_order))
    if len(ordered) > MOST_ROWS:
        ordered = sorted(ordered, key=lambda row: (row.difference is None, not row.evidence))[:MOST_ROWS]
        document["per_metric_left_out"] = len(case.rows) - MOST_ROWS
    document["per_metric"] = [_row(row) for row in ordered]


def _row(row: Row) -> dict[str, Any]:
    pair = row.pair
    return {
        "key": pair.key, "rank": pair.rank, "kind": row.meaning.kind, "compared": pair.compared, "logged": pair.logged, "rerun": pair.rerun,
        "equal": pair.differing == 0 and pair.compared == pair.logged == pair.rerun, "evidence": row.evidence, "why_not": row.why_not,
        "first_difference": _gap(row.difference or pair.first), "largest_gap": _gap(pair.largest),
    }  # fmt: skip


def _gap(gap: Gap | None) -> dict[str, Any] | None:
    if gap is None:
        return None
    distance = None if gap.expected is None or gap.found is None else ulps(gap.expected, gap.found)
    return {
        "step": gap.step, "expected": exact_json(gap.expected), "found": exact_json(gap.found), "relative": exact_json(gap.relative),
        "ulp": None if distance is None else exact_json(distance[0]), "ulp_of": None if distance is None else distance[1],
    }  # fmt: skip


def _grade(document: dict[str, Any], case: Case) -> None:
    state = _STATES.get(str(document["agreement"]), "not compared")
    document["grade"] = [{"what": "metrics", "state": state, "points": case.compared}]
    document["grade"] += [{"what": what, "state": "not compared", "points": 0} for what, _ in _UNRECORDED]
    if case.envelope:
        envelope = case.envelope
        document["envelope"] = {
            "source": envelope.source, "repeats": envelope.repeats, "relative": envelope.relative, "absolute": envelope.absolute,
        }  # fmt: skip


def _list_not_compared(document: dict[str, Any], case: Case) -> None:
    found, why = document["not_compared"], dict[str, str]()
    for row in case.rows:
        if row.why_not:
            why.setdefault(row.pair.key, row.why_not)
        if row.excused:
            why[row.pair.key] = f"{say.count(row.excused, 'point')} that the rerun did not reach"
        elif row.beyond:
            why[row.pair.key] = f"{say.count(row.beyond, 'point')} of the rerun after the original had ended"
    found += [{"key": key, "what": "metric", "why": reason} for key, reason in sorted(why.items())]
    for side, end in (("original", case.original), ("rerun", case.rerun)):
        if end.dropped:
            reasons = ", ".join(f"{number:,} {reason}" for reason, number in sorted(end.dropped.items()))
            found.append({"key": f"what the {side} lost", "what": "points", "why": f"dropped before they were stored: {reasons}"})
    if case.reshaped:
        sizes = f"{case.original.world_size} against {case.rerun.world_size} ranks"
        found.append({"key": "single ranks", "what": "ranks", "why": f"{sizes}: only what is reduced over ranks is compared"})
    found += [{"key": key, "what": what, "why": "not recorded with digests on both sides"} for what, key in _UNRECORDED]
