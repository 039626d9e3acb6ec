"""Streams for programs: all runs of a question, all points of many runs (docs/api.md, Export)."""

from __future__ import annotations

from django.http import HttpRequest, StreamingHttpResponse

from tracker.api import auth, queries
from tracker.api.runs import boolean
from tracker.services import export

CONTENT_TYPE = "application/vnd.encore.history"
# A proxy that gathers an answer before it hands it on would turn the stream into one late piece.
_HEADERS = {"Cache-Control": "private, no-store", "X-Accel-Buffering": "no"}


@auth.plain(methods=("GET",))
def all_runs(request: HttpRequest, user, token) -> StreamingHttpResponse:
    """Parameters as those of GET runs, without a limit."""
    asked = request.GET
    found = export.pages(user=user, limit=export.PAGE, asked={**_question(asked), "cursor": asked.get("cursor") or None})
    keys = [key for key in asked.get("keys", "").split(",") if key]
    return StreamingHttpResponse(export.run_lines(found, keys), content_type="application/x-ndjson", headers=_HEADERS)


@auth.plain(methods=("POST",))
def history(request: HttpRequest, user, token) -> StreamingHttpResponse:
    """``{"keys": […], "runs": [ids] or project/filter/state/sort, "ranks", "from", "to", "attempt", "cursor"}``."""
    query = queries.body(request)
    asked, keys, lo, hi, branch = queries.history(query, most_keys=export.MOST_KEYS)
    found = export.pages(user=user, limit=export.RUNS_AT_ONCE, asked=asked)
    ranks = export.ranks_asked(query.get("ranks"))
    frames = export.history_frames(found, keys, ranks, lo, hi, user=user, branch=branch)
    return StreamingHttpResponse(frames, content_type=CONTENT_TYPE, headers=_HEADERS)


def _question(asked) -> dict:
    return {
        "project": asked.get("project") or None,
        "filter": asked.get("filter", ""),
        "sort": asked.get("sort", ""),
        "state": asked.get("state", ""),
        "archived": boolean(asked.get("archived")),
    }
