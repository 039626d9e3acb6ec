"""Coming in and going out."""

from django.contrib.auth import authenticate, login, logout
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST

from tracker.services import accounts


def _next(request: HttpRequest) -> str:
    target = request.POST.get("next") or request.GET.get("next") or "/"
    safe = url_has_allowed_host_and_scheme(target, allowed_hosts={request.get_host()}, require_https=request.is_secure())
    return target if safe else "/"


@never_cache
def password(request: HttpRequest) -> HttpResponse:
    if request.method != "POST":
        if request.user.is_authenticated:
            return redirect(_next(request))
        return render(request, "login/page.html", {"title": "Log in", "next": _next(request)})
    name = request.POST.get("username", "")
    user = authenticate(request, username=name, password=request.POST.get("password", ""))
    if user is None:
        locked = getattr(request, "axes_locked_out", False)
        error = "Too many attempts; wait a quarter of an hour." if locked else "This name and password do not go together."
        context = {"title": "Log in", "next": _next(request), "error": error, "username": name}
        return render(request, "login/page.html", context, status=429 if locked else 403)
    login(request, user)
    return redirect(_next(request))


@never_cache
def link(request: HttpRequest, secret: str) -> HttpResponse:
    """A GET may come from a prefetch or a chat's preview and must not use the link up: the page posts itself."""
    if request.method != "POST":
        return render(request, "login/link.html", {"title": "Log in"})
    user = accounts.use_login_link(secret)
    if user is None:
        if request.user.is_authenticated:
            return redirect("/")
        return render(request, "login/link.html", {"title": "Log in", "spent": True}, status=403)
    login(request, user, backend="django.contrib.auth.backends.ModelBackend")
    return redirect("/")


@require_POST
def leave(request: HttpRequest) -> HttpResponse:
    logout(request)
    return redirect("login")
