"""Which state a run is in: from what its writers said, and from their silence."""

from __future__ import annotations

from datetime import datetime, timedelta
from datetime import timezone as zones

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Count, Max, Q
from django.utils import timezone

from tracker.domain import lifecycle
from tracker.domain.lifecycle import RunState
from tracker.models import Run, Writer
from tracker.store import rows

HEARTBEAT_EVERY = timedelta(seconds=5)
"""A run's heartbeat is written at most so often, however many batches come."""
CLAIM = "rank_claimed_twice"
CLAIM_AFTER = timedelta(seconds=15)


def moment(time_us: int | None) -> datetime | None:
    """Microseconds UTC as a datetime; a clock that is out of all bounds gives None."""
    if time_us is None:
        return None
    try:
        return datetime.fromtimestamp(time_us / 1e6, tz=zones.utc)
    except (OverflowError, ValueError, OSError):
        return None


def settle(run: Run) -> None:
    """Set the state from the trainers of the latest attempt: over when each of them has said how it ended. Saves what changed.

    The caller holds the run's row (in a transaction that locked it).
    """
    trainers = _deciding(run)
    if not trainers:
        return
    ends = [writer.finish for writer in trainers]
    if any(end is None for end in ends):
        if run.state != RunState.RUNNING.value:
            _start(run)
        return
    state = lifecycle.outcome([str(end.get("state")) for end in ends])
    worst = next((end for end in ends if end.get("state") == state.value), ends[0])
    times = [end["time_us"] for end in ends if end.get("time_us") is not None]
    run.state = state.value
    run.finished_at = moment(max(times)) if times else timezone.now()
    run.finished_at = run.finished_at or timezone.now()
    run.exit_code = _small(worst.get("exit_code"))
    run.signal = _small(worst.get("signal"))
    run.error = worst.get("error")
    run.save(update_fields=["state", "finished_at", "exit_code", "signal", "error"])


def _deciding(run: Run) -> list[Writer]:
    latest = run.writers.filter(kind=Writer.Kind.TRAINER).aggregate(latest=Max("attempt__number"))["latest"]
    return list(run.writers.filter(kind=Writer.Kind.TRAINER, attempt__number=latest).order_by("rank", "started_us"))


def _start(run: Run) -> None:
    run.state = RunState.RUNNING.value
    run.finished_at = run.exit_code = run.signal = run.error = None
    run.heartbeat_at = timezone.now()
    run.save(update_fields=["state", "finished_at", "exit_code", "signal", "error", "heartbeat_at"])


def _small(found) -> int | None:
    return found if isinstance(found, int) and not isinstance(found, bool) and abs(found) < 2**31 else None


def heard(run_id: str) -> None:
    """The run gave a sign of life: one small write, at most each five seconds."""
    now = timezone.now()
    Run.objects.filter(Q(heartbeat_at=None) | Q(heartbeat_at__lt=now - HEARTBEAT_EVERY), id=run_id).update(heartbeat_at=now)


def is_alive(run: Run) -> Run:
    """A trainer of ``run`` is said to live: a run that silence had made crashed goes on running. The run as it is now."""
    if run.state != RunState.CRASHED.value and not _on_two_hosts(run):
        return run  # nearly always: nothing to write, nothing to lock
    with transaction.atomic():
        run = Run.objects.select_for_update().get(pk=run.pk)
        if run.state == RunState.CRASHED.value:
            settle(run)
        _see_claims(run)
    return run


def _on_two_hosts(run: Run) -> bool:
    since = connection.ops.adapt_datetimefield_value(timezone.now() - CLAIM_AFTER)
    with rows.cursor() as cursor:  # asked at each heartbeat: the ORM would take most of its time
        cursor.execute(
            "SELECT 1 FROM tracker_writer WHERE run_id = %s AND kind = 'trainer' AND finish IS NULL AND heartbeat_at > %s "
            "GROUP BY rank HAVING COUNT(DISTINCT host) > 1 LIMIT 1",
            [run.id, since],
        )
        return cursor.fetchone() is not None


def _see_claims(run: Run) -> None:
    """One rank on two hosts at once: nothing is lost, the attempt rule decides which value counts, and the run's page says it once.

    Two on one host are seen by their sender. The earlier one must have been heard of well after the later one came: a restart
    elsewhere comes seconds after the last word of the node that died.
    """
    living = run.writers.filter(kind=Writer.Kind.TRAINER, finish__isnull=True, heartbeat_at__gt=timezone.now() - CLAIM_AFTER)
    for rank in living.values("rank").annotate(hosts=Count("host", distinct=True)).filter(hosts__gt=1).values_list("rank", flat=True):
        writers = list(living.filter(rank=rank).order_by("opened_at"))
        latest = writers[-1]
        both = [writer for writer in writers if writer.heartbeat_at > latest.opened_at + CLAIM_AFTER]
        if len({writer.host for writer in both}) < 2:
            continue
        data = {"rank": rank, "writers": [writer.id for writer in both], "hosts": [writer.host for writer in both]}
        if not run.events.filter(name=CLAIM, data__rank=rank, data__writers=data["writers"]).exists():
            run.events.create(name=CLAIM, time_us=int(timezone.now().timestamp() * 1e6), data=data)


def mark_silent() -> int:
    """Runs that said nothing for ENCORE_SILENT_SECONDS are crashed. Returns how many; doing it twice at once is harmless.

    A sender speaks each 10 s and this is asked each 10 s (tracker/celery.py), so a run whose node vanished is crashed at most
    ENCORE_SILENT_SECONDS + 10 s and the queue's own delay after its last sign of life: below the promised 90 s. Any later sign of
    life of a trainer makes it run again (`is_alive`).
    """
    now = timezone.now()
    limit = now - timedelta(seconds=settings.ENCORE_SILENT_SECONDS)
    silent = Q(heartbeat_at__lt=limit) | Q(heartbeat_at=None, created_at__lt=limit)
    # Counted once more in the UPDATE itself, so that a heartbeat in between wins.
    marked = 0
    for run in Run.objects.filter(silent, state=RunState.RUNNING.value).only("id", "heartbeat_at")[:500]:
        marked += Run.objects.filter(silent, id=run.id, state=RunState.RUNNING.value).update(
            state=RunState.CRASHED.value, finished_at=run.heartbeat_at or now
        )
    return marked
