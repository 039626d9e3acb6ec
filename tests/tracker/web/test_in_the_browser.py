"""What people do on the pages, done in Chromium against a live server."""

from __future__ import annotations

import re
import time

import pytest
from playwright.sync_api import expect

from tests.tracker.web import fill
from tracker.models import Run, Token
from tracker.services import accounts, summaries

pytestmark = pytest.mark.slow
PAINTED = """key => Number(document.querySelector(`[data-chart="${key}"] .plot`)?.dataset.painted || 0)"""
LIT = """key => {
  const canvas = document.querySelector(`[data-chart="${key}"] canvas`);
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const colours = new Set();
  for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 200) colours.add(`${data[i] >> 5},${data[i + 1] >> 5},${data[i + 2] >> 5}`);
  return colours.size;
}"""


@pytest.fixture
def runs(transactional_db, people):
    return [fill.run_of(people["alice"], "gpt", f"run-{at}", steps=300, seed=at, lr=10.0**-at, with_recipe=False) for at in range(1, 4)]


def painted(tab, key: str, points: int) -> None:
    """Wait until a panel has drawn so many points. (The policy forbids the eval that Playwright's own waiting needs.)"""
    end = time.monotonic() + 30
    while (found := tab.evaluate(PAINTED, key)) < points:
        assert time.monotonic() < end, f"{key}: {found} of {points} points painted; {tab.complaints}"
        tab.wait_for_timeout(50)


def test_one_filters_sorts_and_compares_two_runs_by_keyboard(tab, runs):
    tab.goto("/projects/gpt")
    tab.keyboard.press("/")
    tab.keyboard.type("config.lr < 0.05")
    tab.keyboard.press("Enter")
    expect(tab.locator("tbody tr")).to_have_count(2)
    assert "filter=config.lr" in tab.url
    tab.get_by_role("columnheader", name="Name").get_by_role("link").click()
    expect(tab.locator("th.name-col[aria-sort=descending]")).to_be_visible()
    assert "config.lr" in tab.locator("#filter").input_value()
    tab.keyboard.press("j")
    tab.keyboard.press("x")
    tab.keyboard.press("j")
    tab.keyboard.press("x")
    expect(tab.locator("#bulk [data-count]")).to_have_text("2 selected")
    tab.keyboard.press("c")
    tab.wait_for_url("**/compare?runs=*")
    painted(tab, "train/loss", 600)
    assert tab.evaluate(LIT, "train/loss") >= 2


def test_a_mistake_in_the_filter_keeps_the_page_and_points_at_the_column(tab, runs):
    tab.goto("/projects/gpt")
    tab.fill("#filter", "state = = running")
    tab.press("#filter", "Enter")
    expect(tab.locator("#filter-error")).to_contain_text("^")
    tab.fill("#filter", "")
    tab.press("#filter", "Enter")
    expect(tab.locator("tbody tr")).to_have_count(3)


def test_selection_survives_the_live_update_and_new_runs_come_in(tab, people, runs):
    tab.goto("/projects/gpt")
    tab.locator("[data-pick]").first.check()
    fill.run_of(people["alice"], "gpt", "newcomer", steps=3, log=False, with_recipe=False)
    tab.mouse.move(5, 5)
    expect(tab.get_by_role("link", name="newcomer", exact=True)).to_be_visible()
    expect(tab.locator("[data-pick]:checked")).to_have_count(1)
    expect(tab.locator("#bulk")).to_be_visible()


def test_dragging_over_a_chart_fetches_exactly_that_range_for_all_panels(tab, people):
    run = fill.run_of(people["alice"], "gpt", "long", steps=20_000, with_recipe=False, log=False)
    tab.goto(f"/runs/{run.id}/charts")
    painted(tab, "train/loss", 100)
    panel = tab.locator('[data-chart="train/loss"]')
    expect(panel.locator(".drawn")).to_contain_text("of 20,000 points drawn")
    panel.scroll_into_view_if_needed()
    box = panel.locator(".u-over").bounding_box()
    y = box["y"] + box["height"] / 2
    tab.mouse.move(box["x"] + box["width"] * 0.50, y)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.505, y, steps=3)
    tab.mouse.move(box["x"] + box["width"] * 0.51 + 8, y, steps=5)
    tab.mouse.up()
    expect(panel.locator(".drawn")).to_have_text(re.compile(r"^\d+ points$|^1,\d+ points$"))
    assert "from=" in tab.url
    expect(tab.locator("[data-zoom-reset]")).to_be_visible()
    expect(tab.locator('[data-chart="val/loss"] .drawn')).not_to_contain_text("20,000")
    tab.click("[data-zoom-reset]")
    expect(panel.locator(".drawn")).to_contain_text("of 20,000 points drawn")


def test_axis_log_and_smoothing_change_the_picture_and_live_in_the_url(tab, runs):
    tab.goto(f"/runs/{runs[0].id}/charts")
    painted(tab, "train/loss", 300)
    tab.click("[data-log]")
    tab.click('[data-x="relative"]')
    tab.locator("[data-smooth]").fill("0.9")
    expect(tab).to_have_url(re.compile("smooth=0.9"))
    assert "log=1" in tab.url
    assert "x=relative" in tab.url
    painted(tab, "train/loss", 300)
    tab.reload()
    painted(tab, "train/loss", 300)
    expect(tab.locator('[data-x="relative"]')).to_have_attribute("aria-pressed", "true")


def test_the_crosshair_says_the_value_in_the_title_line(tab, runs):
    tab.goto(f"/runs/{runs[0].id}/charts")
    painted(tab, "train/loss", 300)
    panel = tab.locator('[data-chart="train/loss"]')
    panel.locator(".u-over").hover()
    expect(panel.locator("output")).to_contain_text("step")
    expect(tab.locator('[data-chart="train/grad_norm"] output')).to_contain_text("step")


def test_nan_is_marked_and_counted(tab, people):
    run = fill.run_of(people["alice"], "gpt", "diverged", steps=400, diverge=200, lr=3e-4, with_recipe=False, log=False)
    tab.goto(f"/runs/{run.id}/charts")
    painted(tab, "train/loss", 300)
    expect(tab.locator('[data-chart="train/loss"] .odd')).to_contain_text("NaN")


def test_a_live_run_grows_before_ones_eyes(tab, people):
    trainer = fill.Trainer(people["alice"], "gpt", "live")
    trainer.batch({"loss": fill.np.linspace(3, 2, 50)}, range(50), [trainer.start_us + step * fill.SECOND for step in range(50)])
    summaries.summarise_run(trainer.run_id)
    tab.goto(f"/runs/{trainer.run_id}/charts")
    painted(tab, "loss", 50)
    trainer.batch({"loss": fill.np.linspace(2, 1, 50)}, range(50, 100), [trainer.start_us + step * fill.SECOND for step in range(50, 100)])
    painted(tab, "loss", 100)
    expect(tab.locator('[data-chart="loss"] .drawn')).to_have_text("100 points")


def test_a_failed_request_says_why_and_can_be_tried_again(tab, runs):
    broken = {"now": True}
    tab.route("**/api/v1/series", lambda route: route.abort() if broken["now"] else route.continue_())
    tab.goto(f"/runs/{runs[0].id}/charts")
    panel = tab.locator('[data-chart="train/loss"]')
    expect(panel.locator(".chart-note")).to_contain_text("cannot be reached")
    broken["now"] = False
    panel.get_by_role("button", name="Try again").click()
    painted(tab, "train/loss", 300)
    tab.complaints.clear()  # the browser itself reports the aborted requests


def test_logs_keep_ansi_colours_as_classes_and_markup_as_text(tab, runs):
    tab.goto(f"/runs/{runs[0].id}/logs")
    expect(tab.locator(".log-text .fg2").first).to_be_visible()
    expect(tab.locator(".log-lines")).to_contain_text("<b>this is not bold</b>")
    expect(tab.locator(".log-lines b")).to_have_count(0)
    expect(tab.locator(".log-text", has_text="saving")).to_have_text(["saving: 100%"])
    tab.fill("#log-q", "UserWarning")
    tab.press("#log-q", "Enter")
    expect(tab.locator(".log-line")).to_have_count(1)


def test_code_shows_the_snapshot_with_what_differs_from_the_commit(tab, people):
    run = fill.run_of(people["alice"], "gpt", "with code", steps=3)
    tab.goto(f"/runs/{run.id}/code")
    expect(tab.locator(".source")).to_contain_text("class Block")
    tab.locator("summary", has_text="model").click()
    tab.get_by_role("link", name="blocks.py").click()
    expect(tab.locator(".source")).to_contain_text("WIDTH = 512")
    expect(tab.locator(".files .mark-untracked")).to_have_count(1)
    assert "path=model/blocks.py" in tab.url.replace("%2F", "/")


def test_only_differences_are_shown_and_all_on_demand(tab, runs):
    tab.goto(f"/compare?runs={runs[0].id},{runs[1].id}&tab=config")
    expect(tab.locator("#diff tbody tr")).to_have_count(2)
    tab.get_by_role("link", name=re.compile("^All")).click()
    expect(tab.locator("#diff tbody th", has_text="batch_size")).to_be_visible()


def test_reproduce_is_two_keys_away_and_its_page_shows_the_five_steps(tab, people):
    run = fill.run_of(people["alice"], "gpt", "play me", steps=20)
    tab.goto(f"/runs/{run.id}")
    tab.keyboard.press("r")
    expect(tab.get_by_role("dialog", name=re.compile("Reproduce"))).to_be_visible()
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/reproductions/*")
    expect(tab.locator(".steps li")).to_have_count(5)
    expect(tab.get_by_text("No worker is online")).to_be_visible()
    tab.get_by_role("button", name="Cancel").click()
    expect(tab.locator(".page-head .s-cancelled")).to_be_visible()


def test_config_changed_in_the_dialog_goes_into_the_job(tab, people):
    run = fill.run_of(people["alice"], "gpt", "change me", steps=20)
    tab.goto(f"/runs/{run.id}")
    tab.click("[data-reproduce]")
    tab.get_by_text("Options").click()
    tab.get_by_label("model.layers").fill("24")
    tab.get_by_role("dialog").get_by_role("button", name="Reproduce").click()
    tab.wait_for_url("**/reproductions/*")
    assert run.reproductions.get().overrides["config"] == {"model": {"layers": 24}}


def test_a_verdict_leads_with_its_sentence_and_draws_the_chosen_metric(tab, people):
    run = fill.run_of(people["alice"], "gpt", "first", steps=600, with_recipe=False)
    rerun = fill.run_of(people["alice"], "gpt", "again", steps=600, with_recipe=False)
    one = fill.reproduction_of(run, rerun, "diverged", people["alice"])
    tab.goto(f"/reproductions/{one.id}")
    expect(tab.locator(".verdict .sentence")).to_contain_text("Diverged at step 412")
    painted(tab, "train/loss", 1200)
    tab.get_by_role("link", name="val/accuracy").click()
    painted(tab, "val/accuracy", 1200)


def test_the_jump_palette_finds_a_run_by_a_part_of_its_name(tab, runs):
    tab.goto("/")
    tab.keyboard.press("Control+k")
    tab.keyboard.type("run-2")
    expect(tab.locator("#jump-list a")).to_have_count(1)
    tab.keyboard.press("Enter")
    tab.wait_for_url(f"**/runs/{runs[1].id}")


def test_a_run_is_renamed_and_the_new_name_is_text(tab, runs):
    tab.goto(f"/runs/{runs[0].id}")
    tab.get_by_role("button", name="Edit").click()
    tab.get_by_label("Name").fill("<i>better</i>")
    tab.get_by_role("button", name="Save").click()
    expect(tab.get_by_role("heading", level=1)).to_have_text("<i>better</i>")
    assert Run.objects.get(id=runs[0].id).name == "<i>better</i>"


def test_the_login_link_logs_in_by_itself_and_only_once(chromium, live_server, people):
    secret = accounts.login_link(people["alice"])
    context = chromium.new_context(base_url=live_server.url)
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.goto(f"/login/link/{secret}")
    expect(page.get_by_role("heading", name="Projects")).to_be_visible()
    other = chromium.new_context(base_url=live_server.url).new_page()
    other.goto(f"/login/link/{secret}")
    expect(other.get_by_role("heading", name="This link is used up")).to_be_visible()
    other.context.close()
    context.close()


def test_a_token_is_made_shown_and_revoked(tab, people):
    tab.goto("/settings")
    tab.fill("#token-name", "laptop")
    tab.get_by_role("button", name="Create token").click()
    expect(tab.locator("#secret")).to_have_text(re.compile("^enc_"))
    tab.on("dialog", lambda dialog: dialog.accept())
    tab.get_by_role("button", name="Revoke").click()
    expect(tab.get_by_text("Token revoked")).to_be_visible()
    assert Token.objects.get(name="laptop").revoked_at


@pytest.mark.parametrize(("width", "theme"), [(390, "light"), (1440, "dark"), (3840, "light")])
def test_no_page_is_wider_than_its_window(tab, people, width, theme):
    run = fill.run_of(people["alice"], "gpt", fill.LONG[:240], steps=30, tags=["t" * 100], config={"k" * 200: "v" * 400})
    one = fill.reproduction_of(run, None, "blocked", people["alice"])
    tab.set_viewport_size({"width": width, "height": 844})
    tab.emulate_media(color_scheme=theme)
    tabs = ["", "/charts", "/system", "/logs", "/code", "/environment", "/reproductions"]
    pages = ["/", "/projects/gpt", "/runs", "/compare", f"/compare?runs={run.id}&tab=config", "/reproductions", "/workers", "/settings"]
    for address in [*pages, f"/reproductions/{one.id}", *[f"/runs/{run.id}{name}" for name in tabs]]:
        tab.goto(address)
        assert tab.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0, address
