"""What people (or a stalled rank) ask of the senders of a run, handed out with their next heartbeat: once to each host."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db import transaction
from django.utils import timezone

from tracker.domain import storable
from tracker.domain.lifecycle import RunState
from tracker.models import Event, Run, Writer

STACKS = "stacks"
VALID = timedelta(minutes=10)
"""A sender that comes later is not asked any more: what it would find is not what was meant."""
MOST_SKEW_US = 2**62


def ask(run: Run, what: str, by: str, given: list[str] | None = None) -> None:
    """Note it on ``run``, whose row the caller has locked and saves. Asking again starts anew; answers are the events after ``after``."""
    after = Event.objects.filter(run=run).order_by("-id").values_list("id", flat=True).first() or 0
    run.asks = {**run.asks, what: {"at": timezone.now().isoformat(), "by": by, "given": given or [], "after": after}}


def hand_out(run: Run, doc: dict) -> list[str]:
    """What the sender that sent this heartbeat is asked for; noted, so that it hears it once."""
    if not run.asks or RunState(run.state).is_terminal:
        return []
    host, can = storable.text(doc.get("host") or "", 250), doc.get("can")
    if not (found := _able(_open(run, host), can)):
        return []
    with transaction.atomic():
        run = Run.objects.select_for_update().get(pk=run.pk)
        found = _able(_open(run, host), can)
        for what in found:
            run.asks = {**run.asks, what: {**run.asks[what], "given": [*run.asks[what]["given"], host]}}
        if found:
            run.save(update_fields=["asks"])
    return found


def _able(asked: list[str], can) -> list[str]:
    """A sync beside the run's own sender says that it can do nothing; it must not take the question away."""
    return [what for what in asked if not isinstance(can, list) or what in can]


def _open(run: Run, host: str) -> list[str]:
    now = timezone.now()
    return [what for what, one in run.asks.items() if host not in one["given"] and now - datetime.fromisoformat(one["at"]) < VALID]


def spread_stall(run: Run, writer: Writer, data: dict) -> bool:
    """A sender saw its ranks stand still and dumped their stacks: the other hosts are asked for theirs. True if that is new.

    The caller has locked the run's row and saves ``asks``.
    """
    if not str(data.get("why") or "").startswith("stalled"):
        return False
    before = run.asks.get(STACKS)
    if before is not None and timezone.now() - datetime.fromisoformat(before["at"]) < timedelta(minutes=1):
        return False  # each host sees the same stall
    ask(run, STACKS, by="stall", given=[writer.host])
    return True


def skew(doc: dict) -> int | None:
    """Microseconds that the server's clock is ahead of the sender's, as its heartbeat tells; what it took to get here is within."""
    told = doc.get("time_us")
    if not isinstance(told, int) or isinstance(told, bool) or abs(told) > MOST_SKEW_US:
        return None
    return int(timezone.now().timestamp() * 1e6) - told
