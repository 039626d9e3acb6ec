"""Stack dumps: asked for by people, sent by the ranks' senders as events, told by groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import transaction
from django.utils import timezone

from tracker.domain import stacks
from tracker.domain.errors import Conflict
from tracker.domain.lifecycle import RunState
from tracker.models import Event, Run, User, Writer
from tracker.services import asks, liveness, runs

ROUND_US = 120 * 10**6
"""Dumps that belong together come within two minutes: heartbeats are ten seconds apart."""
MOST_DUMPS = 4096


@dataclass
class Dump:
    id: int
    rank: int
    host: str
    time_us: int
    why: str
    text: str
    problem: str
    state: str
    waits_in: str
    flight_recorder: str


@dataclass
class Dumps:
    """The newest dump of each rank: of those that were asked for last, else of the newest that came by themselves."""

    dumps: list[Dump] = field(default_factory=list)
    groups: list[stacks.Group] = field(default_factory=list)
    sentence: str = ""
    newest_at: datetime | None = None
    """By the clock of the host that wrote it."""
    asked_at: datetime | None = None
    asked_by: str = ""
    waiting: bool = False
    """Asked for, and there are ranks that have not answered."""


def request(*, user: User, run: Run) -> Run:
    """Ask every rank of ``run`` for its stacks. Raises Forbidden, Conflict for a run that is over. Twice is harmless."""
    runs.require_editor(user=user, run=run)
    with transaction.atomic():
        locked = Run.objects.select_for_update().get(pk=run.pk)
        if RunState(locked.state).is_terminal:
            raise Conflict("This run is over: there is no process to look into.", code="run_over")
        asks.ask(locked, asks.STACKS, by=user.username)
        locked.save(update_fields=["asks"])
    run.asks = locked.asks
    return run


def latest(run: Run) -> Dumps:
    found = Dumps()
    rows = Event.objects.filter(run=run, name="stacks")
    asked = run.asks.get(asks.STACKS)
    answers = rows.filter(id__gt=asked["after"]) if asked is not None else rows.none()
    if not answers.exists():
        newest = rows.order_by("-id").values_list("time_us", flat=True).first()
        chosen = rows.filter(time_us__gt=newest - ROUND_US) if newest is not None else rows.none()
    else:
        chosen = answers
    by_rank = {dump.rank: dump for dump in map(_dump, chosen.select_related("writer").order_by("id")[:MOST_DUMPS])}
    found.dumps = [by_rank[rank] for rank in sorted(by_rank)]
    found.groups = stacks.grouped((dump.rank, dump.text) for dump in found.dumps if dump.text)
    found.sentence = stacks.sentence(found.groups)
    found.newest_at = liveness.moment(max((dump.time_us for dump in found.dumps), default=None))
    if asked is not None:
        found.asked_at, found.asked_by = datetime.fromisoformat(asked["at"]), str(asked["by"])
        answered = {dump.rank for dump in found.dumps if dump.id > asked["after"]}
        alive = set(run.writers.filter(kind=Writer.Kind.TRAINER, finish__isnull=True).values_list("rank", flat=True))
        is_fresh = timezone.now() - found.asked_at < asks.VALID
        found.waiting = is_fresh and not RunState(run.state).is_terminal and bool(alive - answered)
    return found


def _dump(row: Event) -> Dump:
    data: dict[str, Any] = row.data
    rank = data.get("rank")
    return Dump(
        id=row.id,
        rank=rank if isinstance(rank, int) and not isinstance(rank, bool) else row.writer.rank if row.writer else 0,
        host=row.writer.host if row.writer else "",
        time_us=row.time_us,
        why=str(data.get("why") or ""),
        text=str(data.get("text") or ""),
        problem=str(data.get("problem") or ""),
        state=str(data.get("state") or ""),
        waits_in=str(data.get("waits_in") or ""),
        flight_recorder=str(data.get("flight_recorder") or ""),
    )
