"""Charts over what the chart API tells: markers of NaN in a series too long to be drawn whole, and a series that cannot be read."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.tracker.web import fill
from tracker.models import MetricBlock
from tracker.services import compaction, summaries
from tracker.store import reading
from tracker.store.blobs import blob_store

# How much of a chart is painted: two panels of equal lines differ by the cross that stands for a NaN.
INK = """panel => {
  const canvas = panel.querySelector(".plot canvas");
  const [w, h] = [canvas.width, canvas.height];
  const at = canvas.getContext("2d").getImageData(0, 0, w, h).data;
  let found = 0;
  for (let i = 3; i < at.length; i += 4) if (at[i]) found += 1;
  return found;
}"""


def test_a_nan_among_many_points_is_marked_and_counted(tab, people):
    """One in 20,000 shows in no bucket's mean: the panel says it, and draws its cross."""
    steps = range(20_000)
    values = fill.np.ones(20_000)
    trainer = fill.Trainer(people["alice"], "gpt", "long")
    times = [trainer.start_us + step * 1000 for step in steps]
    trainer.batch({"clean": values, "odd": fill.np.where(fill.np.arange(20_000) == 7000, fill.np.nan, values)}, steps, times)
    summaries.summarise_run(trainer.run_id)
    tab.goto(f"/runs/{trainer.run_id}/charts")
    inked = {}
    for key in ("clean", "odd"):
        panel = tab.locator(f'[data-chart="{key}"]')
        expect(panel).to_have_attribute("data-ready", "1")
        expect(panel.locator(".drawn")).to_contain_text("of 20,000 points drawn")
        expect(panel.locator(".plot")).to_have_attribute("data-painted", "1000")
        inked[key] = panel.evaluate(INK)
    expect(tab.locator('[data-chart="odd"] .odd')).to_have_text("1 NaN")
    assert inked["odd"] > inked["clean"]


def test_a_series_that_cannot_be_read_says_so_and_the_others_are_drawn(tab, people):
    trainers = [fill.Trainer(people["alice"], "gpt", name) for name in ("sound", "harmed")]
    for trainer in trainers:
        times = [trainer.start_us + step * fill.SECOND for step in range(50)]
        trainer.batch({"loss": fill.np.linspace(3, 2, 50)}, range(50), times)
        compaction.compact_run(trainer.run_id, force=True)
        summaries.summarise_run(trainer.run_id)
    blob_store().delete(MetricBlock.objects.get(run=trainers[1].run_id).object_key)
    reading.forget()
    tab.goto(f"/runs/{trainers[1].run_id}/charts")
    expect(tab.locator('[data-chart="loss"] .chart-note')).to_contain_text("cannot be read")
    tab.goto(f"/runs/{trainers[0].run_id}/charts")
    expect(tab.locator('[data-chart="loss"] .drawn')).to_have_text("50 points")
