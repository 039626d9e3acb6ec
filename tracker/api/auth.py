"""Who is asking, and what their token reaches. The default is no.

A view says whom it serves by ``scopes`` (default ``{"api"}``): personal tokens and page sessions carry ``api``; a worker's token
``worker``; a job's key ``job``. Reaching a view is not yet the right to a row: that is ``visible_to`` and the services.
"""

from __future__ import annotations

import functools

from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest
from django.middleware.csrf import CsrfViewMiddleware
from django.views.decorators.csrf import csrf_exempt
from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import BasePermission

from tracker.api import errors
from tracker.domain.errors import EncoreError, Forbidden, Unauthenticated
from tracker.models import Token, User
from tracker.services import accounts

API, WORKER, JOB, PUBLIC = "api", "worker", "job", "public"


class _CsrfCheck(CsrfViewMiddleware):
    def _reject(self, request, reason):
        return reason


def _enforce_csrf(request: HttpRequest) -> None:
    check = _CsrfCheck(lambda _: None)
    check.process_request(request)
    if reason := check.process_view(request, None, (), {}):
        raise Forbidden(f"The page's CSRF token is missing or stale, load the page again ({reason}).", code="csrf")


def _bearer(request) -> tuple[User, Token] | None:
    header = request.META.get("HTTP_AUTHORIZATION", "")
    kind, _, secret = header.partition(" ")
    if kind.lower() != "bearer":
        return None
    return accounts.authenticate_token(secret.strip())


def _session(request: HttpRequest) -> tuple[User, None] | None:
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated or not user.is_active:
        return None
    _enforce_csrf(request)
    return user, None


def authenticate(request: HttpRequest) -> tuple[User, Token | None]:
    """For plain Django views (marked csrf_exempt): who asks, by token or by the page's session.

    Raises Unauthenticated, Forbidden (CSRF), LeaseLost (a job's key whose lease is gone).
    """
    found = _bearer(request) or _session(request)
    if found is None:
        raise Unauthenticated
    return found


def require_scope(token: Token | None, scopes) -> None:
    """Raises Forbidden unless ``token`` (None: a page's session) carries one of ``scopes``."""
    if not (set(token.scopes) if token else {API}) & set(scopes):
        raise Forbidden("This token's scope does not reach here.", code="scope")


def plain(*, methods: tuple[str, ...], scopes=frozenset({API})):
    """Decorator for a view that bypasses DRF: checks method, person and scope, then calls ``view(request, user, token, …)``."""

    def decorate(view):
        @csrf_exempt
        @errors.answering
        @functools.wraps(view)
        def wrapped(request, *args, **kwargs):
            user, token = authenticate(request)
            require_scope(token, scopes)
            if request.method not in methods:
                error = EncoreError(f"{request.method} is not possible here.", code="method_not_allowed")
                error.status = 405
                response = errors.as_response(error)
                response["Allow"] = ", ".join(methods)
                return response
            return view(request, user, token, *args, **kwargs)

        wrapped.scopes = frozenset(scopes)
        wrapped.methods = methods
        return wrapped

    return decorate


class BearerAuthentication(BaseAuthentication):
    def authenticate(self, request):
        return _bearer(request)

    def authenticate_header(self, request):
        return 'Bearer realm="encore"'


class PageSession(BaseAuthentication):
    """The browser's session; writes need the CSRF token."""

    def authenticate(self, request):
        return _session(request._request)


class HasScope(BasePermission):
    """Nobody without a login, no token outside its scopes. Views that are open to all say ``scopes = {"public"}``."""

    def has_permission(self, request, view) -> bool:
        scopes = getattr(view, "scopes", {API})
        if PUBLIC in scopes:
            return True
        if isinstance(request.user, AnonymousUser) or not request.user:
            return False
        require_scope(request.auth, scopes)
        return True
