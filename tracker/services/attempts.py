"""Attempts: which start of its run a new writer belongs to, and why that start came to be (docs/launches.md).

Journals may arrive long after, and one node's wholly before another's, so an attempt takes its place by when it started, not by when it was
heard of. (One sender tells of the starts it saw in their order.) Call with the run's row locked.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import F

from tracker.models import Attempt, Run, Writer

SKEW_US = 60_000_000
"""Clocks of two nodes may differ by so much, and the ranks of one start may call init so far apart."""
START_US = 15 * 60_000_000
"""A start's ranks come up within this time: as long as torchrun waits for its nodes."""
TOGETHER_US = 1_000_000


@dataclass
class _Start:
    """An attempt with its trainers."""

    attempt: Attempt
    trainers: list[Writer]
    others: list[Writer]

    @property
    def began(self) -> int | None:
        """While no trainer of it is here: when its node's writer began, which is soon after."""
        return min((writer.started_us for writer in self.trainers or self.others), default=None)

    @property
    def ended(self) -> int | None:
        """None while one of them has not said so."""
        ends = [writer.finish.get("time_us") if writer.finish else None for writer in self.trainers]
        return None if not ends or None in ends else max(ends)

    def of(self, rank: int) -> list[Writer]:
        return [writer for writer in self.trainers if writer.rank == rank]


def attempt_for(run: Run, told: dict) -> Attempt:
    """The attempt of the writer that ``told`` describes: one that is there, or a new one in its place."""
    beside = told["info"].get("parent") or told["info"].get("of")
    if isinstance(beside, str) and (known := run.writers.filter(id=beside).select_related("attempt").first()):
        return known.attempt  # a forked child stands beside its parent, a node's writer beside the trainer it was opened for
    starts = _starts(run)
    if told["kind"] != Writer.Kind.TRAINER:
        named = [start for start in starts if _same_launch(start.attempt, told)]
        return (named or starts)[-1].attempt if starts else _new(run, told, 1)
    found = _by_launch(starts, told) or _by_time(starts, told)
    if found is None:
        return _new(run, told, _place(starts, told))
    _learn(run, found, told["launch"])
    return found


def _learn(run: Run, attempt: Attempt, launch: dict) -> None:
    """What this process knows of the start that those before it did not."""
    known = attempt.launch
    if (launch.get("id") and not known.get("id")) or _count(launch, "restart_count") > _count(known, "restart_count"):
        attempt.launch = {**launch, "restart_count": max(_count(launch, "restart_count"), _count(known, "restart_count"))}
        attempt.save(update_fields=["launch"])
        give_reasons(run)
        attempt.refresh_from_db()


def _starts(run: Run) -> list[_Start]:
    starts = {attempt.id: _Start(attempt, [], []) for attempt in run.attempts.order_by("number")}
    for writer in run.writers.only("attempt_id", "kind", "rank", "started_us", "finish"):
        start = starts[writer.attempt_id]
        (start.trainers if writer.kind == Writer.Kind.TRAINER else start.others).append(writer)
    return list(starts.values())


def _count(launch: dict, name: str) -> int:
    found = launch.get(name)
    return found if isinstance(found, int) else 0


def _per_agent(launch: dict) -> bool:
    """On several nodes each elastic agent counts for itself: one that restarts its ranks because another had to does not count it."""
    return launch.get("kind") in ("torchrun", "accelerate") and bool(launch.get("local_world_size"))


def _may_be_one(attempt: Attempt, told: dict) -> bool:
    """Nothing that a launcher says tells the two apart. (An elastic launch that won or lost a node starts anew without counting it.)"""
    mine, its = told["launch"], attempt.launch
    return (
        attempt.world_size == max(told["world_size"], 1)
        and _count(mine, "requeue") == _count(its, "requeue")
        and (_per_agent(mine) or _count(mine, "restart_count") == _count(its, "restart_count"))
    )


def _names(attempt: Attempt, told: dict) -> tuple[tuple | None, tuple | None]:
    mine, its = told["launch"], attempt.launch
    return tuple((str(one.get("kind")), str(one["id"])) if one.get("id") not in (None, "") else None for one in (mine, its))


def _same_launch(attempt: Attempt, told: dict) -> bool:
    mine, its = _names(attempt, told)
    return mine is not None and mine == its and _may_be_one(attempt, told)


def _by_launch(starts: list[_Start], told: dict) -> Attempt | None:
    """By the launcher's own name. A name may be given twice: then a rank's second process is the second start."""
    for start in reversed(starts) if not _per_agent(told["launch"]) else ():
        mine = start.of(told["rank"])
        # Two processes that claim one rank at the same time are one start, and show as such.
        if _same_launch(start.attempt, told) and all(
            writer.finish is None and abs(writer.started_us - told["started_us"]) < TOGETHER_US for writer in mine
        ):
            return start.attempt
    return None


def _by_time(starts: list[_Start], told: dict) -> Attempt | None:
    """Where no name says it: the start nearest in time that lacks this rank, between those that have it."""
    at, rank = told["started_us"], told["rank"]
    low = max((s.attempt.number for s in starts if any(w.started_us <= at for w in s.of(rank))), default=0)
    high = min((s.attempt.number for s in starts if any(w.started_us > at for w in s.of(rank))), default=len(starts) + 1)
    near = []
    for start in starts:
        began, ended = start.began, start.ended
        mine, its = _names(start.attempt, told)
        if not low < start.attempt.number < high:
            continue
        if began is not None and (
            _may_be_one(start.attempt, told)
            and (mine is None or its is None or (mine == its and _per_agent(told["launch"])))
            and at >= began - START_US
            and (at <= began + START_US or ended is None or at <= ended + SKEW_US)
        ):
            near.append((abs(at - began), start.attempt))
    return min(near, key=lambda entry: entry[0])[1] if near else None


def _place(starts: list[_Start], told: dict) -> int:
    at = told["started_us"]
    return max((s.attempt.number for s in starts if s.began is None or s.began <= at), default=0) + 1


def _new(run: Run, told: dict, number: int) -> Attempt:
    # Highest first, so that no two share a number on the way.
    for attempt in run.attempts.filter(number__gte=number).order_by("-number"):
        Attempt.objects.filter(pk=attempt.pk).update(number=F("number") + 1)
    made = Attempt.objects.create(run=run, number=number, world_size=max(told["world_size"], 1), launch=told["launch"])
    give_reasons(run)
    return Attempt.objects.get(pk=made.pk)


def give_reasons(run: Run) -> None:
    """Why each attempt came to be; after a new one took its place, and when a start's end is known."""
    before: _Start | None = None
    for start in _starts(run):
        reason = _reason(start.attempt, before)
        if start.attempt.reason != reason:
            Attempt.objects.filter(pk=start.attempt.pk).update(reason=reason)
        before = start


def _reason(attempt: Attempt, before: _Start | None) -> str:
    if before is None:
        return "start"
    mine, its = attempt.launch, before.attempt.launch
    if _count(mine, "requeue") > _count(its, "requeue"):
        return "requeue"
    named = mine.get("id") and mine.get("id") == its.get("id")
    if _count(mine, "restart_count") or (named and attempt.world_size != before.attempt.world_size):
        return "restart"
    if any((writer.finish or {}).get("state") == "preempted" for writer in before.trainers):
        return "preempted"
    return "resume"
