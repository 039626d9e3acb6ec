"""One's own tokens and password, and the members of projects."""

from __future__ import annotations

from datetime import timedelta

from django.contrib import messages
from django.contrib.auth import update_session_auth_hash
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_POST

from tracker.domain.errors import EncoreError
from tracker.models import Token
from tracker.models.project import Role
from tracker.services import accounts, projects
from tracker.web.page import page

DAYS = (30, 90, 365)


@page
def settings(request: HttpRequest) -> HttpResponse:
    return _show(request)


def _show(request: HttpRequest, secret: str = "", status: int = 200) -> HttpResponse:
    slug = request.GET.get("project") or request.POST.get("project") or ""
    owned = projects.roles(user=request.user)
    chosen = next((project for project, _ in owned if project.slug == slug), None)
    role = next((role for project, role in owned if project == chosen), None)
    context = {
        "title": "Settings",
        "path": [{"name": "Settings"}],
        "tokens": list(Token.objects.filter(user=request.user, job=None, revoked_at=None).order_by("-created_at")),
        "now": timezone.now(),
        "secret": secret,
        "days": DAYS,
        "roles_of_me": owned,
        "chosen": chosen,
        "members": list(chosen.memberships.select_related("user").order_by("user__username")) if chosen else [],
        "is_owner": role == Role.OWNER.value,
        "roles": Role.values,
        "has_password": request.user.has_usable_password(),
    }
    return render(request, "settings/page.html", context, status=status)


@page
@require_POST
def create_token(request: HttpRequest) -> HttpResponse:
    """The secret is in this one answer and nowhere else: no redirect, no session, no cache."""
    days = request.POST.get("days", "")
    expires = timezone.now() + timedelta(days=int(days)) if days.isdigit() and int(days) in DAYS else None
    name = request.POST.get("name", "").strip()[:100] or "personal token"
    _, secret = accounts.create_token(user=request.user, name=name, scopes=["api"], expires_at=expires)
    answer = _show(request, secret=secret)
    answer["Cache-Control"] = "no-store"
    return answer


@page
@require_POST
def revoke_token(request: HttpRequest, token_id: str) -> HttpResponse:
    accounts.revoke_token(user=request.user, token_id=token_id)
    messages.success(request, "Token revoked. What still uses it is refused from now on.")
    return redirect("settings")


@page
@require_POST
def password(request: HttpRequest) -> HttpResponse:
    try:
        accounts.set_password(user=request.user, password=request.POST.get("password", ""))
    except EncoreError as error:
        messages.error(request, error.message)
    else:
        update_session_auth_hash(request, request.user)
        messages.success(request, "Password set. You can log in with it from any browser.")
    return redirect("settings")


@page
@require_POST
def members(request: HttpRequest, slug: str) -> HttpResponse:
    """Add, change or remove one member; the service takes the whole list."""
    project = projects.get(user=request.user, slug=slug)
    now = {one.user.username: one.role for one in project.memberships.select_related("user")}
    name = request.POST.get("user", "").strip()
    if request.POST.get("verb") == "remove":
        now.pop(name, None)
    elif name:
        now[name] = request.POST.get("role", Role.VIEWER.value)
    try:
        projects.set_members(user=request.user, project=project, members=[{"user": user, "role": role} for user, role in now.items()])
    except EncoreError as error:
        messages.error(request, error.message)
    else:
        messages.success(request, f"Members of {project.name} changed.")
    return redirect(f"{reverse('settings')}?project={slug}#members")
