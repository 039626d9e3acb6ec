"""A process that stores batches is killed at any moment, dozens of times: what it acknowledged is there, each record once."""

from __future__ import annotations

import os
import random
import select
import signal
import time

import pytest
from django.db import connections

from tracker.domain.errors import RangeConflict
from tracker.models import MetricSummary, Writer
from tracker.services import compaction, ingest, summaries

KILLS = int(os.environ.get("ENCORE_TEST_KILLS", "40"))


def store_and_compact(room, writer, pipe: int, seed: int) -> None:
    """In the child: append, summarise and compact without end, telling each acknowledged position."""
    ingest.forget()
    draw, next_ = random.Random(seed), 0
    while True:
        try:
            next_ = room.simple(writer, next_, [float(n) for n in range(next_, next_ + draw.randrange(1, 50))])["next"]
        except RangeConflict as told:
            next_ = told.fields["next"]
        os.write(pipe, next_.to_bytes(8, "little"))
        if draw.random() < 0.3:
            summaries.summarise_due()
        if draw.random() < 0.3:
            compaction.compact_run(writer.run_id, force=True)


@pytest.mark.django_db(transaction=True)
def test_killed_between_commits_nothing_is_lost_or_doubled(room):
    """Ingest, summaries and compaction are killed by SIGKILL at random moments; every record and every count is right in the end."""
    writer = room.writer()
    acknowledged = 0
    for seed in range(KILLS):
        connections.close_all()  # no database handle may be shared with a child
        source, sink = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(source)
                store_and_compact(room, writer, sink, seed)
            finally:
                os._exit(1)
        os.close(sink)
        until = time.monotonic() + 0.02 + random.Random(seed).random() * 0.1
        first = True
        while first or time.monotonic() < until:  # at least one batch each time
            ready, _, _ = select.select([source], [], [], 60 if first else max(until - time.monotonic(), 0))
            if not ready:
                break
            if not (told := os.read(source, 8)):
                break
            acknowledged, first = int.from_bytes(told, "little"), False
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        while told := os.read(source, 8):
            acknowledged = int.from_bytes(told, "little")
        os.close(source)
    column = room.column(writer.run_id)
    assert len(column.records) >= acknowledged
    assert column.records.tolist() == list(range(len(column.records)))
    assert column.values.tolist() == [float(n) for n in range(len(column.records))]
    summaries.summarise_due()
    assert MetricSummary.objects.get(run=writer.run, key="loss").count == len(column.records)
    assert Writer.objects.get(id=writer.id).next == len(column.records)
    compaction.compact_run(writer.run_id, force=True)
    assert room.column(writer.run_id).records.tolist() == column.records.tolist()
