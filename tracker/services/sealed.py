"""Whether a run's metric data is final, and a mark of what it is: from rows alone, so that answers and exports can be kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import timedelta

from django.db.models import Max, Min, Sum
from django.utils import timezone

from tracker.domain.lifecycle import RunState
from tracker.models import Attempt, MetricBlock, MetricSegment, Run, Writer
from tracker.services import lineage
from tracker.services.compaction import SMALL_BYTES

SILENT = timedelta(hours=24)
"""A writer that was killed says no end: it counts as finished when its run, which is over, was silent so long."""


def is_sealed(run: Run) -> bool:
    """The run is over, its writers have finished, and nothing waits for compaction. A sender may still come back: see ``sealed_mark``."""
    if not RunState(run.state).is_terminal:
        return False
    writers = run.writers.all()
    if writers.filter(hot_bytes__gte=SMALL_BYTES).exists():
        return False
    silent_since = run.heartbeat_at or run.finished_at or run.created_at
    return silent_since < timezone.now() - SILENT or not writers.filter(finish__isnull=True).exists()


def sealed_mark(run: Run) -> str:
    """32 hex digits that change with anything that changes the points read of the run, its ancestors' included, and not with compaction.

    What is read of it at one moment is of one mark only if the mark is the same before and after.
    """
    within = Run.objects.filter(deleted_at=None)
    forks = lineage.forks_of([(run.id, run.fork_run, run.fork_step)], within)
    told = [_facts(run.id), [[fork.run, fork.step, _facts(fork.run)] for fork in forks.get(run.id, ())], run.is_stitched]
    return hashlib.blake2b(json.dumps(told, separators=(",", ":")).encode(), digest_size=16).hexdigest()


def _facts(run_id: str) -> list:
    """What of a run decides over its points. Compaction and merging move points and change none of these sums."""
    writers = Writer.objects.filter(run_id=run_id).order_by("id")
    attempts = Attempt.objects.filter(run_id=run_id).order_by("number").values_list("id", "number", "rewound_to")
    in_blocks = _sums(MetricBlock.objects.filter(run_id=run_id))
    hot = _sums(MetricSegment.objects.filter(run_id=run_id))
    fields = ("id", "next", "attempt_id", "rank", "kind", "started_us", "anchor_wall_us", "last_step")
    return [
        [[*row, _together(in_blocks.get(row[0]), hot.get(row[0]))] for row in writers.values_list(*fields)],
        [list(row) for row in attempts],
    ]


def _sums(found) -> dict[str, tuple]:
    """By writer: points, lowest and highest step."""
    each = found.order_by().values_list("writer_id").annotate(Sum("points"), Min("lo_step"), Max("hi_step"))
    return {writer: tuple(rest) for writer, *rest in each}


def _together(*parts: tuple | None) -> list:
    there = [part for part in parts if part is not None]
    return [sum(part[0] for part in there), _best(min, (part[1] for part in there)), _best(max, (part[2] for part in there))]


def _best(which, values: Iterable[int | None]) -> int | None:
    return which((value for value in values if value is not None), default=None)
