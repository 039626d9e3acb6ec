"""What the shell around every page needs."""

from django.conf import settings
from django.urls import reverse

NAV = (
    ("home", "Projects", "projects", ("home", "project")),
    ("runs", "Runs", "runs", ("runs", "run")),
    ("compare", "Compare", "compare", ("compare",)),
    ("reproductions", "Reproductions", "reproduce", ("reproductions", "reproduction")),
    ("workers", "Workers", "workers", ("workers",)),
    ("settings", "Settings", "settings", ("settings",)),
)


def shell(request):
    if not getattr(request, "user", None) or not request.user.is_authenticated:
        return {"shell": {"nav": [], "url": settings.ENCORE_URL}}
    match = request.resolver_match
    here = (match.url_name or "").partition("-")[0] if match else ""
    nav = [{"url": reverse(name), "name": label, "icon": icon, "current": here in pages} for name, label, icon, pages in NAV]
    return {"shell": {"nav": nav, "url": settings.ENCORE_URL}}
