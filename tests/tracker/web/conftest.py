"""Pages with people on them: Alice owns, Bob looks on, Charlie must see nothing."""

from __future__ import annotations

import os
import shutil

import pytest
from django.test import Client

from tests.tracker.web import fill
from tracker.services import projects

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WAIT = 30_000
"""Milliseconds; generous, since nothing here may fail on a slow machine."""


@pytest.fixture(autouse=True)
def _plain_static(settings):
    # Tests serve the files as they lie, without a collected manifest.
    settings.STORAGES = {
        "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.AXES_ENABLED = False


@pytest.fixture(autouse=True)
def _own_store(settings, tmp_path):
    settings.ENCORE_STORE = tmp_path / "store"


@pytest.fixture
def people(db):
    alice, bob, charlie = fill.people()
    project = projects.for_writing(user=alice, name="gpt")
    projects.set_members(user=alice, project=project, members=[{"user": "alice", "role": "owner"}, {"user": "bob", "role": "viewer"}])
    return {"alice": alice, "bob": bob, "charlie": charlie}


def client_of(user) -> Client:
    client = Client()
    client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
    return client


@pytest.fixture
def alice(people):
    return client_of(people["alice"])


@pytest.fixture
def bob(people):
    return client_of(people["bob"])


@pytest.fixture
def charlie(people):
    return client_of(people["charlie"])


@pytest.fixture(scope="session")
def _vendored():
    """The chart library by the lock, as ``make up`` would bring it."""
    from django.core.management import call_command

    call_command("vendor", verbosity=0)


@pytest.fixture(scope="session")
def chromium(_vendored):
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=WAIT)
    # Playwright's loop makes Django believe that the test is async; the ORM is used from this thread all the same.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()
    os.environ.pop("DJANGO_ALLOW_ASYNC_UNSAFE", None)


@pytest.fixture
def tab(chromium, live_server, transactional_db, people):
    """A tab in which Alice is logged in; what the browser's console complains about fails the test."""
    from django.conf import settings

    client = client_of(people["alice"])
    context = chromium.new_context(base_url=live_server.url, viewport={"width": 1440, "height": 900})
    cookie = client.cookies[settings.SESSION_COOKIE_NAME]
    context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": cookie.value, "url": live_server.url}])
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.complaints = []
    page.on("console", lambda message: page.complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    yield page
    context.close()
    # A link that is followed while a request of the old page is under way aborts it; what went wrong says more than these two.
    assert not [text for text in page.complaints if not text.startswith(("htmx:sendAbort", "htmx:afterRequest"))]
