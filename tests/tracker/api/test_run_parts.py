"""logs, events, recipe, preflight and files of a run."""

import json

import pytest

from tests.tracker.api.test_blobs import digest_of, put
from tracker.models import Event, LogChunk


@pytest.fixture
def printed(run):
    writer = run.writers.get()
    for number in range(5):
        LogChunk.objects.create(
            run=run, writer=writer, number=number, rank=number % 2, stream="stdout", time_us=number, text=f"line {number}\n"
        )
        Event.objects.create(run=run, writer=writer, name="note", time_us=number, data={"n": number})
    return run


def test_logs_page_by_page_and_rank_by_rank(alice, printed):
    first = alice.get(f"runs/{printed.id}/logs?limit=3").json()
    rest = alice.get(f"runs/{printed.id}/logs?after={first['next']}").json()
    assert [line["text"] for line in first["results"] + rest["results"]] == [f"line {n}\n" for n in range(5)]
    assert rest["next"] is None
    assert len(alice.get(f"runs/{printed.id}/logs?rank=1").json()["results"]) == 2
    assert alice.get(f"runs/{printed.id}/logs?stream=stderr").json()["results"] == []


@pytest.mark.parametrize("query", ["after=x", "rank=x", "limit=0", "after=99999999999999999999"])
def test_malformed_paging_is_400(alice, printed, query):
    assert alice.get(f"runs/{printed.id}/logs?{query}").status_code == 400
    if not query.startswith("rank"):
        assert alice.get(f"runs/{printed.id}/events?{query}").status_code == 400


def test_events(alice, printed):
    found = alice.get(f"runs/{printed.id}/events?limit=2").json()
    assert [event["data"]["n"] for event in found["results"]] == [0, 1]
    assert found["results"][0]["rank"] == 0
    assert found["next"]


def test_recipe_of_an_attempt(alice, run):
    assert alice.get(f"runs/{run.id}/recipe").json()["recipe"]["command"]["argv"] == ["train.py"]
    assert alice.get(f"runs/{run.id}/recipe?attempt=1").json()["attempt"] == 1
    assert alice.get(f"runs/{run.id}/recipe?attempt=9").status_code == 404
    assert alice.get(f"runs/{run.id}/recipe?attempt=x").status_code == 400


def test_files_of_the_snapshot(alice, victor, run):
    """Only what the manifest names is read, always as plain text."""
    source = b"<script>alert(1)</script>"
    put(alice, run, source)
    put(alice, run, b"not in the manifest")
    manifest = {
        "format": 1,
        "files": [{"path": "a.html", "mode": "100644", "bytes": len(source), "digest": digest_of(source), "state": "tracked"}],
        "mounts": [],
    }
    raw = json.dumps(manifest).encode()
    put(alice, run, raw)
    attempt = run.attempts.get()
    attempt.recipe = {"command": {"argv": []}, "source": {"manifest": digest_of(raw)}}
    attempt.save()
    assert [entry["path"] for entry in victor.get(f"runs/{run.id}/files").json()["results"]] == ["a.html"]
    answer = victor.get(f"runs/{run.id}/files/content?path=a.html")
    assert answer.content == source
    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    assert answer["X-Content-Type-Options"] == "nosniff"
    for path in ("b.html", "../a.html", digest_of(b"not in the manifest")):
        assert victor.get(f"runs/{run.id}/files/content?path={path}").status_code == 404
    assert victor.get(f"runs/{run.id}/files/content").status_code == 400


def test_a_run_without_source_has_no_files(alice, run):
    assert alice.get(f"runs/{run.id}/files").json()["results"] == []


def test_preflight_is_the_judges(alice, run):
    found = alice.get(f"runs/{run.id}/preflight").json()
    assert set(found) >= {"score", "runnable", "items"}
