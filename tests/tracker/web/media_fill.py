"""Runs with media of every kind, encoded by the SDK itself and brought in by the services that a sender's requests go through."""

from __future__ import annotations

import math

import numpy as np

import sdk
from tests.tracker.web import fill
from tracker.models import Run

HOSTILE = """<!doctype html><p id="said">quiet</p><script>
const tries = {};
try { tries.cookie = document.cookie; } catch (error) { tries.cookie = error.name; }
try { tries.parent = window.parent.document.title; } catch (error) { tries.parent = error.name; }
try { tries.storage = String(window.localStorage.length); } catch (error) { tries.storage = error.name; }
tries.origin = String(window.origin);
fetch("/api/v1/me").then(() => { tries.fetch = "went through"; }, (error) => { tries.fetch = error.name; }).finally(() => {
  document.getElementById("said").textContent = JSON.stringify(tries);
});
</script><img src="/api/v1/me"><form action="/logout" method="post"></form>"""
SVG = (
    b'<svg xmlns="http://www.w3.org/2000/svg" width="80" height="40" onload="document.documentElement.dataset.ran=1">'
    b'<script>document.documentElement.dataset.ran=1</script><circle cx="40" cy="20" r="18" fill="teal"/></svg>'
)


def doc(trainer: fill.Trainer, key: str, value: sdk.Media, step: int, **place) -> dict:
    run = Run.objects.get(id=trainer.run_id)
    found = value.encode(lambda data: fill.put(run, bytes(data)))
    found["meta"] = {**found["meta"], **place}
    return {"type": "media", "key": key, **found, "_step": step}


def smooth(rng, height: int, width: int, step: int):
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(6 * x + step), np.cos(5 * y - step / 3), np.sin(8 * x * y + step)]
    return np.stack([(wave + 1) / 2 for wave in waves], -1) * 0.9 + 0.1 * rng.random((height, width, 3))


def run_with_media(user, project: str = "gpt", name: str = "painter", *, steps: int = 6, state: str = "finished", ranks: int = 1) -> Run:
    rng = np.random.default_rng(7)
    run_id = None
    for rank in range(ranks):
        trainer = fill.Trainer(user, project, name, run=run_id, rank=rank, world=ranks)
        run_id = trainer.run_id
        trainer.batch(docs=[found for at in range(steps) for found in _at(trainer, rng, at)])
        if state != "running":
            trainer.finish(state)
    return Run.objects.get(id=run_id)


def _at(trainer: fill.Trainer, rng, at: int) -> list[dict]:
    step = at * 100
    notes = f"# Step {step}\n\nBetter than **before**:\n\n- loss `0.{at}`\n- see [the docs](https://example.org/x)\n\n"
    notes += "<script>document.documentElement.dataset.ran=1</script>"
    roc = {
        "data": [{"x": [0, 0.2, 1], "y": [0, 0.7 + at / 50, 1], "mode": "lines", "name": "roc"}],
        "layout": {"title": {"text": f"ROC at {step}"}},
    }
    values = {
        "samples/reconstruction": sdk.Image(smooth(rng, 96, 160, at), caption=f"reconstruction {at}"),
        "sound/voice": sdk.Audio(np.sin(np.arange(8000) / (6 + at)).astype("float32"), rate=8000, caption="vowel"),
        "clips/walk": sdk.Video(np.stack([smooth(rng, 48, 64, n) for n in range(8)]), fps=8),
        "weights/block.0": sdk.Histogram(rng.normal(at / 4, 1 + at / 10, 4000), bins=48),
        "text/sample": sdk.Text(f"Once upon a time <b>there</b> were {at} owls & a fox."),
        "text/notes": sdk.Text(notes, markdown=True),
        "tables/predictions": predictions(rng, 120 + at),
        "figures/roc": sdk.Plotly(roc),
    }
    digits = [sdk.Image(rng.random((28, 28)), caption=f"is {at}, says {n}") for n in range(6)]
    return [
        *[doc(trainer, key, value, step) for key, value in values.items()],
        *[doc(trainer, "samples/digits", digit, step, index=n, of=6) for n, digit in enumerate(digits)],
    ]


def predictions(rng, rows: int) -> sdk.Table:
    table = sdk.Table(columns=["id", "input", "target", "score", "thumb"])
    for at in range(rows):
        score = float(rng.random()) if at != 3 else math.nan
        table.add(at, f"row {at} <i>of</i> text", ["cat", "dog", "owl"][at % 3], score, sdk.Image(rng.random((12, 12))) if at < 8 else None)
    return table
