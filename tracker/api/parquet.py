"""Runs at full resolution as Parquet: many as one tar stream, or one run's file (docs/export.md)."""

from __future__ import annotations

import json
from typing import Any

from django.http import HttpRequest, StreamingHttpResponse

from tracker.api import auth
from tracker.api.runs import boolean
from tracker.domain.errors import Invalid
from tracker.domain.ids import is_id
from tracker.services import export, export_tree, runs
from tracker.services.export_tree import Question

MOST_BYTES = 32 * 2**20
MOST_RUNS = 100_000
MOST_HAVE = 500_000
_HEADERS = {"Cache-Control": "private, no-store", "X-Accel-Buffering": "no"}
_TEXTS = ("project", "filter", "state")


@auth.plain(methods=("GET", "POST"))
def tree(request: HttpRequest, user, token) -> StreamingHttpResponse:
    """GET: the question in the query (``keys`` by comma). POST: ``{"project", "filter", "state", "archived", "runs", "keys", "have"}``."""
    have: dict[str, str] = {}
    if request.method == "GET":
        asked = request.GET
        question = Question(
            **{name: asked.get(name, "") for name in ("filter", "state")},
            project=asked.get("project") or None,
            archived=boolean(asked.get("archived")),
            runs=_runs([run for run in asked["runs"].split(",") if run]) if asked.get("runs") else None,
            keys=_keys([key for key in asked.get("keys", "").split(",") if key]),
        )
    else:
        question, have = _told(request)
    answer = StreamingHttpResponse(
        export_tree.stream(user=user, question=question, have=have), content_type="application/x-tar", headers=_HEADERS
    )
    answer["Content-Disposition"] = 'attachment; filename="encore.tar"'
    return answer


@auth.plain(methods=("GET",))
def one(request: HttpRequest, user, token, id: str) -> StreamingHttpResponse:
    """All points of a run, of the keys and globs in ``keys`` (by comma) if it says any."""
    run = runs.get(user=user, run_id=id)
    keys = _keys([key for key in request.GET.get("keys", "").split(",") if key])
    parts = export_tree.points_of(user=user, run=run, keys=keys)
    answer = StreamingHttpResponse(parts, content_type="application/vnd.apache.parquet", headers=_HEADERS)
    answer["Content-Disposition"] = f'attachment; filename="{run.id}.parquet"'
    return answer


def _told(request: HttpRequest) -> tuple[Question, dict[str, str]]:
    body = request.body
    if len(body) > MOST_BYTES:
        raise Invalid("The question is longer than 32 MiB: export in portions.")
    try:
        told = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise Invalid("The question is a JSON object: project, filter, state, archived, runs, keys, have.")
    if unknown := sorted(set(told) - {*_TEXTS, "archived", "runs", "keys", "have"}):
        raise Invalid(f"{str(unknown[0])[:80]!r} is no part of the question.", **{"unknown": str(unknown[0])[:80]})
    for name in _TEXTS:
        if told.get(name) is not None and not isinstance(told[name], str):
            raise Invalid(f"{name} is a text.", **{name: "malformed"})
    archived = told.get("archived")
    if archived is not None and not isinstance(archived, bool):
        raise Invalid("archived is true, false or null (both).", archived="malformed")
    have = told.get("have", {})
    if not isinstance(have, dict) or len(have) > MOST_HAVE or not all(isinstance(mark, str) for mark in have.values()):
        raise Invalid(f"have gives the mark of each run that need not come again, {MOST_HAVE} at most.", have="malformed")
    question = Question(
        project=told.get("project") or None,
        filter=told.get("filter") or "",
        state=told.get("state") or "",
        archived=archived,
        runs=None if told.get("runs") is None else _runs(told["runs"]),
        keys=_keys(told.get("keys") or []),
    )
    return question, have


def _keys(found: Any) -> list[str]:
    if not isinstance(found, list) or not all(isinstance(key, str) and 0 < len(key) <= 500 and "\0" not in key for key in found):
        raise Invalid("keys is a list of metric names or globs.", keys="malformed")
    if len(found) > export.MOST_KEYS:
        raise Invalid(f"keys has more than {export.MOST_KEYS} entries: use globs.", keys="too many")
    return found


def _runs(found: Any) -> list[str]:
    if not isinstance(found, list) or len(found) > MOST_RUNS or not all(isinstance(run, str) and is_id(run) for run in found):
        raise Invalid(f"runs is a list of at most {MOST_RUNS} ids.", runs="malformed")
    return found
