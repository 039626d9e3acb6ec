"""Filters that mean harm or are merely wrong: each gets an answer or a 400 that says what to do, soon, and nothing else."""

from __future__ import annotations

import pytest
from django.db import connection

from tracker.domain.errors import FilterTooSlow
from tracker.models import Run, RunValue
from tracker.services import matching, runs, values

HOSTILE = [
    'name = "x\' OR 1=1 --"',
    "config.\"a' OR '1'='1\" = 1",
    '"\'; DROP TABLE tracker_run; --" = 1',
    "name = '\x00'",
    "config.\x00 = 1",
    '"\x00" = "\x00" or tags = "\x00" or has metric "\x00"',
    "name like '%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%a' and name ilike '_%_%_%_%_%_%_%_%_%z'",
    'name =~ "(a+)+$" or name =~ "(a|a)*b" or name =~ "(x+x+)+y"',
    'config.text =~ "((((a{10}){10}){10}){2})$"',
    'name = "%s %(x)s {0} \\\\ \\""',
    "config.𝓁𝓇 = '𝕏' or \"ﷺ\" ~ 'ı'",
    'name = "\ud800"',
    "config.__class__ = 1 and config.user__password ~ 'a' and user__password ~ 'pbkdf2'",
    "val/loss = 1" + "0" * 400 + " or val/loss < -1e999",
    "created > -999999999w",
    "created < 9999-12-31T23:59:59+00:00 or created = 0001-01-01T00:00:00+14:00",
    "duration > 999999999w999999999w or duration < 0ms",
    "exit_code = 99999999999999999999",
    "config.x IN (" + ", ".join(["1"] * 1300) + ")",
    "x = " + "[" * 3000,
    "(" * 3999 + "x",
    "not " * 900 + "x = 1",
    " or ".join(["x=1"] * 101),
    "=" * 4000,
    '"' * 4000,
    "\\" * 4000,
    "a" * 4000,
    "a" * 4001,
    "state IN (1, true, null)",
    "archived = maybe",
    "tags > 3",
    "NaN > NaN",
    "config.a < NaN",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_an_odd_filter_is_answered_or_refused(alice, run, text):
    """200 or 400, never a 5xx and never more than was asked for."""
    values.config_changed(run)
    answer = alice.client.get("/api/v1/runs", {"filter": text.encode("utf-8", "replace").decode()}, headers=alice.headers)
    assert answer.status_code in (200, 400), answer.content
    if answer.status_code == 400:
        assert answer.json()["code"] in ("filter_mistake", "invalid")
        assert answer.json()["message"]
    assert Run.objects.count() == 1


@pytest.mark.parametrize(
    ("text", "column", "said"),
    [
        ("stat = finished", 1, "did you mean state"),
        ("lr > 0.1", 1, "did you mean config.lr"),
        ("status = failed", 1, "did you mean state"),
        ("state = finnished", 9, "did you mean finished"),
        ("state = failed and duration > soon", 31, "90s, 2h"),
        ("created > tomorow", 11, "yesterday"),
        ("created ~ 2026", 9, "compare it with"),
        ("config.a < NaN", 12, "no order"),
        ("config.a > null", 12, "null takes"),
        ('name =~ "a("', 9, "character 2"),
        ('name =~ "(?=a)"', 9, "(?:"),
        ('name =~ "\\\\1"', 9, "there is no \\1"),
        ("name like 'a\\\\'", 11, "backslash"),
        ("x = 1 && y = 2", 7, "AND"),
        ("x == ", 6, "a value"),
        ("3 < x", 1, "name comes first"),
        ("archived = perhaps", 12, "true or false"),
        ("config.a = -7d", 12, "created"),
        ("(state = failed", 16, ")"),
    ],
)
def test_a_mistake_says_where_it_is_and_what_would_be_right(alice, make_run, text, column, said):
    """The column is that of the word that is wrong, and the sentence holds the way out."""
    values.config_changed(make_run(config={"lr": 1.0, "a": 1}))
    answer = alice.client.get("/api/v1/runs", {"filter": text}, headers=alice.headers)
    assert answer.status_code == 400, answer.content
    assert answer.json()["fields"]["column"] == column, answer.json()
    assert said in answer.json()["message"]


def test_a_word_that_is_a_metric_is_no_mistake(alice, make_run):
    """Once a metric of that name is there, it is meant; written summary.…, it always is."""
    run = make_run(config={"lr": 1.0})
    values.config_changed(run)
    values.summary_changed(run, {"lr": 2.0, "status": 1})
    for text in ("lr = 2", "status = 1", "summary.stat != 3 or config.lr = 1"):
        answer = alice.client.get("/api/v1/runs", {"filter": text}, headers=alice.headers)
        assert [row["id"] for row in answer.json()["results"]] == [run.id], text


def test_a_question_that_takes_too_long_is_given_up_with_advice(people, make_run):
    """SQLite is interrupted, PostgreSQL cancels; the connection serves the next question."""
    make_run()
    endless = {
        "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
        "postgresql": "SELECT count(*) FROM generate_series(1, 100000000000)",
    }
    with pytest.raises(FilterTooSlow) as refused, matching.bounded(0.2), connection.cursor() as cursor:
        cursor.execute(endless[connection.vendor])
    assert refused.value.status == 400
    assert "project" in refused.value.message
    assert len(runs.find(user=people.alice, filter="state = finished").results) == 1


def test_the_largest_filter_is_answered_in_bounds(people, make_run):
    """A hundred terms of every kind are one answer."""
    run = make_run(config={"lr": 1.0, "kind": "gpt"})
    values.config_changed(run)
    terms = ["config.lr = 1", "config.kind =~ '^g'", "name like 'a%'", "duration >= 0s", "not tags = x"] * 20
    assert [found.id for found in runs.find(user=people.alice, filter=" and ".join(terms), sort="-config.lr,name").results] == [run.id]


def test_keys_as_long_as_allowed_are_indexed_on_both_databases(make_run):
    """A path and a text of 500 characters of four bytes each fit the indexes."""
    run = make_run(config={"𝓁" * 500: "𝕏" * 600})
    values.config_changed(run)
    row = RunValue.objects.get(run=run)
    assert (len(row.path), len(row.text)) == (500, 500)
    assert row.slot
