"""The runs table: filter, sort, columns, paging, bulk."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.tracker.web import fill
from tracker.models import Run


@pytest.fixture
def runs(people):
    return [fill.run_of(people["alice"], "gpt", f"run-{at}", steps=5, lr=10.0**-at, log=False, with_recipe=False) for at in range(1, 5)]


def rows(answer) -> list[str]:
    return [run.name for run in answer.context["runs"]]


def test_a_filter_narrows_the_rows_and_stays_in_the_box(alice, runs):
    answer = alice.get("/projects/gpt", {"filter": "config.lr < 0.005"})
    assert sorted(rows(answer)) == ["run-3", "run-4"]
    assert 'value="config.lr &lt; 0.005"' in answer.content.decode()


def test_a_mistake_in_the_filter_is_shown_under_the_column_where_it_is(alice, runs):
    answer = alice.get("/projects/gpt", {"filter": "config.lr <"})
    assert answer.status_code == 200
    assert answer.context["mistake"]["column"]
    assert "^" in answer.content.decode()


def test_headers_sort_down_then_up_then_as_before(alice, runs):
    answer = alice.get("/projects/gpt", {"sort": "-config.lr"})
    assert rows(answer) == ["run-1", "run-2", "run-3", "run-4"]
    answer = alice.get("/projects/gpt", {"sort": "config.lr"})
    assert rows(answer) == ["run-4", "run-3", "run-2", "run-1"]
    column = next(column for column in answer.context["columns"] if column.path == "lr")
    assert column.head["direction"] == "ascending"
    assert "sort" not in column.head["url"]


def test_columns_that_differ_are_chosen_by_themselves_and_others_by_the_url(alice, runs):
    answer = alice.get("/projects/gpt")
    names = [column.name for column in answer.context["columns"]]
    assert "config.lr" in names
    assert "config.batch_size" not in names
    answer = alice.get("/projects/gpt", {"columns": "config.batch_size"})
    assert [column.name for column in answer.context["columns"]] == ["config.batch_size"]


def test_columns_chosen_in_the_form_become_one_short_parameter(alice, runs):
    answer = alice.get("/projects/gpt", {"columns": ["config.lr", "config.seed"], "filter": "state = finished"})
    assert answer.status_code == 302
    assert "columns=config.lr%2Cconfig.seed" in answer["Location"]
    assert "filter=state+%3D+finished" in answer["Location"]


def test_pages_follow_each_other_without_losing_or_repeating_a_run(alice, people, monkeypatch):
    from tracker.web import runs as view

    monkeypatch.setattr(view, "LIMIT", 3)
    for at in range(7):
        fill.run_of(people["alice"], "gpt", f"n{at}", steps=0, log=False, with_recipe=False)
    seen, address = [], "/projects/gpt"
    while address:
        answer = alice.get(address)
        seen += rows(answer)
        following = answer.context["next"]
        address = f"/projects/gpt{following}" if following else ""
    assert sorted(seen) == [f"n{at}" for at in range(7)]


def test_the_table_asks_the_database_as_often_for_forty_runs_as_for_four(alice, people, runs):
    alice.get("/projects/gpt")
    with CaptureQueriesContext(
        connection,
    ) as few:
        alice.get("/projects/gpt")
    for at in range(36):
        Run.objects.create(project=runs[0].project, user=people["alice"], name=f"more-{at}", state="finished", config={"lr": at})
    with CaptureQueriesContext(connection) as many:
        alice.get("/projects/gpt")
    assert len(many) == len(few)
    assert len(many) <= 16


def test_bulk_tags_archives_and_deletes_what_is_ticked(alice, runs):
    chosen = [runs[0].id, runs[1].id]
    alice.post("/runs/bulk", {"run": chosen, "verb": "tag", "tag": "good", "back": "/projects/gpt"})
    assert sorted(Run.objects.filter(id__in=chosen).values_list("tags", flat=True)) == [["good"], ["good"]]
    alice.post("/runs/bulk", {"run": chosen[:1], "verb": "archive", "back": "/projects/gpt"})
    assert "run-1" not in rows(alice.get("/projects/gpt"))
    assert rows(alice.get("/projects/gpt", {"archived": "1"})) == ["run-1"]
    alice.post("/runs/bulk", {"run": chosen[1:], "verb": "delete", "back": "/projects/gpt"})
    assert sorted(rows(alice.get("/projects/gpt"))) == ["run-3", "run-4"]


def test_a_viewer_changes_nothing_in_bulk_and_is_told_why(bob, runs):
    answer = bob.post("/runs/bulk", {"run": [runs[0].id], "verb": "delete", "back": "/projects/gpt"}, follow=True)
    assert "Nothing done" in answer.content.decode()
    assert Run.objects.get(id=runs[0].id).deleted_at is None


def test_bulk_never_sends_the_browser_to_another_host(alice, runs):
    answer = alice.post("/runs/bulk", {"run": [runs[0].id], "verb": "archive", "back": "https://elsewhere.example/"})
    assert answer["Location"] == "/runs"


def test_an_empty_project_shows_three_lines_with_its_own_name_and_address(alice, people, settings):
    text = alice.get("/projects/gpt").content.decode()
    assert "sdk.init(project=&quot;gpt&quot;" in text or 'sdk.init(project="gpt"' in text
    assert settings.ENCORE_URL in text
