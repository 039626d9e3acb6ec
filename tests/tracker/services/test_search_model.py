"""Filters and sorts answer as the model does (filter_model.py), over random runs, whichever way they are carried out."""

from __future__ import annotations

import random
from datetime import datetime, timedelta, timezone

import pytest
from django.utils import timezone as clock

from tests.tracker.services import filter_model as model
from tests.tracker.services.filter_texts import STATES, WORDS, a_filter
from tracker.domain import filter as language
from tracker.models import Run
from tracker.services import runs, search, values

LEAVES = [0, 1, -3, 0.5, 2.5, 1e300, True, False, None, "NaN", "Infinity", "-Infinity", [1, 2], 12, *WORDS]
PATHS = [("config", "lr"), ("config", "model.kind"), ("config", "a.b"), ("summary", "val/loss"), ("summary", "odd name"), ("summary", "x")]
WAYS = {"few": (1000, 20_000), "one by one": (0, 20_000), "sets": (0, 0)}


@pytest.fixture
def known(people):
    random_ = random.Random(4)
    found = []
    now = clock.now()
    for at in range(60):
        created = now - timedelta(seconds=random_.uniform(0, 3 * 86400))
        finished = random_.choice([None, created + timedelta(seconds=random_.uniform(0, 9000))])
        run = Run.objects.create(
            project=people.project,
            user=random_.choice([people.alice, people.bob, None]),
            name=random_.choice(WORDS[:6]) + str(at),
            state=random_.choice(STATES),
            group=random_.choice(WORDS),
            host=random_.choice(["node1", "Node2", ""]),
            exit_code=random_.choice([None, 0, 1, 137]),
            started_at=random_.choice([created, None]),
            finished_at=finished,
            archived_at=random_.choice([None, None, now]),
            tags=random_.sample(["base", "Best", "50%", "é"], random_.randint(0, 3)),
            config={},
        )
        Run.objects.filter(pk=run.pk).update(created_at=created)
        run.refresh_from_db()
        leaves = {where: random_.choice(LEAVES) for where in PATHS if random_.random() < 0.7}
        run.config = {"lr": leaves.get(("config", "lr")), "model": {"kind": leaves.get(("config", "model.kind"))}}
        if ("config", "a.b") in leaves:
            run.config["a.b"] = leaves["config", "a.b"]
        values.config_changed(run)
        values.summary_changed(run, {path: leaf for (kind, path), leaf in leaves.items() if kind == "summary"})
        values.tags_changed(run)
        user = run.user.username if run.user else None
        found.append(
            model.Known(
                run.id, run.name, run.state, run.group, run.host, user, run.exit_code, run.created_at, run.started_at, run.finished_at,
                run.archived_at is not None, run.tags, leaves,
            )
        )  # fmt: skip
    return found


@pytest.mark.parametrize("way", WAYS)
def test_filters_find_what_the_model_finds(people, known, monkeypatch, way):
    """Random filters over random runs, types mixed, find exactly the runs of the model."""
    monkeypatch.setattr(search, "FEW", WAYS[way][0])
    monkeypatch.setattr(search, "MOST_LOOKS", WAYS[way][1])
    random_ = random.Random(way)
    hits = 0
    for _ in range(60):
        text = a_filter(random_)
        tree = language.parse(text)
        expected = {run.id for run in known if model.fits(tree, run, datetime.now(timezone.utc))}
        answer = runs.find(user=people.alice, filter=text, limit=1000, sort=random_.choice(["", "name", "-config.lr", "val/loss"]))
        assert {run.id for run in answer.results} == expected, text
        hits += 0 < len(expected) < len(known)
    assert hits > 20


@pytest.mark.parametrize("way", WAYS)
def test_sorted_pages_are_the_models_order_cut(people, known, monkeypatch, way):
    """Numbers, then texts, then runs without the value, page by page, no run twice and none left out."""
    monkeypatch.setattr(search, "FEW", WAYS[way][0])
    monkeypatch.setattr(search, "MOST_LOOKS", WAYS[way][1])
    random_ = random.Random(way)
    for kind, path in PATHS:
        for descending in (False, True):
            text = random_.choice(["", a_filter(random_), "state = finished or config.lr > 0", "not config.lr = 1", f'{kind}."{path}" > 0'])
            tree = language.parse(text)
            chosen = [run for run in known if tree is None or model.fits(tree, run, datetime.now(timezone.utc))]
            walked, cursor = [], None
            while True:
                answer = runs.find(user=people.alice, filter=text, sort=f"{'-' * descending}{kind}.{path}", limit=7, cursor=cursor)
                walked += [run.id for run in answer.results]
                cursor = answer.next
                if cursor is None:
                    break
            assert walked == model.ordered(chosen, (kind, path), descending=descending), (text, path, descending)


def test_two_names_sort_one_within_the_other(people, known):
    """``sort=state,-config.lr``: by state, and runs of one state by the value, those without it last."""
    by_state = {}
    for run in known:
        by_state.setdefault(run.state, []).append(run)
    walked, cursor = [], None
    while True:
        answer = runs.find(user=people.alice, sort="state,-config.lr", limit=11, cursor=cursor)
        walked += [(run.state, run.id) for run in answer.results]
        if (cursor := answer.next) is None:
            break
    assert [state for state, _ in walked] == sorted(run.state for run in known)
    for state, own in by_state.items():
        expected = [model.number_of(one.values.get(("config", "lr"))) for one in own]
        got = [next(run for run in known if run.id == id) for here, id in walked if here == state]
        numbers = [model.number_of(run.values.get(("config", "lr"))) for run in got]
        assert [n for n in numbers if n is not None] == sorted((n for n in expected if n is not None), reverse=True)
        assert None not in numbers[: len([n for n in expected if n is not None])]
