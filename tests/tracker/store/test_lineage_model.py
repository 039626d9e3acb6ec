"""Random histories of attempts, rewinds and forks, arriving in any order, against a model that plays them as they happened."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

import pytest
from django.db import transaction
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.tracker.helpers import writer_json
from tests.tracker.store import wire_writer as wire
from tracker.domain.ids import new_id
from tracker.models import MetricSummary, Run, RunValue, StaleSummary
from tracker.services import compaction, metrics, series, stitched, summaries, writers
from tracker.store import reading

BASE = 1_700_000_000_000_000


@dataclass
class Attempt:
    started_us: int
    rewound_to: int | None
    points: list[tuple[int, float]]
    key: str = "loss"
    id: str = field(default_factory=new_id)


@dataclass
class History:
    attempts: list[Attempt]
    fork: tuple[int, int] | None = None
    """Which history it goes on (an earlier one in the list) and up to which step."""
    is_said_again: bool = False
    """Whether each start says so, as a script does that is simply started again, and not the first alone."""
    id: str = field(default_factory=new_id)


# -- the model: a run is a dict from steps to what was logged last; going back drops steps, a fork is a copy -----------------------------


def play(histories: list[History], run: History, count: int | None = None, key: str = "loss") -> tuple[dict, dict]:
    """({step: (value, attempt, time)}, {attempt: what it left behind}) of this key after the run's first ``count`` attempts."""
    state: dict[int, tuple[float, int, int]] = {}
    left: dict[int, dict] = {}
    if run.fork is not None:
        parent, step = histories[run.fork[0]], run.fork[1]
        begun = sum(each.started_us <= run.attempts[0].started_us for each in parent.attempts)
        while begun < len(parent.attempts) and not any(s >= step for each in parent.attempts[:begun] for s, _ in each.points):
            begun += 1
        state = {s: (v, 0, at) for s, (v, _, at) in play(histories, parent, begun, key)[0].items() if s <= step}
    for number, attempt in enumerate(run.attempts[:count], 1):
        if attempt.rewound_to is not None:
            left[number] = {s: found for s, found in state.items() if s > attempt.rewound_to}
            state = {s: found for s, found in state.items() if s <= attempt.rewound_to}
        for n, (step, value) in enumerate(attempt.points if attempt.key == key else ()):
            state[step] = (value, number, attempt.started_us + n)
    return state, left


# -- what is drawn ----------------------------------------------------------------------------------------------------------------------

STEPS = st.integers(0, 12)
VALUES = st.sampled_from([0.0, 1.0, -2.5, 7.25, 1e9, math.inf, math.nan])
KEYS = ["loss", "other"]
POINTS = st.lists(st.tuples(STEPS, VALUES), max_size=8)


@st.composite
def histories_drawn(draw) -> list[History]:
    found: list[History] = []
    for at in range(draw(st.integers(1, 3))):
        count = draw(st.integers(1, 3))
        starts = sorted(draw(st.lists(st.integers(0, 50), min_size=count, max_size=count, unique=True)))
        attempts = [
            Attempt(BASE + start * 1_000_000, draw(st.none() | st.integers(-1, 11)), draw(POINTS), draw(st.sampled_from(KEYS)))
            for start in starts
        ]
        fork = draw(st.none() | st.tuples(st.integers(0, at - 1), st.integers(0, 12))) if at else None
        found.append(History(attempts, fork, is_said_again=draw(st.booleans())))
    return found


def opened(room, histories: list[History], run: History, attempt: Attempt) -> None:
    fork = (
        {"run": histories[run.fork[0]].id, "step": run.fork[1]} if run.fork and (run.is_said_again or attempt is run.attempts[0]) else None
    )
    told = {"id": run.id, "project": room.project.slug, "fork_from": fork, "rewind_to": attempt.rewound_to, "resume": "allow"}
    doc = writer_json(run=told, started_us=attempt.started_us, anchor_wall_us=attempt.started_us, writer=attempt.id)
    writers.open_writer(user=room.user, token=None, doc=doc)


def sent(room, run: History, attempt: Attempt, first: int, last: int) -> None:
    rows = [(n, step, attempt.started_us + n, [value]) for n, (step, value) in enumerate(attempt.points)][first:last]
    frames = [wire.dense(first, [attempt.key], "d", rows)]
    from tracker.models import Writer

    room.post(Writer.objects.get(id=attempt.id), wire.batch(run.id, attempt.id, first, last - 1, frames))


EXAMPLES = 1500 if os.environ.get("ENCORE_TORTURE") == "1" else 40


# Without shrinking, which takes longer here than pytest waits: the example that failed is printed as it was.
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
@pytest.mark.timeout(3600 if EXAMPLES > 40 else 300)
@pytest.mark.django_db
def test_stitched_series_histories_and_summaries_equal_the_model(room, data):
    """Whatever the attempts, rewinds, forks and steps, and in whatever order the journals come, all three say what the model says."""
    histories = data.draw(histories_drawn())
    with transaction.atomic():
        try:
            happened(room, data, histories)
            for run in histories:
                for key in KEYS:
                    agree(room, histories, run, key)
        finally:
            transaction.set_rollback(True)


def happened(room, data, histories: list[History]) -> None:
    """All of it, in an order that hypothesis chooses, the maintenance in between."""
    waiting = [(run, attempt) for run in histories for attempt in run.attempts]
    acts: list[tuple] = []
    for run, attempt in data.draw(st.permutations(waiting)):
        opened(room, histories, run, attempt)
        cut = data.draw(st.integers(0, len(attempt.points)))
        acts += [(run, attempt, a, b) for a, b in ((0, cut), (cut, len(attempt.points))) if a < b]
        while acts and data.draw(st.booleans()):
            sent(room, *acts.pop(0))
        work(data.draw(st.sampled_from(["nothing", "summarise", "recompute", "compact"])), histories)
    for act in acts:
        sent(room, *act)
    work(data.draw(st.sampled_from(["nothing", "compact"])), histories)
    work("recompute", histories)
    assert not StaleSummary.objects.exists()


def work(what: str, histories: list[History]) -> None:
    there = [run.id for run in histories if Run.objects.filter(id=run.id).exists()]
    for run_id in there if what != "nothing" else ():
        summaries.summarise_run(run_id)
        if what == "compact":
            compaction.compact_run(run_id, force=True)
    for run_id in there if what == "recompute" else ():
        stitched.recompute(run_id)


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def agree(room, histories: list[History], run: History, key: str) -> None:
    state, left = play(histories, run, key=key)
    row = Run.objects.get(id=run.id)
    expected = [(step, state[step][0]) for step in sorted(state)]

    entries = series.answer(user=room.user, query={"runs": [run.id], "keys": [key], "branch": "all"}, as_json=True)["series"]
    drawn = {entry.get("branch"): list(zip(entry["x"], map(float, entry["y"]), strict=True)) for entry in entries}
    assert str(drawn.pop(None, [])) == str([(float(s), v) for s, v in expected])
    assert str(drawn) == str({b: [(float(s), lost[s][0]) for s in sorted(lost)] for b, lost in sorted(left.items()) if lost})

    told = metrics.history(row, key, 0, user=room.user)["points"]
    assert [(step, time) for step, time, _ in told] == [(step, state[step][2]) for step in sorted(state)]
    assert all(same(float(value), state[step][0]) for step, _, value in told)
    for number, attempt in enumerate(run.attempts, 1):
        own = metrics.history(row, key, 0, user=room.user, branch=number)["points"]
        assert str([(step, float(value)) for step, _, value in own]) == str(
            sorted(dict(attempt.points).items()) if attempt.key == key else []
        )

    if not row.is_stitched:
        return
    found = MetricSummary.objects.filter(run=row, key=key).first()
    values = [value for value, _, _ in state.values()]
    if not values:
        assert found is None
        assert not RunValue.objects.filter(run=row, kind="summary", path=key).exists()
        return
    numbers = [value for value in values if not math.isnan(value)]
    assert (found.count, found.nan_count) == (len(values), len(values) - len(numbers))
    assert (found.min, found.max) == ((min(numbers), max(numbers)) if numbers else (None, None))
    assert found.sum == (sum(numbers) if numbers else None)
    assert found.first_nan_step == min((s for s in state if math.isnan(state[s][0])), default=None)
    last_step, (last, _, moment) = max(state.items(), key=lambda item: (item[1][1], item[1][2]))
    assert (found.last_step, found.last_time) == (last_step, moment)
    assert metrics.last_of_runs([run.id], [key])[run.id][key] == (
        last if math.isfinite(last) else "NaN" if math.isnan(last) else "Infinity"
    )
    value = RunValue.objects.get(run=row, kind="summary", path=key)
    assert (value.number, value.text) == ((last, None) if not math.isnan(last) else (None, "NaN")) or math.isinf(last)


def test_the_model_itself_says_what_the_words_mean():
    """Three starts and a fork, by hand, so that the model is not only equal to what it tests."""
    first = Attempt(0, None, [(step, float(step)) for step in range(6)])
    second = Attempt(10, 2, [(3, 30.0), (4, 40.0)])
    parent = History([first, second])
    child = History([Attempt(20, None, [(4, 400.0)])], fork=(0, 3))
    early = History([Attempt(5, None, [(5, 500.0)])], fork=(0, 4))
    histories = [parent, child, early]
    state, left = play(histories, parent)
    assert {s: v for s, (v, _, _) in state.items()} == {0: 0.0, 1: 1.0, 2: 2.0, 3: 30.0, 4: 40.0}
    assert {s: v for s, (v, _, _) in left[2].items()} == {3: 3.0, 4: 4.0, 5: 5.0}
    assert {s: v for s, (v, _, _) in play(histories, child)[0].items()} == {0: 0.0, 1: 1.0, 2: 2.0, 3: 30.0, 4: 400.0}
    assert [v for _, (v, _, _) in sorted(play(histories, early)[0].items())] == [0.0, 1.0, 2.0, 3.0, 4.0, 500.0]


def test_reading_a_plain_run_plans_nothing(room):
    """Without a rewind or a fork there is no plan, so nothing is cut or copied."""
    writer = room.writer()
    assert reading.plans_of([writer.run_id], reading.writers_of([writer.run_id]), {}) == {}
