"""Streams for programs: all runs of a question, all points of many runs (docs/api.md, Export)."""

from __future__ import annotations

import json

from django.http import HttpRequest, StreamingHttpResponse

from tracker.api import auth
from tracker.api.runs import boolean
from tracker.domain.errors import Invalid
from tracker.domain.ids import is_id
from tracker.services import export
from tracker.services.series import branch_of

CONTENT_TYPE = "application/vnd.encore.history"
MOST_BYTES = 2**20
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
    body = request.body
    if len(body) > MOST_BYTES:
        raise Invalid("The query is longer than 1 MiB: ask in portions.")
    try:
        query = json.loads(body)
    except (ValueError, RecursionError):
        query = None
    if not isinstance(query, dict):
        raise Invalid("The query is a JSON object with keys, and runs or a project and a filter.")
    keys = query.get("keys")
    if not isinstance(keys, list) or not keys or not all(isinstance(k, str) and len(k) <= 500 and "\0" not in k for k in keys):
        raise Invalid("keys is a list of metric names or globs.", keys="malformed")
    if len(keys) > export.MOST_KEYS:
        raise Invalid(f"keys has more than {export.MOST_KEYS} entries: ask in portions.", keys="too many")
    steps = [query.get(name) for name in ("from", "to")]
    for name, step in zip(("from", "to"), steps, strict=True):
        if step is not None and (not isinstance(step, int) or isinstance(step, bool) or not -(2**63) <= step < 2**63):
            raise Invalid(f"{name} is a step: a whole number of 64 bits.", **{name: "malformed"})
    texts = {name: query.get(name) for name in ("project", "filter", "sort", "state", "cursor")}
    for name, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise Invalid(f"{name} is a text.", **{name: "malformed"})
    asked = {**_question({name: text or "" for name, text in texts.items()}), "cursor": texts["cursor"] or None}
    ids = query.get("runs")
    if ids is not None and (not isinstance(ids, list) or not all(isinstance(one, str) and is_id(one) for one in ids)):
        raise Invalid("runs is a list of ids.", runs="malformed")
    found = export.pages(user=user, limit=export.RUNS_AT_ONCE, asked={**asked, "ids": ids})
    ranks, branch = export.ranks_asked(query.get("ranks")), branch_of(None, query.get("attempt"))
    frames = export.history_frames(found, tuple(dict.fromkeys(keys)), ranks, *steps, user=user, branch=branch)
    return StreamingHttpResponse(frames, content_type=CONTENT_TYPE, headers=_HEADERS)


def _question(asked) -> dict:
    return {
        "project": asked.get("project") or None,
        "filter": asked.get("filter", ""),
        "sort": asked.get("sort", ""),
        "state": asked.get("state", ""),
        "archived": boolean(asked.get("archived")),
    }
