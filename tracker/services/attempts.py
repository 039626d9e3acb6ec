"""Attempts: which start of its run a new writer belongs to, and why that start came to be (docs/launches.md).

Journals may arrive in any order, so an attempt takes its place by when it started, not by when it was heard of. Call with the run's row
locked.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import F

from tracker.models import Attempt, Run, Writer

SKEW_US = 60_000_000
"""Clocks of two nodes may differ by so much, and the ranks of one start may call init so far apart."""
START_US = 15 * 60_000_000
"""A start's ranks come up within this time: as long as torchrun waits for its nodes."""


@dataclass
class _Start:
    """An attempt with its trainers."""

    attempt: Attempt
    trainers: list[Writer]

    @property
    def began(self) -> int | None:
        return min((writer.started_us for writer in self.trainers), default=None)

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
    if not found.launch.get("id") and told["launch"].get("id") and not told["launch"].get("parent"):
        found.launch = told["launch"]
        found.save(update_fields=["launch"])
    return found


def _starts(run: Run) -> list[_Start]:
    trainers: dict[int, list[Writer]] = {}
    for writer in run.writers.filter(kind=Writer.Kind.TRAINER).only("attempt_id", "rank", "started_us", "finish"):
        trainers.setdefault(writer.attempt_id, []).append(writer)
    return [_Start(attempt, trainers.get(attempt.id, [])) for attempt in run.attempts.order_by("number")]


def _count(launch: dict, name: str) -> int:
    found = launch.get(name)
    return found if isinstance(found, int) else 0


def _restarts(launch: dict) -> tuple[int, int]:
    return _count(launch, "restart_count"), _count(launch, "requeue")


def _same_start(attempt: Attempt, told: dict) -> bool:
    """Nothing that a launcher says tells the two apart. An elastic launch that wins a node starts its ranks anew without counting."""
    return _restarts(attempt.launch) == _restarts(told["launch"]) and attempt.world_size == max(told["world_size"], 1)


def _same_launch(attempt: Attempt, told: dict) -> bool:
    mine, its = told["launch"], attempt.launch
    if mine.get("id") in (None, "") or its.get("id") in (None, ""):
        return False
    return (str(mine.get("kind")), str(mine["id"])) == (str(its.get("kind")), str(its["id"])) and _same_start(attempt, told)


def _by_launch(starts: list[_Start], told: dict) -> Attempt | None:
    """By the launcher's own name. A name may be given twice: then a rank's second process is the second start."""
    for start in reversed(starts):
        if not _same_launch(start.attempt, told):
            continue
        mine = start.of(told["rank"])
        if all(writer.finish is None and abs(writer.started_us - told["started_us"]) < SKEW_US for writer in mine):
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
        if not low < start.attempt.number < high or not _same_start(start.attempt, told):
            continue
        if start.attempt.launch.get("id") and told["launch"].get("id") and start.trainers:
            continue  # two names: two starts
        if began is None:
            near.append((0, start.attempt))  # made by a node's writer, which came first
        elif at >= began - START_US and (at <= began + START_US or ended is None or at <= ended + SKEW_US):
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
