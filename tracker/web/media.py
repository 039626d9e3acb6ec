"""Images, sounds, tables and figures of a run by step, and of many runs side by side. The bytes come by the API's content route."""

from __future__ import annotations

import json

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from tracker.domain.errors import NotFound
from tracker.models import Run
from tracker.services import blobs
from tracker.services import media as service
from tracker.web import run as runs
from tracker.web.page import page

MOST_FIGURE_BYTES = 40 * 2**20
# The figure's page stands in an opaque origin: what it draws was written by a user. Only our own scripts run in it.
FIGURE_POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; script-src {own}; style-src {own} 'unsafe-inline'; img-src data: blob:; "
    "font-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)


@page
def media(request: HttpRequest, run_id: str) -> HttpResponse:
    run = runs.find(request, run_id)
    context = runs.head(request, run, "media")
    context.update(cards_of([run]), slug=run.project.slug)
    return runs.answer(request, context)


def cards_of(of: list[Run]) -> dict:
    """One card a key, for every key that any of the runs has."""
    cards: dict[str, dict] = {}
    for run in of:
        for one in service.keys(run):
            card = cards.setdefault(one["key"], {"key": one["key"], "kinds": [], "count": 0})
            card["kinds"] += [kind for kind in one["kinds"] if kind not in card["kinds"]]
            card["count"] += one["count"]
    for card in cards.values():
        card["kinds_text"] = ", ".join(card["kinds"])
    # Histograms of a hundred layers stand behind what people logged by hand.
    ordered = sorted(cards.values(), key=lambda card: (card["kinds"] == ["histogram"], card["key"]))
    told = [{"id": run.id, "name": run.name, "swatch": getattr(run, "swatch", "")} for run in of]
    return {"cards": ordered[: service.MOST_KEYS], "media_runs_json": json.dumps(told)}


@page
def figure(request: HttpRequest, run_id: str, number: str) -> HttpResponse:
    """A logged Plotly figure, drawn by Plotly's strict bundle in a frame of its own."""
    run = runs.find(request, run_id)
    if not (number.isascii() and number.isdigit() and len(number) < 19):
        raise NotFound
    row = service.get(run, int(number))
    raw = blobs.read_small(project_id=run.project_id, digest=row.digest, most=MOST_FIGURE_BYTES) if row.kind == "plotly" else None
    if raw is None:
        raise NotFound("This figure's bytes have not arrived yet, or it is none.")
    try:
        drawn = json.loads(raw)
        drawn = drawn if isinstance(drawn, dict) else {}
    except (ValueError, RecursionError):
        drawn = {}
    answer = render(request, "run/_figure.html", {"drawn": {name: drawn.get(name) for name in ("data", "layout", "frames")}})
    # Not every browser takes 'self' for where the page came from when the page itself has no origin: it is said in full too.
    own = " ".join(dict.fromkeys(["'self'", f"{request.scheme}://{request.get_host()}", settings.ENCORE_URL]))
    answer["Content-Security-Policy"] = FIGURE_POLICY.format(own=own)
    answer["X-Frame-Options"] = "SAMEORIGIN"
    answer["Cache-Control"] = "private, max-age=3600"
    return answer
