"""The Media tab: every kind is shown in Chromium, moved through by keyboard, and nothing that a run logged runs on our origin."""

from __future__ import annotations

import json

import numpy as np
import pytest
from playwright.sync_api import expect

import sdk
from tests.tracker.web import fill, media_fill
from tracker.models import Media

pytestmark = pytest.mark.slow


def test_an_empty_tab_shows_the_lines_that_would_fill_it(alice, people):
    run = fill.run_of(people["alice"], "gpt", "plain", steps=3, log=False, with_recipe=False)
    page = alice.get(f"/runs/{run.id}/media").content.decode()
    assert "sdk.Image(x" in page
    assert "project=&quot;gpt&quot;" in page or 'project="gpt"' in page


def test_a_stranger_gets_neither_the_tab_nor_a_figure(charlie, bob, people):
    run = media_fill.run_with_media(people["alice"], steps=1)
    figure = Media.objects.get(run=run, kind="plotly")
    assert charlie.get(f"/runs/{run.id}/media").status_code == 404
    assert charlie.get(f"/runs/{run.id}/media/{figure.id}/figure").status_code == 404
    assert bob.get(f"/runs/{run.id}/media/{figure.id}/figure").status_code == 200


def test_keys_and_captions_are_text_whatever_they_hold(alice, people):
    trainer = fill.Trainer(people["alice"], "gpt", "x")
    trainer.batch(docs=[media_fill.doc(trainer, '"><script>alert(1)</script>', sdk.Text("t", caption="<img src=x onerror=alert(1)>"), 1)])
    page = alice.get(f"/runs/{trainer.run_id}/media").content.decode()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.fixture
def run(transactional_db, people):
    return media_fill.run_with_media(people["alice"], steps=3)


def card(tab, key: str):
    found = tab.locator(f'[data-media-key="{key}"]')
    found.scroll_into_view_if_needed()
    return found


def test_every_kind_is_shown_at_its_step(tab, run):
    tab.goto(f"/runs/{run.id}/media")
    expect(tab.locator("[data-media-key]")).to_have_count(9)
    picture = card(tab, "samples/reconstruction").locator("img")
    expect(picture).to_have_js_property("naturalWidth", 160)
    expect(card(tab, "samples/reconstruction")).to_contain_text("reconstruction 2")
    expect(card(tab, "samples/digits").locator("img")).to_have_count(6)
    expect(card(tab, "clips/walk").locator("img")).to_have_js_property("naturalWidth", 64)
    expect(card(tab, "sound/voice").locator("audio")).to_have_js_property("duration", 1)
    expect(card(tab, "text/sample").locator("pre")).to_have_text("Once upon a time <b>there</b> were 2 owls & a fox.")
    notes = card(tab, "text/notes")
    expect(notes.locator("h1")).to_have_text("Step 200")
    expect(notes.locator("strong")).to_have_text("before")
    expect(notes.locator("a")).to_have_attribute("href", "https://example.org/x")
    expect(notes).to_contain_text("<script>document.documentElement.dataset.ran=1</script>")
    expect(card(tab, "weights/block.0").locator("canvas").first).to_have_attribute("data-painted", "3")
    drawn = card(tab, "figures/roc").frame_locator("iframe")
    expect(drawn.locator("body[data-drawn] .main-svg").first).to_be_visible()
    expect(drawn.locator(".gtitle")).to_have_text("ROC at 200")
    assert tab.evaluate("document.documentElement.dataset.ran") is None


def test_the_slider_moves_by_keyboard_and_one_step_for_all_moves_the_others(tab, run):
    tab.goto(f"/runs/{run.id}/media")
    first = card(tab, "samples/reconstruction")
    expect(first).to_contain_text("reconstruction 2")
    first.locator("input[type=range]").focus()
    tab.keyboard.press("ArrowLeft")
    expect(first).to_contain_text("reconstruction 1")
    expect(first.locator("output")).to_have_text("step 100")
    card(tab, "text/notes")
    expect(card(tab, "text/notes").locator("h1")).to_have_text("Step 200")
    tab.locator("[data-together]").check()
    first.locator("[data-back]").click()
    expect(card(tab, "text/notes").locator("h1")).to_have_text("Step 0")
    assert "step=0" in tab.url
    tab.reload()
    expect(card(tab, "samples/reconstruction")).to_contain_text("reconstruction 0")


def test_a_table_of_thousands_is_sorted_filtered_and_paged(tab, people):
    trainer = fill.Trainer(people["alice"], "gpt", "t")
    rows = [[at, f"name {at * 7919 % 5000}", (at * 31 % 1000) / 8, 2**60 + at] for at in range(5000)]
    rows[17][2] = float("nan")
    trainer.batch(docs=[media_fill.doc(trainer, "t", sdk.Table(columns=["id", "name", "score", "big"], rows=rows), 1)])
    tab.goto(f"/runs/{trainer.run_id}/media")
    box = card(tab, "t")
    expect(box.locator("tbody tr")).to_have_count(50)
    expect(box.locator(".tools")).to_contain_text("1–50 of 5,000 rows")
    expect(box.locator("tbody tr").nth(1).locator("td").nth(3)).to_have_text("1152921504606846977")
    box.get_by_role("button", name="score").click()
    expect(box.locator("tbody tr").first.locator("td").nth(2)).to_have_text("0")
    box.get_by_role("button", name="score").click()
    expect(box.locator("tbody tr").first.locator("td").nth(2)).to_have_text("124.875")
    box.get_by_role("button", name="Next", exact=True).click()
    expect(box.locator(".tools")).to_contain_text("51–100 of 5,000 rows")
    box.get_by_label("Filter rows").fill("nan")
    expect(box.locator("tbody tr")).to_have_count(1)
    expect(box.locator("tbody tr td").first).to_have_text("17")


def test_a_logged_page_runs_without_our_origin_and_reaches_nothing(tab, people):
    """Its script runs, and can read neither cookie, storage nor the page around it, nor ask our API."""
    trainer = fill.Trainer(people["alice"], "gpt", "hostile")
    trainer.batch(docs=[media_fill.doc(trainer, "page", sdk.Html(media_fill.HOSTILE), 1)])
    tab.goto(f"/runs/{trainer.run_id}/media")
    inside = card(tab, "page").frame_locator("iframe")
    expect(inside.locator("#said")).to_contain_text("fetch")
    found = json.loads(inside.locator("#said").text_content())
    assert found == {
        "cookie": "SecurityError",
        "parent": "SecurityError",
        "storage": "SecurityError",
        "origin": "null",
        "fetch": "TypeError",
    }
    _only_the_policy_complained(tab)


def test_a_logged_page_opened_alone_has_no_origin_either(tab, people):
    trainer = fill.Trainer(people["alice"], "gpt", "hostile")
    trainer.batch(docs=[media_fill.doc(trainer, "page", sdk.Html(media_fill.HOSTILE), 1)])
    row = Media.objects.get(run_id=trainer.run_id)
    tab.goto(f"/api/v1/runs/{trainer.run_id}/media/{row.id}/content")
    expect(tab.locator("#said")).to_contain_text("fetch")
    found = json.loads(tab.locator("#said").text_content())
    assert (found["cookie"], found["origin"], found["fetch"]) == ("SecurityError", "null", "TypeError")
    _only_the_policy_complained(tab)


def test_scripts_in_an_svg_never_run(tab, people):
    trainer = fill.Trainer(people["alice"], "gpt", "svg")
    trainer.batch(docs=[media_fill.doc(trainer, "drawing", sdk.Image(media_fill.SVG), 1)])
    tab.goto(f"/runs/{trainer.run_id}/media")
    expect(card(tab, "drawing").locator("img")).to_have_js_property("naturalWidth", 80)
    row = Media.objects.get(run_id=trainer.run_id)
    tab.goto(f"/api/v1/runs/{trainer.run_id}/media/{row.id}/content")
    expect(tab.locator("circle")).to_be_visible()
    assert tab.locator("svg").get_attribute("data-ran") is None
    _only_the_policy_complained(tab)


def _only_the_policy_complained(tab) -> None:
    """What hostile media tried is in the console, refused by sandbox or policy; nothing else is."""
    odd = [text for text in tab.complaints if not any(word in text for word in ("Content Security Policy", "sandboxed", "Blocked"))]
    assert not odd
    assert tab.complaints
    tab.complaints.clear()


def test_broken_bytes_are_said_and_break_nothing(tab, people):
    """A table that is no JSON, one of the wrong shape, a histogram whose edges do not fit, a figure without data, an image that is none."""
    trainer = fill.Trainer(people["alice"], "gpt", "broken")
    run = trainer.run_id
    from tracker.models import Run

    put = lambda data: fill.put(Run.objects.get(id=run), data)  # noqa: E731
    table, shape, figure, image = put(b'{"columns": ['), put(b'{"columns": 5, "rows": {}}'), put(b"[1]"), put(b"not a png")
    docs = [
        {"key": "a-table", "kind": "table", "digest": table, "mime": "application/vnd.encore.table+json"},
        {"key": "b-shape", "kind": "table", "digest": shape, "mime": "application/vnd.encore.table+json"},
        {"key": "c-histogram", "kind": "histogram", "digest": None, "mime": "", "meta": {"counts": [1, 2, 3], "edges": ["x"]}},
        {"key": "d-figure", "kind": "plotly", "digest": figure, "mime": "application/vnd.plotly+json"},
        {"key": "e-image", "kind": "image", "digest": image, "mime": "image/png"},
        {"key": "f-unknown", "kind": "hologram", "digest": image, "mime": "model/hologram"},
        {"key": "g-fine", "kind": "text", "digest": None, "mime": "text/plain", "meta": {"text": "still here"}},
    ]
    trainer.batch(docs=[{"type": "media", "bytes": 1, "meta": {}, **doc, "_step": 1} for doc in docs])
    tab.goto(f"/runs/{run}/media")
    expect(card(tab, "a-table")).to_contain_text("its JSON cannot be read")
    expect(card(tab, "b-shape")).to_contain_text("it has no columns and rows")
    expect(card(tab, "c-histogram")).to_contain_text("edges and counts do not fit")
    expect(card(tab, "d-figure").frame_locator("iframe").locator("#figure-note")).to_have_text("This figure has no data.")
    expect(card(tab, "e-image")).to_contain_text("are no image")
    expect(card(tab, "f-unknown").locator("a.btn")).to_contain_text("model/hologram")
    expect(card(tab, "g-fine")).to_contain_text("still here")


def test_new_steps_and_new_keys_come_in_while_the_run_goes_on(tab, people):
    trainer = fill.Trainer(people["alice"], "gpt", "live", ago=5)
    picture = sdk.Image(np.zeros((8, 8), dtype="uint8"), caption="the first")
    trainer.batch(docs=[media_fill.doc(trainer, "s", picture, 1)])
    tab.goto(f"/runs/{trainer.run_id}/media")
    expect(card(tab, "s")).to_contain_text("the first")
    later = sdk.Image(np.ones((8, 8), dtype="uint8"), caption="the second")
    trainer.batch(docs=[media_fill.doc(trainer, "s", later, 2), media_fill.doc(trainer, "t", sdk.Text("new key"), 2)])
    expect(card(tab, "s")).to_contain_text("the second")
    expect(card(tab, "t")).to_contain_text("new key")


def test_two_runs_stand_side_by_side_at_the_last_step_they_share(tab, people):
    one = media_fill.run_with_media(people["alice"], name="one", steps=3)
    two = media_fill.run_with_media(people["alice"], name="two", steps=2)
    tab.goto(f"/compare?runs={one.id},{two.id}&tab=media")
    both = card(tab, "samples/reconstruction")
    expect(both.locator("output")).to_have_text("step 100")
    expect(both.locator(".media-of")).to_have_count(2)
    expect(both.locator("img")).to_have_count(2)
    expect(both.locator(".media-who").nth(1)).to_have_text("two")
    eye = tab.locator(".legend label").nth(0)
    eye.click()
    expect(both.locator(".media-of").nth(0)).to_be_hidden()
    eye.click()
    expect(both.locator(".media-of").nth(0)).to_be_visible()
    both.locator("[data-on]").click()
    expect(both.locator(".media-of").nth(1)).to_contain_text("Nothing at this step.")
