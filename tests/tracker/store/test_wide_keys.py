"""Runs with more metrics than summaries are kept for: who has a metric, and the summaries of what is defined or searched for."""

from __future__ import annotations

import pytest

from tracker.models import KeyDefinition, MetricSummary, RunValue, SearchedKey, StaleSummary
from tracker.services import runs, stitched, summaries


@pytest.fixture
def wide(room, monkeypatch):
    """A run of two kept metrics (a, b) and others beyond them, summarised; (run, writer)."""
    monkeypatch.setattr(summaries, "MOST_KEYS", 2)
    run = room.run()
    writer = room.writer(run)
    KeyDefinition.objects.create(run=run, pattern="told/*", fields={"goal": "min"})
    for at, key in enumerate(["a", "b", "layer/0", "layer/1", "told/x"]):
        send(room, writer, [float(at), 10.0 + at], key)
    summaries.summarise_due()
    return run, writer


def send(room, writer, values: list[float], key: str, step: int = 0) -> None:
    writer.refresh_from_db()
    room.simple(writer, writer.next, values, key=key, step=step)


def found(user, text: str, sort: str = "") -> list[str]:
    return [run.id for run in runs.find(user=user, filter=text, sort=sort).results]


def test_a_metric_without_a_summary_is_still_known(room, wide):
    """``has metric`` knows every metric of a wide run, and no other."""
    run, writer = wide
    user = run.user or room.user
    assert set(MetricSummary.objects.values_list("key", flat=True)) == {"a", "b", "told/x"}
    for key in ("a", "layer/0", "layer/1", "told/x"):
        assert found(user, f'has metric "{key}"') == [run.id], key
        assert found(user, f'not has metric "{key}"') == []
    assert found(user, 'has metric "layer/2"') == []
    send(room, writer, [1.0], "layer/2", 0)
    summaries.summarise_due()
    assert found(user, 'has metric "layer/2"') == [run.id]
    assert found(user, 'has metric "layer/0" and has metric "layer/1"', "-layer/0") == [run.id]


def test_what_the_program_defines_has_a_summary_beyond_the_bound(wide):
    """A defined metric is kept whenever it comes."""
    run, _ = wide
    assert RunValue.objects.get(run=run, path="told/x").number == 14.0


def test_a_metric_that_is_searched_for_gets_its_summary(room, wide):
    """Filtering by a metric beyond the bound has its summary made from all of its points, and kept up from then on."""
    run, writer = wide
    user = run.user or room.user
    assert found(user, "layer/1 > 1") == []
    assert SearchedKey.objects.get().path == "layer/1"
    send(room, writer, [5.0], "layer/1", 2)  # comes between the question and the making
    stitched.recompute(run.id)
    assert found(user, "layer/1 = 5") == [run.id]
    summaries.summarise_due()
    for at in range(3):
        send(room, writer, [100.0 + at], "layer/1", 3 + at)
        summaries.summarise_due()
        stitched.recompute(run.id)
    row = MetricSummary.objects.get(run=run, key="layer/1")
    assert (row.count, row.min, row.max, row.last) == (6, 3.0, 102.0, 102.0)
    assert not StaleSummary.objects.exists()
    assert found(user, "", "-layer/1") == [run.id]
    assert SearchedKey.objects.count() == 1
