"""Whether a run's metric data is at rest, and a mark that changes whenever any of it does; from rows alone."""

from __future__ import annotations

import hashlib

from django.db.models import Count, Max, Sum

from tracker.domain.lifecycle import RunState
from tracker.models import MetricBlock, Run, Writer
from tracker.services.compaction import SMALL_BYTES


def is_sealed(run: Run) -> bool:
    """Over, every writer has said its last word, and nothing waits for a block but what stays segments for good."""
    if not RunState(run.state).is_terminal:
        return False
    open_ones = Writer.objects.filter(run_id=run.id).values_list("finish", "hot_bytes", "summarised", "next")
    return all(finish is not None and hot < SMALL_BYTES and done >= coming for finish, hot, done, coming in open_ones)


def sealed_mark(run: Run) -> str:
    writers = sorted(Writer.objects.filter(run_id=run.id).values_list("id", "next", "upto", "attempt__rewound_to"))
    blocks = MetricBlock.objects.filter(run_id=run.id).aggregate(Count("id"), Max("id"), Sum("points"))
    return hashlib.blake2b(repr((writers, sorted(blocks.items()))).encode(), digest_size=16).hexdigest()
