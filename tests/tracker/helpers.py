"""What the tracker's tests share beside fixtures."""

from __future__ import annotations

import json

from django.test import Client

from tracker.domain.ids import new_id
from tracker.models import User
from tracker.services import accounts

RECIPE = {"command": {"argv": ["train.py"], "entry": {"kind": "script", "name": "train.py"}}, "source": {}, "environment": {}}


class Api:
    """The API as a program sees it: a token, JSON in and out."""

    def __init__(self, token: str | None = None) -> None:
        self.client = Client(raise_request_exception=True)
        self.headers = {"authorization": f"Bearer {token}"} if token else {}

    def __call__(self, method: str, path: str, body=None, **headers):
        kind = headers.pop("content_type", "application/json")
        data = body if isinstance(body, bytes) else (b"" if body is None else json.dumps(body).encode())
        return self.client.generic(method, f"/api/v1/{path}", data, content_type=kind, headers={**self.headers, **headers})

    def get(self, path: str, **headers):
        return self("GET", path, **headers)

    def post(self, path: str, body=None, **headers):
        return self("POST", path, {} if body is None else body, **headers)


def make_user(name: str, **more) -> User:
    return accounts.create_user(username=name, **more)


def api_of(user: User, scope: str = "api") -> Api:
    return Api(accounts.create_token(user=user, name="test", scopes=[scope])[1])


def writer_json(run_id: str | None = None, **more) -> dict:
    """A writer.json as the SDK sends it."""
    run = {"id": run_id or new_id(), "project": "vision", "name": "first", "tags": [], "created_us": 1_700_000_000_000_000}
    run.update(more.pop("run", {}))
    return {
        "format": 1,
        "writer": new_id(),
        "kind": "trainer",
        "run": run,
        "rank": 0,
        "local_rank": 0,
        "world_size": 1,
        "host": "node1",
        "pid": 7,
        "started_us": 1_700_000_000_000_000,
        "anchor_wall_us": 1_700_000_000_000_000,
        "launch": {"kind": "python", "id": None, "restart_count": 0, "coordinates": {}},
        **more,
    }
