"""me, tokens: personal tokens are shown once, scoped, expiring and revocable."""

from datetime import timedelta

import pytest
from django.utils import timezone

from tests.tracker.helpers import Api, api_of
from tracker.domain.ids import new_id
from tracker.models import Token


def test_a_token_is_shown_once_and_works(alice, people):
    answer = alice.post("tokens", {"name": "laptop"})
    assert answer.status_code == 201
    secret = answer.json()["secret"]
    me = Api(secret).get("me").json()
    assert me == {"user": "alice", "scopes": ["api"], "projects": [{"slug": "vision", "role": "owner"}]}
    listed = alice.get("tokens").json()["results"]
    assert "laptop" in [token["name"] for token in listed]
    assert secret not in str(listed)
    assert not Token.objects.filter(digest__contains=secret[:20]).exists()


def test_a_revoked_token_stops_at_once_and_twice_is_harmless(alice):
    made = alice.post("tokens", {"name": "x"}).json()
    assert alice("DELETE", f"tokens/{made['id']}").status_code == 204
    assert alice("DELETE", f"tokens/{made['id']}").status_code == 204
    answer = Api(made["secret"]).get("me")
    assert answer.status_code == 401
    assert "revoked" in answer.json()["message"]


def test_an_expired_token_is_refused_with_the_reason(alice, people):
    made = alice.post("tokens", {"name": "x", "expires_at": (timezone.now() + timedelta(hours=1)).isoformat()}).json()
    assert Api(made["secret"]).get("me").status_code == 200
    Token.objects.filter(id=made["id"]).update(expires_at=timezone.now() - timedelta(seconds=1))
    assert "expired" in Api(made["secret"]).get("me").json()["message"]


@pytest.mark.parametrize(
    "body",
    [{"name": ""}, {"name": "x", "scopes": ["job"]}, {"name": "x", "scopes": []}, {"name": "x", "expires_at": "2001-01-01T00:00:00Z"}],
)
def test_nonsense_is_400(alice, body):
    assert alice.post("tokens", body).status_code == 400


def test_another_persons_token_looks_unknown(alice, bob):
    made = alice.post("tokens", {"name": "x"}).json()
    assert bob("DELETE", f"tokens/{made['id']}").status_code == 404
    assert bob("DELETE", f"tokens/{new_id()}").status_code == 404


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "Bearer nonsense", "Bearer \u00e9", "Basic YTpi", "bearer x y"])
def test_bad_credentials_are_401(db, header):
    api = Api()
    api.headers = {"authorization": header}
    assert api.get("me").status_code == 401


def test_a_deactivated_user_is_out(alice, people):
    people.alice.is_active = False
    people.alice.save()
    assert alice.get("me").status_code == 401


def test_a_workers_token_reaches_nothing_but_its_routes(people):
    worker = api_of(people.alice, "worker")
    for path in ("runs", "projects", "tokens", "jobs", "workers", "reproductions"):
        assert worker.get(path).status_code == 403, path
    assert worker.get("me").json()["projects"] == []


def test_a_page_session_needs_its_csrf_token_to_write(people, client):
    from django.test import Client

    browser = Client(enforce_csrf_checks=True)
    browser.force_login(people.alice, backend="django.contrib.auth.backends.ModelBackend")
    assert browser.get("/api/v1/me").json()["user"] == "alice"
    answer = browser.post("/api/v1/tokens", {"name": "x"}, content_type="application/json")
    assert answer.status_code == 403
    assert answer.json()["code"] == "csrf"
    from django.middleware.csrf import _get_new_csrf_string

    secret = _get_new_csrf_string()
    browser.cookies["csrftoken"] = secret
    answer = browser.post("/api/v1/tokens", {"name": "x"}, content_type="application/json", headers={"x-csrftoken": secret})
    assert answer.status_code == 201
