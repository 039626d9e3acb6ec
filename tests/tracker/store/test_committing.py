"""Group commit: signs of life ride along, PostgreSQL gets few statements with binary bodies, and nobody waits for somebody else's lock."""

from __future__ import annotations

import re
import threading
import time

import numpy as np
import pytest
from django.db import connection, connections, transaction
from django.utils import timezone

from tests.tracker.store import wire_writer as wire
from tracker.models import MetricSegment, Run, Writer
from tracker.services import committing, writers
from tracker.services.beats import RUN_EVERY_SECONDS, Beats, beats

ONLY_POSTGRES = pytest.mark.skipif("connection.vendor != 'postgresql'", reason="SQLite has one writer and no row locks")


def wait_until(is_so, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


def in_thread(work) -> threading.Thread:
    def run() -> None:
        try:
            work()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.django_db(transaction=True)
def test_the_signs_of_life_of_many_runs_are_one_write(room):
    """Noted one by one, they are in the database within moments, together: the rows of a write share its time."""
    runs = [room.run() for _ in range(40)]
    for run in runs:
        beats.note(run.id)
    found = Run.objects.filter(id__in=[run.id for run in runs])
    wait_until(lambda: not found.filter(heartbeat_at=None).exists())
    assert found.values("heartbeat_at").distinct().count() <= 5


@pytest.mark.django_db(transaction=True)
def test_a_heartbeat_is_answered_at_once_and_kept_within_moments(room):
    """``next`` of each writer comes from the database; the sign of life of run and writer, with its skew, follows by itself."""
    run = room.run(heartbeat_at=timezone.now() - timezone.timedelta(minutes=1))
    writer, other = room.writer(run), room.writer()
    room.simple(writer, 0, [1.0, 2.0])
    now_us = int(time.time() * 1e6)
    told = [{"id": writer.id, "alive": True}, {"id": other.id, "alive": True}, {"id": "no\0id"}]
    said = writers.heartbeat(user=room.user, token=room.token, doc={"run": run.id, "host": "h", "time_us": now_us - 10**9, "writers": told})
    assert said == {"stop": False, "state": "running", "next": {writer.id: 2}}
    wait_until(lambda: Writer.objects.get(id=writer.id).heartbeat_at is not None)
    assert abs(Writer.objects.get(id=writer.id).skew_us - 10**9) < 10**8
    assert Writer.objects.get(id=other.id).heartbeat_at is None
    wait_until(lambda: timezone.now() - Run.objects.get(id=run.id).heartbeat_at < timezone.timedelta(seconds=50))


def test_a_run_with_many_batches_is_marked_each_five_seconds_only(room):
    """However many batches come, its row is written once in RUN_EVERY_SECONDS."""
    run, mine = room.run(), Beats()
    mine.note(run.id)
    first = Run.objects.get(id=run.id).heartbeat_at
    assert first is not None
    mine.note(run.id)
    assert Run.objects.get(id=run.id).heartbeat_at == first
    mine._written[run.id] -= RUN_EVERY_SECONDS
    mine.note(run.id)
    assert Run.objects.get(id=run.id).heartbeat_at > first


@ONLY_POSTGRES
@pytest.mark.django_db(transaction=True)
def test_a_writer_that_is_locked_elsewhere_holds_up_nobody_else(room):
    """While another transaction holds one writer's row (and its run's), batches and heartbeats of all others are stored; its own follow."""
    stuck, free = room.writer(), [room.writer() for _ in range(3)]
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            Run.objects.select_for_update().get(id=stuck.run_id)
            Writer.objects.select_for_update().get(id=stuck.id)
            held.set()
            assert release.wait(120)

    holder = in_thread(hold)
    assert held.wait(60)
    beats.note(stuck.run_id, [stuck.id])
    late = in_thread(lambda: room.simple(stuck, 0, [1.0]))
    for n in range(20):
        for writer in free:
            assert room.simple(writer, n, [float(n)])["next"] == n + 1
    beats.note(free[0].run_id, [free[0].id])
    wait_until(lambda: Writer.objects.get(id=free[0].id).heartbeat_at is not None)
    assert late.is_alive()
    assert Writer.objects.values_list("next", flat=True).get(id=stuck.id) == 0
    release.set()
    holder.join(60)
    late.join(60)
    assert Writer.objects.get(id=stuck.id).next == 1
    wait_until(lambda: Writer.objects.get(id=stuck.id).heartbeat_at is not None)


@pytest.mark.django_db(transaction=True)
def test_two_web_processes_and_documents_at_once_never_lock_each_other_out(room):
    """Committers of two processes, batches with documents and a rank that tells of another's death: all is stored, once, in time."""
    run = room.run()
    ranks = [room.writer(run, rank=rank) for rank in range(4)]
    second = committing.Committer()
    problems: list[BaseException] = []

    def send(at: int) -> None:
        writer = ranks[at]
        try:
            for n in range(12):
                other = ranks[(at + 1) % 4]
                gone = {"type": "event", "name": "gone", "data": {"writer": other.id, "state": "crashed"}}
                docs = [{"n": n, "step": None, "time": n, "doc": gone}] if n % 3 == at % 3 else []
                body = wire.batch(run.id, writer.id, n, n, [wire.dense(n, ["loss"], "d", [(n, n, n, [1.0])])], docs)
                assert room.post(writer, body)["next"] == n + 1
                beats.note(run.id, [each.id for each in ranks])
        except BaseException as problem:
            problems.append(problem)

    threads = [in_thread(lambda at=at: send(at)) for at in range(4)]
    for thread in threads:
        thread.join(120)
    second.rest()
    assert problems == []
    assert [Writer.objects.get(id=writer.id).next for writer in ranks] == [12] * 4
    assert len(room.column(run.id, rank=3).values) == 12


@ONLY_POSTGRES
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("group", [1, 8])
def test_bodies_travel_as_bytes_both_ways(room, group, tmp_path):
    """Django's own cursors would send a body as hex, twice its size: what goes over the wire for a group is little more than its bodies."""
    body = bytes(np.random.default_rng(1).integers(0, 256, 200_000, "u1"))
    waiting = []
    for _ in range(group):
        writer = room.writer()
        whole = wire.simple(writer.run_id, writer.id, 0, np.frombuffer(body, "<f8"))
        room_access = committing.Waiting(writer.run, writer, _decoded(whole), whole, "")
        waiting.append(room_access)
    sent, received = tmp_path / "sent", tmp_path / "received"
    connection.ensure_connection()
    with sent.open("w") as file:
        connection.connection.pgconn.trace(file.fileno())
        committing.store(waiting)
        connection.connection.pgconn.untrace()
    assert [each.error for each in waiting] == [None] * group
    bodies = sum(len(each.body) for each in waiting)
    assert bodies < _bytes_of(sent, "F") < 1.05 * bodies + 20_000
    with received.open("w") as file:
        connection.connection.pgconn.trace(file.fileno())
        assert len(room.column(waiting[0].batch.run).values) == 25_000
        connection.connection.pgconn.untrace()
    assert len(waiting[0].body) < _bytes_of(received, "B") < 1.05 * len(waiting[0].body) + 20_000


def _decoded(body: bytes):
    from tracker.store import wire as decoder

    return decoder.decode(body)


def _bytes_of(trace, direction: str) -> int:
    """Bytes of the messages of libpq's trace: lines of time, direction (F to the server, B from it), length and message."""
    return sum(int(found[1]) for found in re.finditer(rf"\t{direction}\t(\d+)\t", trace.read_text(errors="replace")))


@ONLY_POSTGRES
def test_bodies_are_stored_as_they_came(db):
    """They are compressed already: no partition tries it again (STORAGE EXTERNAL)."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT attstorage, COUNT(*) FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid "
            "WHERE relname LIKE %s AND attname = 'body' AND relkind IN ('r', 'p') GROUP BY attstorage",
            ["tracker_metricsegment%"],
        )
        assert cursor.fetchall() == [("e", 17)]


def test_groups_of_every_kind_are_stored(room):
    """Points, none, holes alone, unknown and repeated ranges, in one group of any size: each gets its own outcome."""
    for size in (1, 2, 9):
        group = []
        for at in range(size):
            writer = room.writer()
            kind = at % 3
            holes = [(0, 2)] if kind == 1 else []
            frames = [wire.dense(0, [f"k{at}"], "d", [(n, -n, n, [float(n)]) for n in range(3)])] if kind == 0 else []
            body = wire.batch(writer.run_id, writer.id, 0, 2, frames, (), holes)
            group.append(committing.Waiting(writer.run, writer, _decoded(body), body, ""))
        committing.store(group)
        assert [(each.error, each.next) for each in group] == [(None, 3)] * size
        assert MetricSegment.objects.filter(run_id__in=[each.batch.run for each in group]).count() == sum(at % 3 == 0 for at in range(size))
