"""What a fork inherits also changes when its parent comes to the fork's step late, or the fork turns out to have begun earlier."""

from __future__ import annotations

from tests.tracker.helpers import writer_json
from tests.tracker.store import wire_writer as wire
from tracker.domain.ids import new_id
from tracker.models import KeyDefinition, MetricBlock, MetricSummary, Run, StaleSummary, Writer
from tracker.services import compaction, metrics, stitched, summaries, writers
from tracker.store.blobs import blob_store

SECOND = 1_000_000
BASE = 1_700_000_000 * SECOND


def opened(room, run_id: str, at: int, **said) -> Writer:
    """A start of this run at second ``at``, as its journal's writer.json tells it."""
    told = {"id": run_id, "project": room.project.slug, "resume": "allow", **said}
    doc = writer_json(run=told, started_us=BASE + at * SECOND, anchor_wall_us=BASE + at * SECOND, writer=new_id())
    return writers.open_writer(user=room.user, token=None, doc=doc).writer


def sent(room, writer: Writer, points: list[tuple[int, float]], key: str = "loss") -> None:
    writer.refresh_from_db()
    rows = [(writer.next + n, step, writer.started_us + n, [value]) for n, (step, value) in enumerate(points)]
    last = writer.next + len(points) - 1
    room.post(writer, wire.batch(writer.run_id, writer.id, writer.next, last, [wire.dense(writer.next, [key], "d", rows)]))


def beat() -> None:
    summaries.summarise_due()
    for run_id in set(StaleSummary.objects.values_list("run_id", flat=True)):
        stitched.recompute(run_id)


def agree(room, run_id: str, expected: list[tuple[int, float]], key: str = "loss") -> None:
    """The history and the summary of this key are of these points."""
    told = metrics.history(Run.objects.get(id=run_id), key, 0, user=room.user)["points"]
    assert [(step, float(value)) for step, _, value in told] == expected
    found = MetricSummary.objects.filter(run_id=run_id, key=key).values_list("count", "sum").first()
    assert found == ((len(expected), sum(value for _, value in expected)) if expected else None)


def test_a_late_journal_that_reaches_the_step_takes_later_attempts_out_of_the_fork(room):
    """While nothing known reaches the fork's step, a later attempt is inherited; once an earlier one does, beyond the step, it is not."""
    parent, fork = new_id(), new_id()
    early, late = opened(room, parent, 10), opened(room, parent, 40)
    own = opened(room, fork, 30, fork_from={"run": parent, "step": 1})
    sent(room, late, [(0, 5.0), (1, 6.0)])
    sent(room, own, [(2, 7.0)])
    beat()
    agree(room, fork, [(0, 5.0), (1, 6.0), (2, 7.0)])
    sent(room, early, [(4, 1.0)])
    beat()
    agree(room, fork, [(2, 7.0)])


def test_a_late_journal_counts_for_the_forks_of_forks(room):
    """The same, two generations down."""
    parent, fork, leaf = new_id(), new_id(), new_id()
    early, late = opened(room, parent, 10), opened(room, parent, 40)
    opened(room, fork, 30, fork_from={"run": parent, "step": 1})
    own = opened(room, leaf, 35, fork_from={"run": fork, "step": 8})
    sent(room, late, [(0, 5.0), (1, 6.0)])
    sent(room, own, [(9, 7.0)])
    beat()
    agree(room, leaf, [(0, 5.0), (1, 6.0), (9, 7.0)])
    sent(room, early, [(4, 1.0)])
    beat()
    agree(room, leaf, [(9, 7.0)])


def test_a_parent_that_goes_on_beyond_the_step_costs_its_forks_nothing(room):
    """The latest attempt cannot take another one out: a live parent does not have its forks made again at each beat."""
    parent, fork = new_id(), new_id()
    early = opened(room, parent, 10)
    opened(room, fork, 30, fork_from={"run": parent, "step": 1})
    sent(room, early, [(0, 1.0), (1, 2.0), (2, 3.0)])
    late = opened(room, parent, 40)
    beat()
    sent(room, late, [(3, 4.0)])
    summaries.summarise_due()
    assert not StaleSummary.objects.exists()
    agree(room, fork, [(0, 1.0), (1, 2.0)])


def test_an_earlier_start_that_says_the_same_fork_is_heeded(room):
    """A fork's launcher says the fork at each start; when the journal of the first comes last, the fork began earlier than was known."""
    parent, fork = new_id(), new_id()
    first, second = opened(room, parent, 10), opened(room, parent, 40)
    sent(room, first, [(0, 1.0), (3, 1.0)])
    sent(room, second, [(1, 5.0), (2, 5.0)])
    said = {"run": parent, "step": 3}
    own = opened(room, fork, 50, fork_from=said)
    sent(room, own, [(4, 7.0)], key="other")
    beat()
    agree(room, fork, [(0, 1.0), (1, 5.0), (2, 5.0), (3, 1.0)])
    opened(room, fork, 30, fork_from=said)
    beat()
    agree(room, fork, [(0, 1.0), (3, 1.0)])


def test_a_parents_metric_without_a_summary_is_inherited_all_the_same(room, monkeypatch):
    """What a parent sends of a metric beyond its kept ones reaches the summary that the fork has of it."""
    monkeypatch.setattr(summaries, "MOST_KEYS", 1)
    parent, fork = new_id(), new_id()
    writer = opened(room, parent, 10)
    sent(room, writer, [(0, 1.0)], key="kept")
    own = opened(room, fork, 30, fork_from={"run": parent, "step": 5})
    KeyDefinition.objects.create(run=own.run, pattern="loss", fields={"goal": "min"})
    sent(room, own, [(6, 7.0)])
    beat()
    agree(room, fork, [(6, 7.0)])
    sent(room, writer, [(2, 3.0)])
    beat()
    assert not MetricSummary.objects.filter(run_id=parent, key="loss").exists()
    agree(room, fork, [(2, 3.0), (6, 7.0)])


def test_a_metric_that_the_parent_has_gone_back_behind_stays_the_forks(room):
    """A parent that starts over later has no points of a metric left, and its fork still has a summary of those that it inherits."""
    parent, fork = new_id(), new_id()
    first = opened(room, parent, 10)
    opened(room, parent, 40, rewind_to=-1)
    sent(room, first, [(0, 1.0), (1, 2.0), (2, 3.0)])
    beat()
    agree(room, parent, [])
    opened(room, fork, 30, fork_from={"run": parent, "step": 1})
    beat()
    agree(room, fork, [(0, 1.0), (1, 2.0)])


def test_a_fork_of_a_fork_may_be_made_before_what_it_goes_on(room):
    """In whatever order the summaries of a chain are made, all have the metrics of those before them."""
    parent, fork, leaf = new_id(), new_id(), new_id()
    opened(room, parent, 10)
    middle = opened(room, fork, 20, fork_from={"run": parent, "step": 5})
    opened(room, leaf, 30, fork_from={"run": fork, "step": 7})
    beat()
    sent(room, middle, [(6, 1.0), (7, 2.0)])
    summaries.summarise_due()
    for run_id in (leaf, fork):
        stitched.recompute(run_id)
    agree(room, fork, [(6, 1.0), (7, 2.0)])
    agree(room, leaf, [(6, 1.0), (7, 2.0)])


def test_damage_beyond_the_step_leaves_a_forks_summaries_alone(room):
    """A stitched parent of which a block is lost that its fork does not inherit: the fork's summaries are made."""
    parent, fork = new_id(), new_id()
    first = opened(room, parent, 10)
    second = opened(room, parent, 20, rewind_to=2)
    sent(room, first, [(0, 1.0), (1, 2.0)])
    sent(room, second, [(3, 3.0), (4, 4.0)])
    beat()
    compaction.compact_run(parent, force=True)
    opened(room, fork, 30, fork_from={"run": parent, "step": 1})
    blob_store().delete(MetricBlock.objects.get(writer=second).object_key)
    beat()
    found = MetricSummary.objects.get(run_id=fork, key="loss")
    assert (found.count, found.sum) == (2, 3.0)
