"""The one sentence of a verdict: quotable alone, and never saying more than was compared."""

from __future__ import annotations

from typing import Any

from tracker.domain import sentences as say
from tracker.domain.case import Case

ENOUGH_POINTS = 10
"""Fewer evidence points than this prove nothing."""


def sentence(document: dict[str, Any], case: Case) -> str:
    """How the execution ended where it did not simply complete; what agreed or did not; what was not like for like."""
    parts = [*_execution(document, case)]
    parts += _agreement(document, case, later=bool(parts))
    changed = [d["fact"] for d in document["differences"] if d["numeric"]]
    if not document["like_for_like"] and document["execution"] != "inconclusive":
        parts.append(f"not like for like: {say.listed(changed)}")
    return "; ".join(parts)


def _execution(document: dict[str, Any], case: Case) -> list[str]:
    execution, reason = document["execution"], document["reason"] or {}
    found, logged, words = case.ends_rerun, case.ends_original, case.ending.words
    if execution == "inconclusive":
        return [f"Inconclusive: {reason.get('message') or words}"]
    if execution == "rerun_failed":
        other = f" (the original failed with {case.first.words})" if case.first.kind == "failed" else ""
        return [f"Rerun failed: {words}{other}"]
    if execution == "stopped_early":
        where = f"at step {max(found.values()):,} of {max(logged.values()):,}" if found and logged else "before its first point"
        return [f"Stopped early {where}" + ("" if reason.get("code") == "ended_early" else f": {words}")]
    if case.reproduced:
        return [f"Failure reproduced: {words}" + (f" after step {max(found.values()):,}" if found else "") + ", as in the original"]
    if reason.get("code") == "failure_not_reproduced":
        return [f"Failure not reproduced: the original ended with {reason['message']} after step {document['step']:,}, the rerun did not"]
    return []


def _agreement(document: dict[str, Any], case: Case, later: bool) -> list[str]:
    agreement = document["agreement"]
    if agreement == "not_comparable":
        return [_upper(f"not comparable: {_too_little(case)}", not later)]
    if agreement in ("bit_exact", "within_tolerance"):
        parts = [_upper(_agreed(document, case), not later)]
        if document["execution"] == "completed" and case.first.kind == "cut":
            parts.append(f"the original ended there ({case.first.words})")
        return parts
    if case.divergence is not None:
        parts = [_upper(_diverged(case), not later)]
        largest = case.largest_gap()
        if case.envelope:
            parts.append(f"outside the tolerance ({case.envelope.words()})")
        elif largest and largest[1].step != document["step"]:
            parts.append(f"largest gap {say.percent(largest[1].relative or 0.0)} at step {largest[1].step:,} of {largest[0]}")
        return parts
    return [f"equal until then: {say.of(case.compared, case.compared)}"] if case.compared else []


def _agreed(document: dict[str, Any], case: Case) -> str:
    compared, scope = document["compared"], document["scope"]
    word = "within tolerance" if document["agreement"] == "within_tolerance" else "bit-exact"
    if scope["kind"] != "full":
        word += f" over steps {scope['from']:,} to {scope['to']:,}"
    if case.reshaped:
        word += f" after reduction over ranks ({case.original.world_size} against {case.rerun.world_size})"
    text = f"{word}: {say.of(compared['points'], compared['logged'])}, {say.count(compared['metrics'], 'metric')}"
    text += "" if case.reshaped else f", {say.count(compared['ranks'], 'rank')}"
    largest = case.largest_gap()
    if case.envelope and document["agreement"] == "within_tolerance" and largest:
        gap = f"largest gap {say.percent(largest[1].relative or 0.0)} at step {largest[1].step:,} of {largest[0]}"
        text += f", {gap} (tolerance {case.envelope.words()})"
    return text


def _diverged(case: Case) -> str:
    assert case.divergence is not None
    assert case.divergence.difference is not None
    pair, gap = case.divergence.pair, case.divergence.difference
    head = f"diverged at step {gap.step:,} of {say.place(pair.key, pair.rank)}: "
    if gap.found is None and pair.rerun == 0:
        ranks = {row.pair.rank for row in case.evident}
        silent = pair.rank is not None and len(ranks) > 1 and pair.rank not in case.ends_rerun
        return head + (f"rank {pair.rank} logged nothing in the rerun" if silent else "the rerun did not log this metric")
    if gap.expected is None and pair.logged == 0:
        return head + "the original did not log this metric"
    return head + say.change(gap)


def _too_little(case: Case) -> str:
    if case.logged == 0:
        text = "no data-dependent metric was logged"
    else:
        points = say.count(case.logged, "data-dependent point was", "data-dependent points were")
        text = f"only {points} logged, {ENOUGH_POINTS} are needed"
    if case.divergence is not None and (gap := case.divergence.difference):
        text += f" (the first that differs: step {gap.step:,} of {say.place(case.divergence.pair.key, case.divergence.pair.rank)})"
    return text


def _upper(text: str, first: bool) -> str:
    return text[0].upper() + text[1:] if first else text
