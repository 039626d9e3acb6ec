"""The process dies before and after every step of compaction, merging and sweeping, one step at a time: each time the same can be read."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import psycopg
import pytest
from django.db import OperationalError, connection, connections
from django.utils import timezone

from tracker.models import MetricBlock, MetricTrash, Writer
from tracker.services import compaction, ingest, merging
from tracker.store import reading, reserved, rows
from tracker.store.blobs import blob_store

BATCHES, ROWS = 2, 20
STRIDE = 1 if os.environ.get("ENCORE_TORTURE") == "1" else 3
"""A step is before or after something, so that three falls on both."""


class Steps:
    """Counts the steps of this process, which is about to die: statements, commits, syncs, renames, removals, calls of the store."""

    def __init__(self, last: int) -> None:
        self.left = last

    def step(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def around(self, owner: object, name: str) -> None:
        inner = getattr(owner, name)

        def counted(*args, **kwargs):
            self.step()
            found = inner(*args, **kwargs)
            self.step()
            return found

        setattr(owner, name, counted)

    def install(self) -> None:
        connection.ensure_connection()
        self.around(connection, "_commit")
        if rows.on_postgres():
            self.around(psycopg.Cursor, "execute")
        else:
            self.around(rows._sqlite_cursor(), "execute")
            connection.execute_wrappers.append(lambda execute, *args: (self.step(), execute(*args))[1])
        for name in ("replace", "fsync", "unlink", "rmdir"):
            self.around(os, name)
        for name in ("put", "delete"):
            self.around(type(blob_store()), name)


def dies_at(step: int, act: Callable[[], object]) -> bool:
    """``act`` in a child that is killed at its ``step``-th step; False if it was done before."""
    ingest.forget()  # ends the committer: a child forked while its connection writes would find the database locked for good
    connections.close_all()  # no handle may be shared with a child
    child = os.fork()
    if child == 0:
        code = 1
        try:
            Steps(step).install()
            act()
            code = 0
        except BaseException:
            traceback.print_exc()  # pytest shows what was written; the child itself cannot tell it
        finally:
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def append(room, writer: Writer, first: int) -> int:
    """Two batches, of two key lists by turns; the next record."""
    for number in range(BATCHES):
        values = [float(n) for n in range(first, first + ROWS)]
        first = room.simple(writer, first, values, key="loss" if number % 2 else "rate")["next"]
    return first


def assert_whole(room, writer: Writer, end: int) -> None:
    """What is read is what was appended; rows, ranges and objects agree."""
    reading.forget()
    found = [room.column(writer.run_id, key) for key in ("loss", "rate")]
    records = np.sort(np.concatenate([column.records for column in found]))
    assert records.tolist() == list(range(end))
    for column in found:
        assert column.values.tolist() == column.records.tolist()
    objects = {key for key, _, _ in blob_store().list("blocks")}
    ranges = list(MetricBlock.objects.filter(writer_id=writer.id).order_by("first").values_list("first", "last", "object_key"))
    assert all(key in objects for *_, key in ranges)
    assert [first for first, *_ in ranges][1:] == [last + 1 for _, last, _ in ranges][:-1]


def sweep_all() -> None:
    MetricTrash.objects.update(delete_after=timezone.now() - timedelta(days=1))
    compaction.sweep_trash()
    compaction.sweep_orphans(older_than=timedelta(days=-1))


def assert_tidy() -> None:
    assert {key for key, _, _ in blob_store().list("blocks")} == set(MetricBlock.objects.values_list("object_key", flat=True))
    assert not MetricTrash.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_compaction_killed_at_each_of_its_steps_changes_nothing_that_is_read(room):
    """Killed at any step, then run to its end: read the same in between and after; a sweep then leaves the blocks' objects and no other."""
    step = end = 0
    writer = room.writer()
    is_killed = True
    while is_killed:
        end = append(room, writer, end)
        is_killed = dies_at(step, lambda: compaction.compact_run(writer.run_id, force=True))
        assert_whole(room, writer, end)
        compaction.compact_run(writer.run_id, force=True)
        assert_whole(room, writer, end)
        step += STRIDE
    assert step > 15  # it has that many
    sweep_all()
    assert_whole(room, writer, end)
    assert_tidy()


@pytest.mark.django_db(transaction=True)
def test_merging_killed_at_each_of_its_steps_changes_nothing_that_is_read(room):
    """Two small blocks become one, the process killed at any step of it: read the same in between and after, with and without the
    replaced objects, and in the end each object has its row."""
    step, is_killed = 0, True
    while is_killed:
        writer, end = room.writer(), 0
        for _ in range(2):
            end = append(room, writer, end)
            compaction.compact_run(writer.run_id, force=True)
        is_killed = dies_at(step, lambda writer=writer: merging.finish_writer(writer.run_id, writer.id))
        assert_whole(room, writer, end)
        merging.finish_writer(writer.run_id, writer.id)
        assert_whole(room, writer, end)
        assert MetricBlock.objects.filter(run_id=writer.run_id).count() == 1
        sweep_all()
        assert_whole(room, writer, end)
        assert_tidy()
        step += STRIDE
    assert step > 15


@pytest.mark.parametrize("what", ["compaction", "merging"])
@pytest.mark.django_db(transaction=True)
def test_a_commit_whose_answer_is_lost_keeps_its_object(room, monkeypatch, what: str):
    """The database commits and its word never comes (its connection breaks in that moment): whoever asked must not take back the
    object, whose row may be there."""
    writer = room.writer()
    end = append(room, writer, 0)
    if what == "merging":
        compaction.compact_run(writer.run_id, force=True)
        end = append(room, writer, end)
        compaction.compact_run(writer.run_id, force=True)
    commit, put = connection._commit, reserved.put

    def commit_and_break():
        commit()
        connection._commit = commit
        raise OperationalError("server closed the connection unexpectedly")

    def put_and_then(*args):
        key = put(*args)
        connection._commit = commit_and_break  # the next commit is the one that brings the row
        return key

    monkeypatch.setattr(reserved, "put", put_and_then)
    with contextlib.suppress(OperationalError):
        merging.finish_writer(writer.run_id, writer.id) if what == "merging" else compaction.compact_run(writer.run_id, force=True)
    connection._commit = commit
    monkeypatch.undo()
    assert MetricBlock.objects.filter(run_id=writer.run_id).count() == 1
    assert_whole(room, writer, end)
    sweep_all()
    assert_whole(room, writer, end)
    assert_tidy()


@pytest.mark.django_db(transaction=True)
def test_sweeping_killed_at_each_of_its_steps_takes_what_nobody_reads_and_nothing_else(room):
    """Blocks of a discarded run, an object whose compaction died, and blocks that are read: only the last are there in the end."""
    kept = room.writer()
    end = append(room, kept, 0)
    compaction.compact_run(kept.run_id, force=True)
    step, is_killed = 0, True
    while is_killed:
        gone = room.writer()
        append(room, gone, 0)
        compaction.compact_run(gone.run_id, force=True)
        compaction.discard_blocks(gone.run_id)
        blob_store().put("blocks/orphan/00/00.block", b"of a compaction that died")
        is_killed = dies_at(step, sweep_all)
        assert_whole(room, kept, end)
        sweep_all()
        assert_whole(room, kept, end)
        assert_tidy()
        step += STRIDE
    assert step > 5


@pytest.mark.parametrize("away", ["clock", "suspended"])
@pytest.mark.django_db(transaction=True)
def test_an_object_that_is_swept_before_its_commit_is_not_committed(room, monkeypatch, away: str):
    """Between the object and its row the machine sleeps for days, or its clock jumps: a sweep in that moment takes the object for an
    orphan. The move is then given up, the segments stay, and the next compaction does it."""
    writer = room.writer()
    end = append(room, writer, 0)
    store = type(blob_store())
    put, now = store.put, timezone.now

    def put_and_wait(self, key, data):
        size = put(self, key, data)
        monkeypatch.setattr(store, "put", put)
        monkeypatch.setattr(timezone, "now", lambda: now() + timedelta(days=400))
        compaction.sweep_trash()
        compaction.sweep_orphans()
        if away == "clock":
            monkeypatch.setattr(timezone, "now", now)
        return size

    monkeypatch.setattr(store, "put", put_and_wait)
    compaction.compact_run(writer.run_id, force=True)
    assert_whole(room, writer, end)
    compaction.compact_run(writer.run_id, force=True)
    assert_whole(room, writer, end)
    assert MetricBlock.objects.filter(run_id=writer.run_id).exists()


@pytest.mark.django_db(transaction=True)
def test_a_lease_by_a_clock_that_was_a_year_ahead_binds_nobody(room):
    """A worker with such a clock took the writer and died: others, whose clocks are right, compact it all the same."""
    writer = room.writer()
    first = 0
    for _ in range(65):
        first = room.simple(writer, first, [float(n) for n in range(first, first + 100)])["next"]
    Writer.objects.filter(id=writer.id).update(compact_after=timezone.now() + timedelta(seconds=60))
    assert compaction.run_due() == 0  # that is a worker at its work
    Writer.objects.filter(id=writer.id).update(compact_after=timezone.now() + timedelta(days=365))
    assert compaction.run_due() == 1
    assert room.column(writer.run_id).records.tolist() == list(range(first))
