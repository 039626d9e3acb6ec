"""POST series: the charts' one question (docs/api.md, Series)."""

from __future__ import annotations

import hashlib
import json

from django.http import HttpRequest, HttpResponse, JsonResponse

from tracker.api import auth
from tracker.domain.errors import Invalid
from tracker.services import series as service

CONTENT_TYPE = "application/vnd.encore.series"
MOST_BYTES = 2**20


@auth.plain(methods=("POST",))
def series(request: HttpRequest, user, token) -> HttpResponse:
    """Answers the binary series format, or JSON with ``Accept: application/json``. An unchanged answer is 304 to ``If-None-Match``."""
    body = request.body
    if len(body) > MOST_BYTES:
        raise Invalid("The query is longer than 1 MiB: ask in portions.")
    try:
        query = json.loads(body)
    except (ValueError, RecursionError):
        raise Invalid("The query is no JSON: send an object with runs and keys.") from None
    if "application/json" in request.headers.get("Accept", ""):
        return JsonResponse(service.answer(user=user, query=query, as_json=True))
    found = service.answer(user=user, query=query)
    etag = '"' + hashlib.blake2b(found, digest_size=12).hexdigest() + '"'
    is_known = request.headers.get("If-None-Match") == etag
    response = HttpResponse(status=304) if is_known else HttpResponse(found, content_type=CONTENT_TYPE)
    response["ETag"] = etag
    response["Cache-Control"] = "private, no-cache"
    response["Vary"] = "Accept, Cookie, Authorization"
    return response
