"""One table of filters and sorts, asked through each of the four doors: API, page, CLI and ``sdk.Api``. All give the same runs."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from sdk import _query, errors
from sdk._cli import main
from tests.contract.test_query_cli import encore, room  # noqa: F401
from tracker.models import Run
from tracker.services import values

CASES = [
    ("", "name", "a b c d"),
    ("config.lr > 0.005", "name", "a b"),
    ("config.lr > 0.005 OR NOT state = finished", "name", "a b d"),
    ('config."model.kind" = gpt and config.lr != 0.1', "name", "b"),
    ("config.model.layers IN (6, 12) and not (config.lr = 0.1 or tags = x)", "name", "b"),
    ("config.layers = [1, 2]", "name", "a"),
    ("val/loss < 0.4", "-summary.val/loss", "a c"),
    ("", "-summary.val/loss", "b a c d"),
    ("", "summary.val/loss", "c a b d"),
    ("", "config.mixed", "b a c d"),
    ("", "state,-name", "d c b a"),
    ("val/loss = NaN or val/loss = Infinity", "name", "b"),
    ('name LIKE "_" and name =~ "^[ab]$"', "-name", "b a"),
    ("name !=~ '[ab]' AND group NOT LIKE 'g%'", "name", "d"),
    ("tags IN (base, x) and tags != x", "name", "a"),
    ('has metric "val/loss" and has config.layers', "name", "a"),
    ("config.mixed = null", "name", "d"),
    ("config.mixed is not null and config.mixed ~ O", "name", "c"),
    ("created > -1d and created <= today and duration >= 1h30m", "name", "a b"),
    ("user = alice and project = vision and host = node1", "name", "a b c d"),
    ("state IN (failed, crashed) or exit_code = 137", "name", "d"),
]
MISTAKES = [("config.lr >", 12), ("state = done", 9), ("nam = a", 1), ('name =~ "("', 9), ("(state = failed", 16)]


@pytest.fixture
def four(room):  # noqa: F811
    now = timezone.now()
    told = {
        "a": ({"lr": 0.1, "model": {"kind": "gpt", "layers": 6}, "layers": [1, 2], "mixed": 10}, {"val/loss": 0.3}, ["base"], "g1"),
        "b": ({"lr": 0.01, "model": {"kind": "gpt", "layers": 12}, "mixed": True}, {"val/loss": "Infinity"}, [], "g2"),
        "c": ({"lr": 0.001, "model": {"kind": "mlp", "layers": 6}, "mixed": "word"}, {"val/loss": 0.2}, ["x", "base"], "g3"),
        "d": ({}, {}, [], "other"),
    }
    for name, (config, summary, tags, group) in told.items():
        fields = {"state": "failed", "exit_code": 1} if name == "d" else {"exit_code": 0}
        run = room.make(name, config=config, summary=summary, tags=tags, group=group, host="node1", **fields)
        took = timedelta(hours=2) if name in "ab" else timedelta(minutes=5)
        Run.objects.filter(pk=run.pk).update(started_at=now - took, finished_at=now, created_at=now - timedelta(seconds=ord(name)))
        values.config_changed(run)
        values.summary_changed(run, summary)
        values.tags_changed(run)
    return room


def doors(room, encore):  # noqa: F811
    """Name of the door: a function from (filter, sort) to the runs' names in order, or to the sentence of the mistake."""
    browser = Client()
    browser.force_login(room.user)
    api = _query.Api(room.url, room.token)

    def by_api(text, sort):
        asked = {"filter": text, "sort": sort, "project": "vision"}
        answer = browser.get("/api/v1/runs", asked, headers={"authorization": f"Bearer {room.token}"})
        return [run["name"] for run in answer.json()["results"]] if answer.status_code == 200 else answer.json()["message"]

    def by_page(text, sort):
        found = browser.get("/projects/vision", {"filter": text, "sort": sort}).context
        return found["mistake"]["message"] if found["mistake"] else [run.name for run in found["runs"]]

    def by_cli(text, sort):
        found = encore("runs", "--project", "vision", f"--filter={text}", f"--sort={sort}", "--json")
        return [run["name"] for run in found.json["results"]] if found.status == 0 else found.err

    def by_sdk(text, sort):
        try:
            return [run.name for run in api.runs(project="vision", filter=text, sort=sort)]
        except errors.EncoreError as error:
            return str(error)

    return {"api": by_api, "page": by_page, "cli": by_cli, "sdk": by_sdk}


def test_every_door_gives_the_same_runs_in_the_same_order(four, encore):  # noqa: F811
    for name, ask in doors(four, encore).items():
        for text, sort, expected in CASES:
            assert ask(text, sort) == expected.split(), (name, text, sort)


def test_every_door_points_at_the_mistake(four, encore):  # noqa: F811
    """The same sentence, with the column, wherever it is asked."""
    by_door = doors(four, encore)
    for text, column in MISTAKES:
        said = by_door["api"](text, "name")
        assert f"olumn {column - 1 if text in ('config.lr >', '(state = failed') else column}" in said
        for name, ask in by_door.items():
            assert said in ask(text, "name"), name


def test_the_command_shows_chosen_columns(four, encore):  # noqa: F811
    """``--columns`` adds config values, also nested ones, and metrics; what a run lacks stays empty."""
    found = encore("runs", "--project", "vision", "--sort", "name", "--columns", "config.model.layers,config.mixed,val/loss")
    lines = found.out.splitlines()
    assert lines[0].split()[-3:] == ["config.model.layers", "config.mixed", "val/loss"]
    assert lines[1].split()[-3:] == ["6", "10", "0.3"]
    assert lines[2].split()[-2:] == ["true", "Infinity"]
    Run.objects.filter(name="a").update(archived_at=timezone.now())
    assert [row["name"] for row in encore("runs", "--archived", "--json").json["results"]] == ["a"]
    assert len(encore("runs", "--no-archived", "--json").json["results"]) == 3


def test_a_descending_sort_may_stand_as_a_word_of_its_own(four, capsys):
    """``encore runs --sort -name`` means what ``--sort=-name`` does."""
    status = main(["runs", "--project", "vision", "--sort", "-name", "--json", "--url", four.url, "--token", four.token])
    assert status == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["results"]] == ["d", "c", "b", "a"]
