"""The door that batches and heartbeats come in by. It bypasses DRF, and in service (``fast_lane``) Django's request and middleware as
well: they took two thirds of a small batch's time, and sessions, CSRF and page headers mean nothing to a bearer token."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

import structlog
from django.db import close_old_connections
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt

from tracker.api import auth, errors
from tracker.domain.errors import EncoreError, Invalid, TooLarge, Unauthenticated, WriterUnknown
from tracker.domain.ids import is_id
from tracker.domain.limits import HEARTBEAT_BYTES, SENT_BYTES
from tracker.models import Token, User
from tracker.services import accounts, committing, ingest, writers

SCOPES = frozenset({auth.API, auth.JOB})
REMEMBER_SECONDS = 3
"""For so long a token is not looked up again; so much later its withdrawal takes hold here."""
FRESH_SECONDS = 1
SWITCH_SECONDS = 0.0005
DRAINED_BYTES = 64 * 2**20
_fresh = threading.local()
_PATH = re.compile(r"/api/v1/ingest/writers/([^/]+)/batches")
_HEARTBEATS = "/api/v1/ingest/heartbeats"
_REASONS = {200: "OK", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 409: "Conflict", 410: "Gone", 413: "Content Too Large"}
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
_known: dict[bytes, tuple[float, User, Token]] = {}
log = structlog.get_logger()


def forget() -> None:
    _known.clear()


@csrf_exempt
def batches(request: HttpRequest, writer_id: str) -> HttpResponse:
    """POST a batch (docs/formats.md, Wire)."""
    status, headers, body = _answer(functools.partial(_batch, request.method or "", writer_id), request.META, request)
    return HttpResponse(body, status=status, headers=headers)


batches.scopes = SCOPES
batches.methods = ("POST",)


def fast_lane(application: Callable) -> Callable:
    """A WSGI application that takes batches and heartbeats itself and leaves all else to ``application``."""
    # The committer gives the interpreter's lock away at each statement and waits so long to have it back from a busy thread.
    sys.setswitchinterval(SWITCH_SECONDS)

    def serve(environ: dict, start_response: Callable):
        path = environ.get("PATH_INFO", "")
        take: Callable | None = None
        if environ.get("REQUEST_METHOD") == "POST":
            if found := _PATH.fullmatch(path):
                take = functools.partial(_batch, "POST", found[1])
            elif path == _HEARTBEATS and "HTTP_AUTHORIZATION" in environ:
                take = _heartbeat
        if take is None:
            return application(environ, start_response)
        _freshen()
        status, headers, body = _answer(take, environ, environ["wsgi.input"])
        start_response(f"{status} {_REASONS.get(status, 'Answer')}", [*headers.items(), ("Content-Length", str(len(body)))])
        return [body]

    return serve


def _freshen() -> None:
    """As Django does at each request: drop a connection that is too old or broken. Once a second: asking costs as much as the answer."""
    now = time.monotonic()
    if now - getattr(_fresh, "at", -FRESH_SECONDS) >= FRESH_SECONDS:
        _fresh.at = now
        close_old_connections()


def _answer(take: Callable[[Any, BinaryIO], dict], environ, stream: BinaryIO) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body); never raises."""
    try:
        return 200, {"Content-Type": "application/json"}, _ENCODE(take(environ, stream)).encode()
    except Exception as problem:
        error = errors.named(problem)
        if error is None:
            log.exception("a sender's request met a mistake of ours", path=environ.get("PATH_INFO"))
            error = EncoreError("The server met a mistake of its own; it is in its log. Send it again.")
        headers = {"Content-Type": "application/json", **errors.headers(error)}
        if error.status == 405:
            headers["Allow"] = "POST"
        return error.status, headers, json.dumps(errors.body(error)).encode()


def _batch(method: str, writer_id: str, environ, stream: BinaryIO) -> dict:
    # Before anything else: a client that is still sending would see a broken connection, not the answer.
    body = _read(stream, environ.get("CONTENT_LENGTH") or "", SENT_BYTES)
    user, token = _authenticate(environ.get("HTTP_AUTHORIZATION", ""))
    auth.require_scope(token, SCOPES)
    if method != "POST":
        error = EncoreError("Batches are posted.", code="method_not_allowed")
        error.status = 405
        raise error
    if not is_id(writer_id):
        raise WriterUnknown
    if body is None:
        raise TooLarge(f"A batch is at most {SENT_BYTES // 2**20} MiB as sent: cut it into smaller ranges.")
    encoding = environ.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    is_json = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() == "application/json"
    return ingest.append_batch(writer_id=writer_id, user=user, token=token, body=body, encoding=encoding, is_json=is_json)


def _heartbeat(environ, stream: BinaryIO) -> dict:
    body = _read(stream, environ.get("CONTENT_LENGTH") or "", HEARTBEAT_BYTES)
    user, token = _authenticate(environ.get("HTTP_AUTHORIZATION", ""))
    auth.require_scope(token, SCOPES)
    if body is None:
        raise TooLarge(f"A heartbeat is at most {HEARTBEAT_BYTES // 2**20} MiB.")
    try:
        doc = json.loads(body)
    except (ValueError, RecursionError) as problem:
        raise Invalid(f"The body is not valid JSON: {problem}") from None
    with committing.storable():
        return writers.heartbeat(user=user, token=token, doc=doc)


def _read(stream: BinaryIO, length: str, most: int) -> bytes | None:
    """The body; None if it is too long, then it is read to its end (within bounds) and dropped. Raises Invalid if it is cut short."""
    if not (length.isascii() and length.isdigit()):
        raise Invalid("The request needs a Content-Length.")
    if int(length) <= most:
        body = stream.read(int(length))
        if len(body) != int(length):
            raise Invalid("The body is shorter than its Content-Length: the connection broke off. Send it again.", code="cut_short")
        return body
    left = min(int(length), DRAINED_BYTES)
    while left > 0 and (part := stream.read(min(left, 2**20))):
        left -= len(part)
    return None


def _authenticate(header: str) -> tuple[User, Token]:
    """By bearer token alone: no cookie reaches this route, so no page of somebody else's can post here."""
    key = hashlib.sha256(header.encode()).digest()
    found = _known.get(key)
    now = time.monotonic()
    if found is not None and found[0] > now:
        return found[1], found[2]
    _known.pop(key, None)
    kind, _, secret = header.partition(" ")
    if kind.lower() != "bearer":
        raise Unauthenticated
    user, token = accounts.authenticate_token(secret.strip())
    if len(_known) > 10_000:
        _known.clear()
    _known[key] = (now + REMEMBER_SECONDS, user, token)
    return user, token
