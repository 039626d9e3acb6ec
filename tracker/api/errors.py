"""One shape for every error, ``{"code", "message", "fields"}``, and the one place that makes it."""

from __future__ import annotations

import functools

import structlog
from django.core.exceptions import PermissionDenied
from django.core.exceptions import ValidationError as ModelInvalid
from django.http import Http404, JsonResponse
from rest_framework import exceptions as drf
from rest_framework.response import Response

from tracker.domain.errors import EncoreError, Forbidden, Invalid, NotFound, TooLarge, Unauthenticated, Unavailable
from tracker.store.away import database_is_away, store_is_away

log = structlog.get_logger()


def named(error: Exception) -> EncoreError | None:
    """``error`` as one of our own, or None if it is a mistake of ours that must surface as such."""
    if isinstance(error, EncoreError):
        return error
    if isinstance(error, drf.ValidationError):
        return Invalid(_sentence(error.detail), **_fields(error.detail))
    if isinstance(error, drf.ParseError):
        return Invalid(f"The body is not valid JSON: {error.detail}")
    if isinstance(error, drf.NotAuthenticated | drf.AuthenticationFailed):
        return Unauthenticated()
    if isinstance(error, drf.PermissionDenied | PermissionDenied):
        return Forbidden(str(error) or "")
    if isinstance(error, Http404 | drf.NotFound):
        return NotFound()
    if isinstance(error, ModelInvalid):
        return Invalid("; ".join(error.messages))
    if isinstance(error, drf.APIException):
        named_error = EncoreError(str(error.detail), code=str(error.default_code))
        named_error.status = error.status_code
        return named_error
    if type(error).__name__ == "RequestDataTooBig":
        return TooLarge()
    if database_is_away(error):
        log.warning("the database did not answer", problem=str(error))
        return Unavailable("The database cannot answer just now (locked, full or restarting): ask again.", retry_after=2)
    if store_is_away(error):
        log.warning("the object store did not answer", problem=str(error))
        return Unavailable("The object store cannot answer just now: ask again.", retry_after=5)
    return None


def body(error: EncoreError) -> dict:
    return {"code": error.code, "message": error.message, "fields": error.fields}


def headers(error: EncoreError) -> dict[str, str]:
    found = {}
    if error.retry_after is not None:
        found["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        found["WWW-Authenticate"] = 'Bearer realm="encore"'
    return found


def handle(error: Exception, context: dict) -> Response | None:
    """DRF's exception handler."""
    found = named(error)
    if found is None:
        return None
    extra = headers(found)
    if isinstance(error, drf.MethodNotAllowed):
        extra["Allow"] = ", ".join(context["view"].allowed_methods)
    return Response(body(found), status=found.status, headers=extra)


def as_response(error: EncoreError) -> JsonResponse:
    return JsonResponse(body(error), status=error.status, headers=headers(error))


def answering(view):
    """For plain Django views: named errors become the one error shape."""

    @functools.wraps(view)
    def wrapped(request, *args, **kwargs):
        try:
            return view(request, *args, **kwargs)
        except Exception as error:
            found = named(error)
            if found is None:
                raise
            return as_response(found)

    return wrapped


def not_found(request, *_, **__) -> JsonResponse:
    """An unknown path below /api/ answers JSON too."""
    return as_response(NotFound("There is no such route: see /api/v1/openapi.json."))


def _sentence(detail) -> str:
    if isinstance(detail, dict):
        parts = [f"{name}: {_sentence(value)}" if name != "non_field_errors" else _sentence(value) for name, value in detail.items()]
        return " ".join(parts)
    if isinstance(detail, list):
        return " ".join(_sentence(value) for value in detail)
    return str(detail)


def _fields(detail) -> dict:
    if isinstance(detail, dict):
        return {str(name): _sentence(value) for name, value in detail.items()}
    return {}
