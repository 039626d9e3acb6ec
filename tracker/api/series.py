"""GET and POST series: the charts' one question (docs/series.md)."""

from __future__ import annotations

import json

from django.http import HttpRequest, HttpResponse

from tracker.api import auth, packing, queries
from tracker.services import series as service

CONTENT_TYPE = "application/vnd.encore.series"
FOR_GOOD = "private, max-age=31536000, immutable"
A_WHILE = "private, max-age=60, immutable"
"""Of sealed runs without the tag in the URL: one that is resumed all the same is seen within a minute."""
LOOK_AGAIN = "private, no-cache"


@auth.plain(methods=("GET", "POST"))
def series(request: HttpRequest, user, token) -> HttpResponse:
    """Answers the binary series format, or JSON with ``Accept: application/json``. An unchanged answer is 304 to ``If-None-Match``.

    GET has the query in ``q`` and may have the tag of an answer in ``v``: the answer of sealed runs is then kept for good.
    """
    is_get = request.method == "GET"
    question = service.ask(user=user, query=queries.parameter(request) if is_get else queries.body(request))
    as_json = "application/json" in request.headers.get("Accept", "")
    encoding = packing.choose(request)
    # A tail is asked for once: looking for its tag would cost more than most polls.
    tag = question.tag + ("j" if as_json else "") + encoding[:1] if question.plan.query.since is None else ""
    if tag and _is_known(request.headers.get("If-None-Match", ""), tag):
        response = HttpResponse(status=304)
    else:
        found = question.answer(as_json=as_json)
        body = found if isinstance(found, bytes) else json.dumps(found, separators=(",", ":")).encode()
        body, encoding = packing.packed(body, encoding)
        response = HttpResponse(body, content_type="application/json" if as_json else CONTENT_TYPE)
        if encoding:
            response["Content-Encoding"] = encoding
    if tag:
        response["ETag"] = f'"{tag}"'
    response["Cache-Control"] = _kept(question, request) if is_get else LOOK_AGAIN
    response["Vary"] = "Accept, Accept-Encoding, Cookie, Authorization"
    return response


def _is_known(told: str, tag: str) -> bool:
    return told.strip() == "*" or f'"{tag}"' in {one.strip().removeprefix("W/") for one in told.split(",")}


def _kept(question: service.Question, request: HttpRequest) -> str:
    if not question.is_lasting:
        return LOOK_AGAIN
    return FOR_GOOD if request.GET.get("v", "")[: len(question.tag)] == question.tag else A_WHILE
