"""The ranks of a run judged together: a row for each, and what is odd about them. Pure, over small arrays."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tracker.domain import oddities, pace
from tracker.domain.pace import Finding, Rank, Row

__all__ = ["Finding", "Judged", "Rank", "Row", "judge"]


@dataclass
class Judged:
    rows: list[Row]
    findings: list[Finding]
    front: int | None
    step_seconds: float | None
    heat_steps: list[int]
    heat: np.ndarray
    """Ranks × steps: seconds since the rank's step before, NaN where unknown."""


def judge(
    ranks: Sequence[Rank],
    *,
    now_us: int,
    live: bool,
    pace_key: str | None = None,
    own_key: str | None = None,
    same: Mapping[str, Mapping[int, tuple[np.ndarray, np.ndarray]]] | None = None,
    world_size: int | None = None,
) -> Judged:
    """``same``: key → rank → (steps, values) of what all ranks should log alike. ``now_us`` is the server's clock."""
    ranks = sorted(ranks, key=lambda one: one.rank)
    steps, times, values = pace.grid(ranks)
    gaps = pace.gaps(steps, times)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of medians over nothing, which are NaN as they should be
        usual, slower = pace.each(np.nanmedian, gaps), pace.each(lambda found, axis: np.nanpercentile(found, 90, axis=axis), gaps)
        late = pace.each(np.nanmedian, times - np.nanmin(times, axis=0)) if len(steps) and len(ranks) > 1 else [None] * len(ranks)
        own = pace.each(np.nanmedian, values) if own_key else [None] * len(ranks)
    typical = pace.median(usual)
    lasts = [int(one.steps[-1]) if len(one.steps) else one.last_step for one in ranks]
    known = [last for last in lasts if last is not None]
    front = max((int(one.steps[-1]) for one in ranks if len(one.steps)), default=max(known, default=None))
    rows = []
    for at, one in enumerate(ranks):
        last, going = lasts[at], live and one.ended is None
        rows.append(
            Row(
                rank=one.rank,
                host=one.host,
                attempt=one.attempt,
                coordinates=one.coordinates,
                state=one.ended or ("running" if live else "ended"),
                last_step=last,
                behind=None if front is None or last is None else max(0, front - last),
                behind_seconds=pace.behind_seconds(steps, times, last, front, typical),
                quiet_seconds=pace.quiet(one, now_us) if going else None,
                heard_seconds=one.heard_seconds if going else None,
                step_seconds=usual[at],
                step_p90=slower[at],
                late_seconds=late[at],
                own_seconds=own[at],
                skew_seconds=one.skew_seconds,
            )
        )
    findings = oddities.found(
        ranks, rows, steps, times, front=front, pace=typical, live=live, pace_key=pace_key, own_key=own_key, same=same or {},
        world_size=world_size,
    )  # fmt: skip
    by_rank = {row.rank: row for row in rows}
    for finding in findings:
        for rank in finding.ranks if finding.level != "info" and len(finding.ranks) < len(rows) else ():
            if rank in by_rank and finding.kind not in by_rank[rank].odd:
                by_rank[rank].odd.append(finding.kind)
    return Judged(rows, findings, front, typical, steps.tolist(), gaps)
