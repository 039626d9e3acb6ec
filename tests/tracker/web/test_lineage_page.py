"""Rewound and forked runs on their pages, in Chromium: what is drawn, what is told, and what a live chart does when its run goes back."""

from __future__ import annotations

import re

import numpy as np
import pytest
from playwright.sync_api import expect

from tests.tracker.web import fill
from tests.tracker.web.test_in_the_browser import painted
from tracker.models import Run
from tracker.services import stitched, summaries

pytestmark = pytest.mark.slow


def start(alice, name: str, values, first: int = 0, *, run: str | None = None, ago: float = 3600, **said) -> fill.Trainer:
    trainer = fill.Trainer(alice, "gpt", name, run=run, ago=ago, said={"resume": "allow", **said})
    log(trainer, values, first)
    return trainer


def log(trainer: fill.Trainer, values, first: int) -> None:
    steps = range(first, first + len(values))
    if len(values):
        trainer.batch({"loss": np.array(values)}, steps, [trainer.start_us + step * fill.SECOND for step in steps])
    summaries.summarise_run(trainer.run_id)
    stitched.recompute(trainer.run_id)


def family(alice) -> tuple[Run, Run]:
    """A run that diverged, went back and went on well; and a fork of it."""
    x = np.arange(400)
    good = 0.4 + 3 * np.exp(-x / 90) + 0.04 * np.sin(x)
    bad = np.r_[good[:220], good[220] + np.exp(np.arange(100) / 40) - 1]
    parent = start(alice, "base", bad, ago=7200)
    start(alice, "base", good[201:], 201, run=parent.run_id, ago=5000, rewind_to=200)
    fork = start(alice, "finetune", 0.9 * good[151:], 151, ago=3000, fork_from={"run": parent.run_id, "step": 150})
    return Run.objects.get(id=parent.run_id), Run.objects.get(id=fork.run_id)


def test_old_branches_are_drawn_on_demand_and_the_two_runs_name_each_other(tab, people):
    """The stitched curve first; the toggle adds what was left behind and lives in the URL; the overview says from where and who."""
    parent, fork = family(people["alice"])
    tab.goto(f"/runs/{parent.id}")
    lineage = tab.locator("#lineage")
    expect(lineage).to_contain_text("Attempt 2 went back to step 200")
    expect(lineage.get_by_role("link", name="finetune")).to_be_visible()
    lineage.get_by_role("link", name="Show what it left behind").click()
    expect(tab).to_have_url(re.compile("branch=all"))
    painted(tab, "loss", 400 + 119)
    expect(tab.locator("[data-branches]")).to_have_attribute("aria-pressed", "true")
    tab.click("[data-branches]")
    expect(tab.locator('[data-chart="loss"] .drawn')).to_have_text("400 points")
    assert "branch" not in tab.url
    tab.goto(f"/runs/{fork.id}")
    expect(tab.locator("#lineage")).to_contain_text("Forked from base at step 150")
    painted(tab, "loss", 400)
    expect(tab.locator("[data-branches]")).to_have_count(0)
    tab.goto(f"/compare?runs={parent.id},{fork.id}")
    painted(tab, "loss", 800)
    expect(tab.locator("[data-branches]")).to_be_visible()


def test_a_live_chart_follows_a_run_that_goes_back(tab, people):
    """What was drawn and is no longer the run's history goes from the screen without a reload."""
    first = start(people["alice"], "live", np.linspace(3, 2, 60), ago=600)
    tab.goto(f"/runs/{first.run_id}/charts")
    painted(tab, "loss", 60)
    again = start(people["alice"], "live", [], run=first.run_id, ago=60, rewind_to=29)
    expect(tab.locator('[data-chart="loss"] .drawn')).to_have_text("30 points")
    log(again, [1.0, 0.9], 30)
    expect(tab.locator('[data-chart="loss"] .drawn')).to_have_text("32 points")
