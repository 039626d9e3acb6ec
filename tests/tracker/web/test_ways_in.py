"""Login, the one-time link, tokens and members."""

from __future__ import annotations

from django.test import Client

from tracker.models import Token
from tracker.services import accounts


def test_the_password_logs_in_and_leads_back_to_where_one_wanted_to_go(client, people):
    answer = client.post("/login", {"username": "alice", "password": "correct horse battery", "next": "/workers"})
    assert answer["Location"] == "/workers"
    assert client.get("/workers").status_code == 200


def test_a_wrong_password_says_so_without_saying_which_half_was_wrong(client, people):
    answer = client.post("/login", {"username": "alice", "password": "no"})
    assert answer.status_code == 403
    assert "do not go together" in answer.content.decode()


def test_login_never_leads_to_another_host(client, people):
    answer = client.post("/login", {"username": "alice", "password": "correct horse battery", "next": "https://elsewhere.example/"})
    assert answer["Location"] == "/"


def test_looking_at_a_link_does_not_use_it_up_posting_does(client, people):
    secret = accounts.login_link(people["alice"])
    assert client.get(f"/login/link/{secret}").status_code == 200
    assert client.get(f"/login/link/{secret}").status_code == 200
    assert client.post(f"/login/link/{secret}").status_code == 302
    assert client.get("/").status_code == 200
    assert Client().post(f"/login/link/{secret}").status_code == 403


def test_posting_a_link_needs_the_token_of_its_own_page(people):
    secret = accounts.login_link(people["alice"])
    assert Client(enforce_csrf_checks=True).post(f"/login/link/{secret}").status_code == 403
    assert Client().post(f"/login/link/{secret}").status_code == 302


def test_a_new_token_is_shown_once_and_only_its_digest_stays(alice, people):
    answer = alice.post("/settings/tokens", {"name": "laptop", "days": "90"})
    secret = answer.context["secret"]
    assert secret.startswith("enc_")
    assert secret in answer.content.decode()
    assert answer["Cache-Control"] == "no-store"
    assert secret not in alice.get("/settings").content.decode()
    assert accounts.authenticate_token(secret)[0] == people["alice"]
    token = Token.objects.get(user=people["alice"], name="laptop")
    alice.post(f"/settings/tokens/{token.id}/revoke")
    assert Token.objects.get(id=token.id).revoked_at


def test_nobody_revokes_the_token_of_another(bob, people):
    token, _ = accounts.create_token(user=people["alice"], name="hers", scopes=["api"])
    assert bob.post(f"/settings/tokens/{token.id}/revoke").status_code == 404
    assert Token.objects.get(id=token.id).revoked_at is None


def test_an_owner_adds_and_removes_members_a_viewer_does_not(alice, bob, charlie, people):
    assert charlie.get("/projects/gpt").status_code == 404
    bob.post("/settings/members/gpt", {"user": "charlie", "role": "owner"})
    assert charlie.get("/projects/gpt").status_code == 404
    alice.post("/settings/members/gpt", {"user": "charlie", "role": "viewer"})
    assert charlie.get("/projects/gpt").status_code == 200
    alice.post("/settings/members/gpt", {"user": "charlie", "verb": "remove"})
    assert charlie.get("/projects/gpt").status_code == 404


def test_the_last_owner_stays(alice, people):
    answer = alice.post("/settings/members/gpt", {"user": "alice", "verb": "remove"}, follow=True)
    assert "at least one owner" in answer.content.decode()


def test_logging_out_takes_a_post(alice):
    assert alice.get("/logout").status_code == 405
    alice.post("/logout")
    assert alice.get("/").status_code == 302
