"""One clock for a fork and what it inherits: on the relative axis, inherited points keep the parent's time and own ones go on from there.

The time between (the night before somebody forked the run) is left out, so the curve is continuous.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tracker.domain.lineage import Fork
from tracker.models import MetricSummary
from tracker.store import reading


def shifts(runs: Sequence[str], forks: Mapping[str, Sequence[Fork]]) -> dict[str, dict[str, int]]:
    """For ``reading.read``: for each fork, µs to add to the times of each run it is made of, so that all count from the fork's start."""
    return {run: _shifts(run, forks[run]) for run in runs if forks.get(run)}


def _shifts(run: str, chain: Sequence[Fork]) -> dict[str, int]:
    names = [run, *(fork.run for fork in chain)]
    starts: dict[str, int] = {}
    for info in reading.writers_of(names).values():
        starts[info.run] = min(info.started_us, starts.get(info.run, info.started_us))
    offset = 0  # relative time at which the run in hand begins
    offsets = {names[-1]: 0}
    for at in range(len(chain) - 1, -1, -1):  # from the oldest down
        parent, step = chain[at].run, chain[at].step
        base = starts.get(parent, 0)
        to_parent = {name: base - starts.get(name, 0) + offsets[name] for name in names[at + 1 :]}
        moment = _moment(parent, step, chain[at + 1 :], to_parent)
        offset = offset if moment is None else moment - base
        offsets[names[at]] = offset
    base = starts.get(run, 0)
    return {name: base - starts.get(name, 0) + offsets[name] for name in names}


def _moment(run: str, step: int, chain: Sequence[Fork], its: Mapping[str, int]) -> int | None:
    """When a run came to this step, on its own clock, by the key that it logged most."""
    named = MetricSummary.objects.filter(run_id=run).exclude(key__startswith="system/").order_by("-count", "key", "rank")
    row = named.values_list("key", "rank").first()
    if row is None:
        return None
    columns = reading.read([run], [row[0]], [row[1]], hi_step=step, forks={run: chain}, shifts={run: its})[0]
    for column in columns:
        at = len(column.steps) - 1 if column.order is None else int(column.order[-1])
        return int(column.times[at])
    return None
