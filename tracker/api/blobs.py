"""Blobs in and out. Plain Django views: bodies are streamed, never parsed."""

from __future__ import annotations

import json

from django.http import HttpResponse, HttpResponseNotModified, HttpResponseRedirect, JsonResponse, StreamingHttpResponse

from tracker.api.auth import API, JOB, plain
from tracker.domain import ids
from tracker.domain.errors import Invalid, TooLarge
from tracker.models import Run
from tracker.services import blobs, writers

MOST_QUESTION = 4 * 2**20


def _run(user, token, run_id) -> Run:
    if not isinstance(run_id, str) or not ids.is_id(run_id):
        raise Invalid("run is the run's id.", run="malformed")
    return writers.run_for_blobs(user=user, token=token, run_id=run_id)


def _read(request, most: int) -> bytes:
    """The body, never more than ``most`` bytes of it in memory."""
    body = b"".join(_chunks(request, most))
    return body


def _chunks(request, most: int | None = None):
    size = 0
    while chunk := request.read(blobs.CHUNK):
        size += len(chunk)
        if most is not None and size > most:
            raise TooLarge(f"The body has more than {most} bytes.")
        yield chunk


@plain(methods=("POST",), scopes={API, JOB})
def missing(request, user, token):
    try:
        asked = json.loads(_read(request, MOST_QUESTION))
    except (ValueError, RecursionError):
        raise Invalid("The body is not valid JSON.") from None
    if not isinstance(asked, dict) or not isinstance(asked.get("blobs"), list):
        raise Invalid('The body is {"run", "blobs": [{"digest", "bytes"}]}.', blobs="malformed")
    run = _run(user, token, asked.get("run"))
    return JsonResponse({"missing": blobs.missing(run=run, wanted=asked["blobs"])})


@plain(methods=("POST",), scopes={API, JOB})
def pack(request, user, token):
    run = _run(user, token, request.GET.get("run"))
    return JsonResponse({"stored": blobs.put_pack(run=run, body=_read(request, blobs.PACK_BYTES))})


@plain(methods=("PUT",), scopes={API, JOB})
def put(request, user, token, digest):
    blobs.hex_of(digest)
    run = _run(user, token, request.GET.get("run"))
    blob = blobs.put(run=run, digest=digest, chunks=_chunks(request))
    return JsonResponse({"digest": blob.digest, "bytes": blob.bytes})


@plain(methods=("GET", "HEAD"), scopes={API, JOB})
def get(request, user, token, digest):
    blob = blobs.get(user=user, token=token, digest=digest, slug=request.GET.get("project"))
    tag = f'"{blob.digest}"'
    # Bytes under a digest never change; yet only who may see them may keep them.
    headers = {"ETag": tag, "Cache-Control": "private, max-age=31536000, immutable"}
    if request.headers.get("If-None-Match") == tag:
        return HttpResponseNotModified(headers=headers)
    if address := blobs.address(blob):
        return HttpResponseRedirect(address)
    headers |= {
        "Content-Length": str(blob.bytes),
        "Content-Disposition": f'attachment; filename="{blob.digest.partition(":")[2]}"',
        # What people upload is never shown on our origin, only handed over.
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }
    if request.method == "HEAD":
        return HttpResponse(content_type="application/octet-stream", headers=headers)
    return StreamingHttpResponse(blobs.stream(blob), content_type="application/octet-stream", headers=headers)
