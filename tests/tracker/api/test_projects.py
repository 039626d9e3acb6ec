"""projects, projects/{slug}, projects/{slug}/members."""

import pytest

from tracker.models import Project


def test_create_makes_the_maker_its_owner(charlie):
    answer = charlie.post("projects", {"slug": "mine", "description": "d"})
    assert answer.status_code == 201
    assert answer.json()["role"] == "owner"
    assert [project["slug"] for project in charlie.get("projects").json()["results"]] == ["mine"]


def test_a_taken_slug_is_409_also_when_hidden(charlie, people):
    answer = charlie.post("projects", {"slug": "vision"})
    assert answer.status_code == 409
    assert answer.json()["code"] == "project_taken"


@pytest.mark.parametrize("slug", ["", "a b", "ä", "x" * 101, "a/b", "\x00"])
def test_a_malformed_slug_is_400(alice, slug):
    assert alice.post("projects", {"slug": slug}).status_code == 400


def test_only_owners_change_a_project(alice, bob, charlie, people):
    assert alice("PATCH", "projects/vision", {"name": "Sight"}).json()["name"] == "Sight"
    assert bob("PATCH", "projects/vision", {"name": "x"}).status_code == 403
    assert charlie("PATCH", "projects/vision", {"name": "x"}).status_code == 404


def test_strangers_see_no_project(charlie, people):
    assert charlie.get("projects/vision").status_code == 404
    assert charlie.get("projects/vision/members").status_code == 404
    assert charlie.get("projects").json()["results"] == []


def test_members_are_replaced_as_a_whole(alice, bob, victor, people):
    wanted = [{"user": "alice", "role": "owner"}, {"user": "charlie", "role": "viewer"}]
    assert bob("PUT", "projects/vision/members", {"members": wanted}).status_code == 403
    answer = alice("PUT", "projects/vision/members", {"members": wanted})
    assert answer.json()["results"] == wanted
    assert alice("PUT", "projects/vision/members", {"members": wanted}).json()["results"] == wanted
    assert victor.get("projects/vision").status_code == 404


@pytest.mark.parametrize(
    "members", [[], [{"user": "alice", "role": "viewer"}], [{"user": "nobody", "role": "owner"}], [{"user": "alice", "role": "king"}], "x"]
)
def test_a_project_keeps_an_owner_and_known_members(alice, people, members):
    assert alice("PUT", "projects/vision/members", {"members": members}).status_code == 400
    assert Project.objects.get(slug="vision").memberships.count() == 3
