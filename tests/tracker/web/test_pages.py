"""Every page: answers for whom it should, and shows nothing raw."""

from __future__ import annotations

import re

import pytest
from django.urls import get_resolver

from tests.tracker.web import fill
from tracker.models import Reproduction
from tracker.services import reproductions

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


@pytest.fixture
def run(people):
    return fill.run_of(
        people["alice"],
        "gpt",
        HOSTILE,
        steps=30,
        ranks=2,
        tags=[HOSTILE],
        config={HOSTILE: HOSTILE, "lr": 0.1, "deep": {"a": [1, {"b": None}]}},
    )


@pytest.fixture
def reproduction(people, run):
    return reproductions.request(run=run, user=people["alice"])


def addresses(run, reproduction: Reproduction) -> list[str]:
    tabs = ["", "/charts", "/system", "/ranks", "/ranks/stacks", "/logs", "/logs/lines", "/code", "/environment", "/reproductions", "/head"]
    own = [f"/runs/{run.id}{tab}" for tab in tabs] + [f"/runs/{run.id}/code?path=train.py"]
    return [*own, "/projects/gpt", f"/reproductions/{reproduction.id}", f"/reproductions/{reproduction.id}/lines"]


COMMON = ["/", "/runs", "/compare", "/reproductions", "/workers", "/settings", "/jump?q=g"]


def test_every_page_answers_for_its_owner_and_viewer(alice, bob, run, reproduction):
    tabs = [f"/compare?runs={run.id}&tab={tab}" for tab in ("charts", "config", "summary", "facts")]
    for address in [*COMMON, *addresses(run, reproduction), *tabs]:
        assert alice.get(address).status_code == 200, address
        assert bob.get(address).status_code == 200, address


def test_a_stranger_gets_404_where_the_owner_gets_the_page(charlie, run, reproduction):
    for address in [*addresses(run, reproduction), f"/runs/{run.id}/reproduce", f"/runs/{run.id}/code/raw?path=train.py"]:
        assert charlie.get(address).status_code == 404, address


def test_lists_of_a_stranger_hold_nothing_of_others(charlie, run, reproduction):
    for address in [*COMMON, f"/compare?runs={run.id}"]:
        answer = charlie.get(address)
        assert answer.status_code == 200
        text = answer.content.decode()
        assert run.id not in text, address
        assert "alert(1)" not in text, address


def test_without_login_every_page_leads_to_the_login_and_back(client, run, reproduction):
    for address in [*COMMON, *addresses(run, reproduction), f"/compare?runs={run.id}"]:
        answer = client.get(address)
        assert answer.status_code == 302, address
        assert answer["Location"].startswith("/login?next=/"), address


def test_every_address_of_the_pages_is_behind_the_login_but_the_ways_in(client, people):
    open_ones = {"login", "login-link", "logout"}
    from tracker.web import urls

    for pattern in urls.urlpatterns:
        if pattern.name in open_ones or pattern.name is None:
            continue
        address = "/" + re.sub(r"<[^>]+>", "x", str(pattern.pattern))
        assert client.get(address).status_code in (302, 405), address
        assert client.post(address).status_code in (302, 405, 403), address
    assert get_resolver()


def test_what_users_named_is_never_markup(alice, run, reproduction):
    pages = [
        *COMMON,
        *addresses(run, reproduction),
        *[f"/compare?runs={run.id}&tab={tab}&all=1" for tab in ("charts", "config", "facts")],
        f"/runs/{run.id}/reproduce",
    ]
    for address in pages:
        answer = alice.get(address)
        if answer["Content-Type"].startswith("text/html"):
            text = answer.content.decode()
            assert "<script>alert" not in text, address
            assert "<img src=x" not in text, address


def test_no_page_has_a_script_a_style_or_a_handler_of_its_own(alice, run, reproduction):
    for address in [*COMMON, *addresses(run, reproduction), f"/compare?runs={run.id}", f"/runs/{run.id}/reproduce", "/nothing-here"]:
        answer = alice.get(address)
        if not answer["Content-Type"].startswith("text/html"):
            continue
        text = answer.content.decode()
        assert not re.search(r"<script(?![^>]*\ssrc=)", text), address
        assert not re.search(r"<style", text), address
        assert not re.search(r"<[a-z][^>]*\sstyle\s*=", text), address
        assert not re.search(r"<[a-z][^>\"']*\son[a-z]+\s*=", text), address
        assert "javascript:" not in text, address


def test_the_policy_lets_nothing_in_from_elsewhere(alice):
    policy = alice.get("/")["Content-Security-Policy"]
    assert "unsafe" not in policy
    for directive in ("default-src 'self'", "script-src 'self'", "style-src 'self'", "object-src 'none'", "frame-ancestors 'none'"):
        assert directive in policy


def test_no_template_loads_anything_from_another_host(settings):
    for path in (settings.BASE_DIR / "templates").rglob("*.html"):
        for address in re.findall(r"""(?:src|href)=["'](?:https?:)?//[^"']*""", path.read_text()):
            raise AssertionError(f"{path.name}: {address}")


def test_a_fragment_is_the_page_without_its_shell(alice, run):
    whole = alice.get("/projects/gpt").content.decode()
    part = alice.get("/projects/gpt", headers={"HX-Request": "true"}).content.decode()
    assert "<html" in whole
    assert "<html" not in part
    assert f'id="run-{run.id}"' in part


def test_an_update_of_somebody_logged_out_reloads_the_page_instead_of_nesting_the_login(client, people):
    answer = client.get("/projects/gpt", headers={"HX-Request": "true", "HX-Current-URL": "http://testserver/projects/gpt"})
    assert answer.status_code == 401
    assert answer["HX-Redirect"] == "/login?next=/projects/gpt"


def test_unknown_and_malformed_ids_are_404(alice):
    for address in ("/runs/nonsense", "/runs/" + "a" * 26, "/reproductions/%00", "/projects/none", "/runs/" + "a" * 26 + "/logs/lines"):
        assert alice.get(address).status_code == 404, address
