"""What every page does the same: login, named errors in words, a page or its fragment."""

from __future__ import annotations

import functools

from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import redirect_to_login
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from tracker.domain.errors import EncoreError, Invalid, NotFound


def page(view):
    """A view for people who are logged in. A request by htmx of somebody logged out reloads the page, so that the login page never
    lands inside a table; errors with a name are said in their own words."""

    @functools.wraps(view)
    def wrapped(request: HttpRequest, *args, **kwargs) -> HttpResponse:
        if request.htmx and not request.user.is_authenticated:
            answer = HttpResponse(status=401)
            answer["HX-Redirect"] = redirect_to_login(request.htmx.current_url_abs_path or "/")["Location"]
            return answer
        try:
            _refuse_nul(request, kwargs)
            return asked(request, *args, **kwargs)
        except NotFound as error:
            raise Http404(error.message) from None
        except EncoreError as error:
            if request.htmx or request.headers.get("Accept", "").startswith("application/json"):
                return JsonResponse({"code": error.code, "message": error.message, "fields": error.fields}, status=error.status)
            return render(request, "error.html", {"title": "Not done", "message": error.message}, status=error.status)

    asked = login_required(view)
    return wrapped


def _refuse_nul(request: HttpRequest, kwargs: dict) -> None:
    """No text that a page asks for holds a NUL, and PostgreSQL cannot be asked about one."""
    if any("\x00" in str(part) for part in kwargs.values()):
        raise NotFound
    told = [request.GET, request.POST] if request.method == "POST" else [request.GET]
    if any("\x00" in text for values in told for _, texts in values.lists() for text in texts):
        raise Invalid("The address or the form holds a NUL character. Remove it.")


def show(request: HttpRequest, noun: str, fragment: str, context: dict) -> HttpResponse:
    """``templates/<noun>/page.html``, or only its fragment for htmx: one context, one ``if``."""
    if request.htmx and not request.htmx.history_restore_request:
        return render(request, f"{noun}/{fragment}.html", context)
    return render(request, f"{noun}/page.html", context)
