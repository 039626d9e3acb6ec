"""A live chart that follows the rules of docs/series.md has at every moment what a fresh one has, whatever happens to the run."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.tracker.store import wire_writer as write
from tracker.domain import series_answer
from tracker.models import Attempt, KeyDefinition
from tracker.services import compaction, series

ARRAYS = ("x", "y", "steps", "smooth", "min", "max", "lo", "hi", "members")


class Chart:
    """A client: asks once, then polls with its cursor and does what the answers say."""

    def __init__(self, room, query: dict) -> None:
        self.room, self.query = room, query
        self.cursor: str | None = None
        self.lines: dict[tuple, dict] = {}
        self.resets = 0

    def ask(self, **more) -> dict:
        return series_answer.decode(series.answer(user=self.room.user, query={**self.query, **more}))

    def poll(self) -> None:
        answer = self.ask() if self.cursor is None else self.ask(since=self.cursor)
        if answer.get("reset"):
            self.resets += 1
            self.lines, answer = {}, self.ask()
        self.cursor = answer["cursor"]
        for entry in answer["series"]:
            name = _name(entry)
            arrays = {array: entry[array] for array in ARRAYS if isinstance(entry.get(array), np.ndarray)}
            if self.query.get("ranks") == "band":
                arrays = {"min": entry["y"], "max": entry["y"], **arrays}
            old = self.lines.get(name)
            if old is not None and not entry.get("whole") and "from" in entry:
                keep = old["x"] < entry["from"]
                arrays = {array: np.r_[old[array][keep], arrays[array]] for array in arrays}
            self.lines[name] = arrays

    def must_be_fresh(self) -> None:
        fresh = {_name(entry): entry for entry in self.ask()["series"]}
        assert set(self.lines) == set(fresh)
        for name, entry in fresh.items():
            for array, mine in self.lines[name].items():
                np.testing.assert_allclose(mine, entry.get(array, entry["y"]), rtol=1e-9, err_msg=f"{array} of {name}")


def _name(entry: dict) -> tuple:
    return entry.get("run"), entry.get("group"), entry["key"], entry["rank"], entry.get("branch")


QUERIES = [
    {}, {"ranks": "all"}, {"ranks": "band"}, {"branch": "all"}, {"x": "relative"}, {"x": {"metric": "tokens"}},
    {"smooth": {"kind": "ema", "weight": 0.7}}, {"smooth": {"kind": "gaussian", "sigma": 2}}, {"from": 3, "to": 12}, {"group_by": "state"},
    {"group_by": "state", "smooth": {"kind": "time_ema", "scale": 3.0}},
]  # fmt: skip
LOG = st.tuples(
    st.just("log"), st.integers(0, 3), st.integers(0, 15), st.sampled_from(["loss", "tokens", "both"]), st.integers(1, 4),
)  # fmt: skip
EVENTS = st.lists(
    LOG | LOG | st.tuples(st.just("compact")) | st.tuples(st.just("rewind"), st.integers(0, 10)) | st.tuples(st.just("resume")),
    min_size=2, max_size=10,
)  # fmt: skip


@given(st.sampled_from(QUERIES), EVENTS)
@example({"branch": "all"}, [("log", 0, 0, "both", 4), ("log", 0, 4, "both", 4), ("rewind", 3), ("log", 0, 4, "loss", 2), ("compact",)])
@example({"x": {"metric": "tokens"}}, [("log", 0, 0, "loss", 4), ("log", 1, 0, "tokens", 2), ("compact",), ("log", 1, 2, "both", 1)])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_chart_that_polls_has_what_a_fresh_one_has(room, query, events):
    """Through late and repeated steps, other ranks, compaction, a resume, a rewind."""
    run = room.run()
    KeyDefinition.objects.create(run=run, pattern="tokens", fields={"reduce": "max"})
    attempt = 1
    writers: dict[tuple[int, int], tuple] = {}
    chart = Chart(room, {"runs": [run.id], "keys": ["loss"], **query})
    chart.poll()
    for number, event in enumerate(events):
        if event[0] == "compact":
            compaction.compact_run(run.id, force=True)
        elif event[0] in ("resume", "rewind"):
            attempt += 1
            room.writer(run, attempt=attempt, started_us=1_700_000_000_000_000 + attempt * 1_000_000)
            if event[0] == "rewind":
                Attempt.objects.filter(run=run, number=attempt).update(rewound_to=event[1])
        else:
            _, rank, step, what, count = event
            writer, first = writers.get((attempt, rank)) or (room.writer(run, rank=rank, attempt=attempt), 0)
            keys = ["loss", "tokens"] if what == "both" else [what]
            now = writer.started_us
            rows = [(first + n, step + n, now + (step + n) * 1000, [math.sin(number + n + rank)] * len(keys)) for n in range(count)]
            frame = write.dense(first, keys, "d" * len(keys), rows)
            room.post(writer, write.batch(run.id, writer.id, first, first + count - 1, [frame]))
            writers[attempt, rank] = writer, first + count
        if number % 2:
            chart.poll()
            chart.must_be_fresh()
    chart.poll()
    chart.must_be_fresh()
    assert chart.resets <= attempt - 1


@pytest.mark.parametrize("query", [{}, {"group_by": "state"}])
def test_polls_between_which_nothing_came_bring_nothing(room, query):
    writer = room.writer()
    room.simple(writer, 0, [1.0, 2.0])
    chart = Chart(room, {"runs": [writer.run_id], "keys": ["loss"], **query})
    chart.poll()
    for _ in range(2):
        before = chart.cursor
        compaction.compact_run(writer.run_id, force=True)
        answer = chart.ask(since=before)
        assert (answer["series"], answer["cursor"]) == ([], before)
