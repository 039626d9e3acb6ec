"""The door that batches come in by: a plain view, since a thousand writers knock each second."""

from __future__ import annotations

import hashlib
import time

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from tracker.api import auth, errors
from tracker.domain.errors import EncoreError, TooLarge, Unauthenticated
from tracker.domain.ids import is_id
from tracker.domain.errors import WriterUnknown
from tracker.models import Token, User
from tracker.services import ingest
from tracker.store.inflate import SENT_BYTES

SCOPES = frozenset({auth.API, auth.JOB})
REMEMBER_SECONDS = 3
"""For so long a token is not looked up again; so much later its withdrawal takes hold here."""
_known: dict[bytes, tuple[float, User, Token]] = {}


def forget() -> None:
    _known.clear()


@csrf_exempt
@errors.answering
def batches(request: HttpRequest, writer_id: str) -> HttpResponse:
    """POST a batch (docs/formats.md, Wire)."""
    user, token = _authenticate(request)
    auth.require_scope(token, SCOPES)
    if request.method != "POST":
        error = EncoreError("Batches are posted.", code="method_not_allowed")
        error.status = 405
        response = errors.as_response(error)
        response["Allow"] = "POST"
        return response
    if not is_id(writer_id):
        raise WriterUnknown
    if int(request.META.get("CONTENT_LENGTH") or 0) > SENT_BYTES:
        raise TooLarge(f"A batch is at most {SENT_BYTES // 2**20} MiB as sent: cut it into smaller ranges.")
    encoding = request.META.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    return JsonResponse(ingest.append_batch(writer_id=writer_id, user=user, token=token, body=request.body, encoding=encoding))


def _authenticate(request: HttpRequest) -> tuple[User, Token]:
    """By bearer token alone: no cookie reaches this route, so no page of somebody else's can post here."""
    header = request.META.get("HTTP_AUTHORIZATION", "")
    key = hashlib.sha256(header.encode()).digest()
    found = _known.get(key)
    now = time.monotonic()
    if found is not None and found[0] > now:
        return found[1], found[2]
    _known.pop(key, None)
    if header[:7].lower() != "bearer ":
        raise Unauthenticated
    user, token = auth.authenticate(request)
    if token is None:
        raise Unauthenticated
    if len(_known) > 10_000:
        _known.clear()
    _known[key] = (now + REMEMBER_SECONDS, user, token)
    return user, token


batches.scopes = SCOPES
batches.methods = ("POST",)
