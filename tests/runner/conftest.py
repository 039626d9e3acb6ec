"""One helper plays a recipe end to end with the real pipeline against a loopback tracker."""

from __future__ import annotations

import base64
import os
import platform
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from blake3 import blake3

from runner import pipeline
from runner.settings import Settings
from tests.runner.loopback import Loopback


def new_id() -> str:
    return base64.b32encode(secrets.token_bytes(16)).decode().rstrip("=").lower()


@pytest.fixture
def tracker() -> Iterator[Loopback]:
    loopback = Loopback()
    yield loopback
    loopback.close()


@pytest.fixture(scope="session")
def worker_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for the session, so that an environment is built once."""
    return tmp_path_factory.mktemp("worker")


@pytest.fixture
def play(tracker: Loopback, worker_home: Path, tmp_path: Path) -> Any:
    return Player(tracker, worker_home, tmp_path)


class Player:
    """Makes a recipe of a folder as the capture would, and plays it."""

    def __init__(self, tracker: Loopback, home: Path, tmp_path: Path):
        self.tracker, self.home, self.tmp_path = tracker, home, tmp_path
        self.repository = tmp_path / "original"
        self.repository.mkdir()

    def settings(self, **changes: Any) -> Settings:
        plain: dict[str, Any] = {
            "url": self.tracker.url,
            "home": self.home,
            "name": "test",
            "queues": ("default",),
            "token": "worker-token",
        }
        return Settings(**(plain | {"keep": 50, "keep_failed": 50} | changes))

    def snapshot(self) -> dict[str, Any]:
        """The source section of the recipe, blobs stored."""
        files = []
        for path in sorted(p for p in self.repository.rglob("*") if p.is_symlink() or p.is_file()):
            if path.is_symlink():
                mode, data = "120000", os.readlink(path).encode()
            else:
                mode, data = ("100755" if os.access(path, os.X_OK) else "100644"), path.read_bytes()
            name = path.relative_to(self.repository).as_posix()
            files.append({"path": name, "mode": mode, "bytes": len(data), "digest": self.tracker.blob(data), "state": "tracked"})
        return self.source(files)

    def source(self, files: list[dict[str, Any]], mounts: list[dict[str, str]] | None = None) -> dict[str, Any]:
        import json

        tree = blake3()
        for file in files:
            name = base64.b64decode(file["path_b64"]) if "path_b64" in file else file["path"].encode("utf-8", "surrogatepass")
            tree.update(f"{file['mode']} {file['digest']} ".encode() + name + b"\n")
        body = json.dumps({"format": 1, "files": files, "mounts": mounts or []}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        manifest = self.tracker.blob(body.encode("utf-8", "surrogatepass"))
        return {"root": str(self.repository), "manifest": manifest, "tree": "blake3:" + tree.hexdigest(), "files": len(files)}

    def recipe(self, *, script: str = "train.py", arguments: list[str] | None = None, **sections: Any) -> dict[str, Any]:
        recipe: dict[str, Any] = {
            "command": {
                "argv": [script, *(arguments or [])],
                "executable": sys.executable,
                "python": platform.python_version(),
                "cwd": str(self.repository),
                "cwd_in_root": ".",
                "entry": {"kind": "script", "name": script, "path": str(self.repository / script), "path_in_root": script},
                "launcher": None,
                "world_size": 1,
                "env": {},
                "unset": [],
            },
            "environment": {
                "python": {
                    "version": platform.python_version(),
                    "implementation": "CPython",
                    "prefix": sys.prefix,
                    "base_prefix": sys.base_prefix,
                },
                "packages": [],
                "lock": None,
            },
            "data": {"inputs": [], "outputs": []},
            "numerics": {},
        }
        for name, value in sections.items():
            recipe[name] = {**recipe.get(name, {}), **value}
        recipe.setdefault("source", self.snapshot())
        return recipe

    def order(self, recipe: dict[str, Any], **changes: Any) -> str:
        job = new_id()
        self.tracker.orders[job] = {
            "format": 1, "job": job, "fence": 1, "lease_seconds": 60, "key": "key-" + job, "kind": "reproduce", "project": "p",
            "run": new_id(), "original": new_id(), "recipe": recipe, "overrides": {}, "scope": {}, "limits": {}, **changes,
        }  # fmt: skip
        return job

    def __call__(self, recipe: dict[str, Any], *, settings: dict[str, Any] | None = None, **changes: Any) -> SimpleNamespace:
        """Plays a recipe to its end; returns job, state, finish, evidence, failure, folder, output."""
        job = self.order(recipe, **changes)
        state = pipeline.perform(job, settings=self.settings(**(settings or {})))
        finish = self.tracker.finished.get(job) or {}
        folder = self.home / "jobs" / f"{job}-1"
        output = folder / "program.log"
        return SimpleNamespace(
            job=job,
            state=state,
            evidence=finish.get("evidence"),
            failure=finish.get("failure"),
            folder=folder,
            output=output.read_text() if output.exists() else "",
            log=self.tracker.log(job),
            steps=self.tracker.steps(job),
        )
