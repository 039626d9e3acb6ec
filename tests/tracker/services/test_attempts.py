"""Which attempt a writer belongs to, and why the attempt came to be: the evidence that docs/launches.md lists."""

from __future__ import annotations

import itertools

import pytest

from tests.tracker.helpers import writer_json

T = 1_700_000_000_000_000
MINUTE = 60_000_000


@pytest.fixture
def begin(open_writer):
    """Opens a trainer's writer `minutes` after T; its end may follow."""

    def begun(run=None, rank=0, world=2, minutes=0.0, ended=None, **launch):
        about = {"kind": "torchrun", "id": None, "restart_count": 0, **launch}
        found, writer = open_writer(run and run.id, rank=rank, world_size=world, started_us=int(T + minutes * MINUTE), launch=about)
        if ended:
            writer.finish = {"state": ended, "time_us": int(T + (minutes + 1) * MINUTE)}
            writer.save()
        return found, writer

    return begun


def rows(run):
    found = run.attempts.order_by("number")
    return [(each.number, each.reason, each.world_size, each.writers.filter(kind="trainer").count()) for each in found]


def test_chained_jobs_with_other_world_sizes(begin):
    """2 ranks, then 4, then 2: three attempts; ranks 2 and 3 belong to the second alone."""
    run, _ = begin(ended="killed")
    begin(run, 1, ended="killed")
    for rank in range(4):
        begin(run, rank, world=4, minutes=60 + rank / 100, ended="killed")
    for rank in range(2):
        begin(run, rank, minutes=120)
    assert rows(run) == [(1, "start", 2, 2), (2, "resume", 4, 4), (3, "resume", 2, 2)]


def test_a_requeued_job(begin):
    """SLURM_RESTART_COUNT says it, of whatever launcher."""
    run, _ = begin(kind="slurm", id="c/9/0", ended="killed")
    begin(run, 1, kind="slurm", id="c/9/0", ended="killed")
    for rank in (0, 1):
        begin(run, rank, minutes=30, kind="slurm", id="c/9/0", restart_count=1, requeue=1)
    assert rows(run) == [(1, "start", 2, 2), (2, "requeue", 2, 2)]


def test_a_start_after_a_preempted_one(begin):
    """The program said that it leaves for a later job."""
    run, _ = begin(world=1, ended="preempted")
    begin(run, world=1, minutes=30)
    assert rows(run) == [(1, "start", 1, 1), (2, "preempted", 1, 1)]


def test_an_elastic_launch_that_wins_a_node(begin):
    """torchrun starts all ranks anew and counts no restart: the world size tells."""
    run, _ = begin(id="exp-17", ended="killed")
    begin(run, 1, id="exp-17", ended="killed")
    for rank in range(3):
        begin(run, rank, world=3, minutes=5, id="exp-17")
    assert rows(run) == [(1, "start", 2, 2), (2, "restart", 3, 3)]


def test_an_elastic_id_given_twice(begin):
    """The second launch of that name is the next attempt, also when nobody has said yet how the first ended."""
    run, _ = begin(id="exp-17")
    begin(run, 1, id="exp-17")
    for rank in (0, 1):
        begin(run, rank, minutes=60, id="exp-17")
    assert rows(run) == [(1, "start", 2, 2), (2, "resume", 2, 2)]


def test_a_rank_that_calls_init_an_hour_late(begin):
    """While the others of its start still run it belongs to them."""
    run, _ = begin()
    begin(run, 1, minutes=60)
    assert rows(run) == [(1, "start", 2, 2)]


def test_one_nodes_journals_wholly_after_the_others(begin):
    """Offline nodes: three starts of two ranks, whichever node is brought first, give the same attempts."""
    for first, second in ((0, 1), (1, 0)):
        run = None
        for rank, start in itertools.product((first, second), range(3)):
            run, _ = begin(run, rank, minutes=start * 60 + rank / 10, ended="failed")
        assert rows(run) == [(1, "start", 2, 2), (2, "resume", 2, 2), (3, "resume", 2, 2)]


def test_two_processes_that_claim_one_rank_at_the_same_time(begin):
    """One start, as its name says; both stay readable."""
    run, _ = begin(id="exp-17")
    begin(run, 0, minutes=0.001, id="exp-17")
    assert rows(run) == [(1, "start", 2, 2)]


@pytest.mark.parametrize("launch", [{"restart_count": "x", "requeue": {}, "id": ["a"]}, {"id": {"b": 1}, "kind": None}, {"parent": 7}])
def test_odd_launches_are_taken(begin, alice, launch):
    """What a foreign client says of its launch never stops its run."""
    run, _ = begin(**launch)
    begin(run, minutes=30, **launch)
    assert alice.post("ingest/writers", writer_json(run.id, parent=7, of=[1])).status_code == 200
