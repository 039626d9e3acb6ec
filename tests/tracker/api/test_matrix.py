"""Route by role: every route that the resolver knows is declared here with who may call it, and is called as everybody."""

from __future__ import annotations

import pytest
from django.urls import URLPattern, get_resolver

from tests.tracker.helpers import Api, api_of
from tracker.domain.ids import new_id
from tracker.models import Reproduction

EVERYBODY = ("anonymous", "stranger", "viewer", "editor", "owner", "worker", "job")
READ = {"viewer", "editor", "owner"}
PERSON = READ | {"stranger"}
EDIT = {"editor", "owner"}
SEND = EDIT | {"job"}
ALL = set(EVERYBODY)

# (method, route): who gets past the door. Others get 401, 403, 404 or 409 (a foreign run id, a job's key).
MATRIX = {
    ("GET", "openapi.json"): ALL,
    ("GET", "me"): ALL - {"anonymous"},
    ("GET", "tokens"): PERSON,
    ("POST", "tokens"): PERSON,
    ("DELETE", "tokens/<str:id>"): set(),
    ("GET", "projects"): PERSON,
    ("POST", "projects"): PERSON,
    ("GET", "projects/<str:slug>"): READ,
    ("PATCH", "projects/<str:slug>"): {"owner"},
    ("GET", "projects/<str:slug>/members"): READ,
    ("PUT", "projects/<str:slug>/members"): {"owner"},
    ("GET", "projects/<str:slug>/retention"): READ,
    ("PUT", "projects/<str:slug>/retention"): {"owner"},
    ("GET", "projects/<str:slug>/retention/preview"): {"owner"},
    ("GET", "retention"): set(),  # superusers alone
    ("PUT", "retention"): set(),
    ("GET", "runs"): PERSON,
    ("GET", "runs/<str:id>"): READ,
    ("PATCH", "runs/<str:id>"): EDIT,
    ("DELETE", "runs/<str:id>"): EDIT,
    ("POST", "runs/<str:id>/stop"): EDIT,
    ("GET", "runs/<str:id>/ranks"): READ,
    ("GET", "runs/<str:id>/stacks"): READ,
    ("POST", "runs/<str:id>/stacks"): set(),  # nobody: this run is over
    ("GET", "runs/<str:id>/size"): READ,
    ("GET", "runs/<str:id>/keys"): READ,
    ("GET", "runs/<str:id>/history"): READ,
    ("GET", "runs/<str:id>/logs"): READ,
    ("GET", "runs/<str:id>/events"): READ,
    ("GET", "runs/<str:id>/recipe"): READ,
    ("GET", "runs/<str:id>/preflight"): READ,
    ("GET", "runs/<str:id>/files"): READ,
    ("GET", "runs/<str:id>/files/content"): set(),  # nobody: this run has no files
    ("GET", "runs/<str:id>/media"): READ,
    ("GET", "runs/<str:id>/media/keys"): READ,
    ("GET", "runs/<str:id>/media/steps"): READ,
    ("GET", "runs/<str:id>/media/at"): READ,
    ("GET", "runs/<str:id>/media/spread"): READ,
    ("GET", "runs/<str:id>/media/<str:number>/content"): set(),  # nobody: this run has no media
    ("GET", "runs/<str:id>/bundle"): READ,
    ("POST", "runs/<str:id>/reproductions"): EDIT,
    ("GET", "export/runs"): PERSON,
    ("POST", "export/history"): PERSON,
    ("GET", "export/parquet"): PERSON,
    ("POST", "export/parquet"): PERSON,
    ("GET", "export/runs/<str:id>.parquet"): READ,
    ("POST", "series"): PERSON,  # a stranger is answered no series
    ("GET", "series"): PERSON,
    ("GET", "blobs/<str:digest>"): READ | {"job"},
    ("GET", "reproductions"): PERSON,
    ("GET", "reproductions/<str:id>"): READ,
    ("POST", "reproductions/<str:id>/cancel"): EDIT,
    ("POST", "reproductions/<str:id>/judge"): set(),  # nobody while the job goes on
    ("POST", "ingest/writers"): SEND,
    ("POST", "ingest/writers/<str:writer_id>/batches"): SEND,
    ("POST", "ingest/heartbeats"): SEND,
    ("POST", "ingest/blobs/missing"): SEND,
    ("POST", "ingest/blobs/pack"): SEND,
    ("PUT", "ingest/blobs/<str:digest>"): SEND,
    ("GET", "workers"): PERSON,
    ("POST", "workers/hello"): {"worker"},
    ("GET", "jobs"): PERSON,
    ("POST", "jobs/<str:id>/claim"): set(),  # nobody: it is taken
    ("POST", "jobs/<str:id>/heartbeat"): {"worker", "job"},
    ("POST", "jobs/<str:id>/steps"): {"job"},
    ("POST", "jobs/<str:id>/logs"): {"job"},
    ("POST", "jobs/<str:id>/finish"): {"job"},
}


def routes() -> dict[str, URLPattern]:
    resolver = next(found for found in get_resolver().url_patterns if str(found.pattern) == "api/v1/")
    return {str(found.pattern): found for found in resolver.url_patterns if str(found.pattern)}


def methods_of(pattern: URLPattern) -> set[str]:
    view = pattern.callback
    if hasattr(view, "view_class"):
        return {name.upper() for name in ("get", "post", "put", "patch", "delete") if hasattr(view.view_class, name)}
    return set(view.methods) - {"HEAD"}


def test_every_route_and_method_is_declared():
    """A route that is added without saying whom it serves fails here."""
    found = {(method, route) for route, pattern in routes().items() for method in methods_of(pattern)}
    assert found == set(MATRIX)


def test_every_view_says_its_scopes():
    for route, pattern in routes().items():
        view = getattr(pattern.callback, "view_class", pattern.callback)
        assert view.scopes, route


@pytest.fixture
def world(people, run, alice, bob, worker, here, monkeypatch):
    """Everything that a route can name, and everybody who may come."""
    from tests.tracker.api.test_blobs import digest_of, put

    monkeypatch.setattr("tracker.services.reproductions.preflight", lambda run: {"score": 100, "runnable": True, "items": []})
    reproduction = Reproduction.objects.get(id=bob.post(f"runs/{run.id}/reproductions").json()["id"])
    order = worker.post(f"jobs/{reproduction.job_id}/claim", {"worker": here.id}).json()
    put(alice, run, b"x")
    who = {
        "anonymous": Api(),
        "stranger": api_of(people.charlie),
        "viewer": api_of(people.victor),
        "editor": bob,
        "owner": alice,
        "worker": worker,
        "job": Api(order["key"]),
    }
    return reproduction, digest_of(b"x"), who


def request_of(method: str, route: str, who: str, reproduction: Reproduction, digest: str) -> tuple[str, object, str]:
    """Path, body and content type of an honest request: a job's key writes its own run, people the original."""
    from tests.tracker.api.test_blobs import pack_of
    from tests.tracker.helpers import writer_json
    from tests.tracker.wire import batch

    run = reproduction.rerun_id if who == "job" else reproduction.original_id
    writer = reproduction.original.writers.first()
    path = route.replace("<str:slug>", "vision").replace("<str:digest>", digest).replace("<str:writer_id>", writer.id)
    path = path.replace("<str:number>", "999999999")
    if path.startswith(("runs/", "export/runs/")):
        path = path.replace("<str:id>", reproduction.original_id)
    path = path.replace("<str:id>", {"tokens": new_id(), "jobs": reproduction.job_id}.get(path.partition("/")[0], reproduction.id))
    kind, body = "application/json", {}
    bodies = {
        "tokens": {"name": "x"},
        "projects": {"slug": f"new-{who}"},
        "projects/<str:slug>/members": {"members": [{"user": name, "role": role} for name, role in MEMBERS]},
        "export/history": {"keys": ["a"]},
        "projects/<str:slug>/retention": {"rules": []},
        "retention": {"rules": []},
        "series": {"runs": [reproduction.original_id], "keys": ["a"]},
        "ingest/writers": writer_json(run),
        "ingest/heartbeats": {"run": run, "writers": []},
        "ingest/blobs/missing": {"run": run, "blobs": []},
        "workers/hello": {"name": "box", "queues": ["default"]},
        "jobs/<str:id>/claim": {"worker": reproduction.job.worker_id},
        "jobs/<str:id>/heartbeat": {"fence": 1},
        "jobs/<str:id>/steps": {"fence": 1, "name": "data", "state": "done"},
        "jobs/<str:id>/logs": {"fence": 1, "number": 0, "step": "data", "text": "x"},
        "jobs/<str:id>/finish": {"fence": 1, "state": "finished"},
    }
    if method != "GET":
        body = bodies.get(route, {})
    if route == "ingest/blobs/pack":
        path, body, kind = f"{path}?run={run}", pack_of(b"x"), "application/vnd.encore.pack"
    elif route == "ingest/blobs/<str:digest>":
        path, body, kind = f"{path}?run={run}", b"x", "application/octet-stream"
    elif route.endswith("/batches"):
        body, kind = batch(writer.run_id, writer.id), "application/vnd.encore.batch"
    elif route.endswith(("history", "media/steps", "media/at", "media/spread")):
        path += "?key=a"
    elif route.endswith("content"):
        path += "?path=a"
    return path, body, kind


MEMBERS = (("alice", "owner"), ("bob", "editor"), ("victor", "viewer"))


@pytest.mark.parametrize(("method", "route"), list(MATRIX), ids=lambda part: part)
def test_who_gets_in(world, method, route):
    """Exactly the declared people get past the door; nobody else learns more than that it is shut."""
    reproduction, digest, people = world
    allowed = MATRIX[method, route]
    # Those who are refused first: what the allowed ones change must not decide it.
    for who in sorted(EVERYBODY, key=lambda who: who in allowed):
        if route.endswith("/batches") and who == "job":
            continue  # its own writer is opened in test_jobs.py; this one is the original's
        path, body, kind = request_of(method, route, who, reproduction, digest)
        answer = people[who](method, path, body if method != "GET" else None, content_type=kind)
        got_in = answer.status_code not in (401, 403, 404, 409)
        expected = who in allowed and not (method == "DELETE" and who == "owner" and route.startswith("runs/"))
        assert got_in == expected, (who, answer.status_code, getattr(answer, "content", b"")[:300])
        assert answer.status_code < 500
        if who == "anonymous" and not expected:
            assert answer.status_code == 401
