"""GET PATCH DELETE runs/{id}, and stop."""

import pytest

from tracker.domain.ids import new_id
from tracker.models import Run


def test_get_shows_all_of_a_run(alice, run):
    found = alice.get(f"runs/{run.id}").json()
    assert found["id"] == run.id
    assert found["attempts"][0]["number"] == 1
    assert found["writers"][0]["rank"] == 0
    assert found["metrics"] == {}
    assert found["reproduction_of"] is None


@pytest.mark.parametrize("path", ["", "/keys", "/logs", "/events", "/recipe", "/preflight", "/files", "/history?key=a"])
def test_every_read_hides_the_run_from_a_stranger(charlie, victor, run, path):
    """A stranger gets the same 404 for a hidden run as for an unknown one; a viewer reads."""
    answer = charlie.get(f"runs/{run.id}{path}")
    assert answer.status_code == 404
    assert answer.json() == charlie.get(f"runs/{new_id()}{path}").json()
    if "history" not in path:
        assert victor.get(f"runs/{run.id}{path}").status_code == 200


@pytest.mark.parametrize("bad", ["x", "A" * 26, "a" * 25, "a" * 27, "%00", "1" * 26])
def test_malformed_id_is_400(alice, bad):
    assert alice.get(f"runs/{bad}").status_code == 400


def test_patch_changes_what_people_say(bob, run):
    answer = bob("PATCH", f"runs/{run.id}", {"name": "new\x00name", "tags": ["x", "x", "y"], "notes": "n", "archived": True})
    assert answer.status_code == 400, "DRF refuses NUL in names by itself"
    answer = bob("PATCH", f"runs/{run.id}", {"name": "new", "tags": ["x", "x", "y"], "notes": "n", "archived": True})
    assert answer.status_code == 200, answer.content
    found = answer.json()
    assert (found["name"], found["tags"], found["notes"]) == ("new", ["x", "y"], "n")
    assert found["archived_at"]
    assert bob.get("runs?filter=tags%20%3D%20y").json()["results"][0]["id"] == run.id
    again = bob("PATCH", f"runs/{run.id}", {"archived": True}).json()
    assert again["archived_at"] == found["archived_at"]


def test_patch_is_not_for_viewers_or_strangers(victor, charlie, run):
    assert victor("PATCH", f"runs/{run.id}", {"name": "x"}).status_code == 403
    assert charlie("PATCH", f"runs/{run.id}", {"name": "x"}).status_code == 404


@pytest.mark.parametrize("body", [{"name": ""}, {"tags": "x"}, {"tags": [1, {}]}, {"archived": "maybe"}, [], 3])
def test_patch_of_nonsense_is_400(bob, run, body):
    answer = bob("PATCH", f"runs/{run.id}", body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"code", "message", "fields"}


def test_broken_json_is_400(bob, run):
    answer = bob("PATCH", f"runs/{run.id}", b"{")
    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid"


def test_stop_asks_once(bob, victor, make_run):
    run = make_run(state="running")
    assert victor.post(f"runs/{run.id}/stop").status_code == 403
    first = bob.post(f"runs/{run.id}/stop").json()["stop_requested_at"]
    assert first
    assert bob.post(f"runs/{run.id}/stop").json()["stop_requested_at"] == first


def test_stop_of_an_ended_run_changes_nothing(bob, run):
    assert bob.post(f"runs/{run.id}/stop").json()["stop_requested_at"] is None


def test_delete_hides_at_once_and_twice_is_404(bob, victor, run):
    assert victor("DELETE", f"runs/{run.id}").status_code == 403
    assert bob("DELETE", f"runs/{run.id}").status_code == 204
    assert bob("DELETE", f"runs/{run.id}").status_code == 404
    assert Run.objects.get(id=run.id).deleted_at


def test_wrong_method(alice, run):
    assert alice("PUT", f"runs/{run.id}", {}).status_code == 405
    assert alice.get(f"runs/{run.id}/stop").status_code == 405


def test_unknown_route_answers_json(alice):
    answer = alice.get("nothing/here")
    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"
