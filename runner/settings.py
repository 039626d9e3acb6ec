"""What an operator chooses, from the environment (docs/operations.md)."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    url: str
    """The tracker, without a trailing slash."""
    home: Path
    """Caches and job folders."""
    name: str
    queues: tuple[str, ...]
    token: str = field(repr=False)
    encore_home: Path | None = None
    """Where tokens and the tracker's data may lie on this machine; hidden from programs where the isolation can."""
    mounts: dict[str, str] = field(default_factory=dict)
    """Old folder -> folder here, for data that only has a fingerprint."""
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    """Name -> value for ``${secret:NAME}`` in recorded commands and variables."""
    isolation: str = "auto"
    keep: int = 5
    """Folders of finished jobs to keep; those of failed ones are kept apart."""
    keep_failed: int = 20
    allow_other_patch: bool = False
    """Whether Python 3.11.9 may stand in for a recorded 3.11.7 (named as a difference)."""


def load(environ: dict[str, str] | None = None) -> Settings:
    """From the environment. Raises ValueError with what to set."""
    env = dict(os.environ if environ is None else environ)
    encore_home = Path(env.get("ENCORE_HOME") or Path.home() / ".encore").expanduser()
    home = Path(env.get("ENCORE_WORKER_HOME") or encore_home / "worker").expanduser().absolute()
    queues = tuple(q.strip() for q in env.get("ENCORE_WORKER_QUEUES", "default").split(",") if q.strip())
    return Settings(
        url=env.get("ENCORE_URL", "http://127.0.0.1:8265").rstrip("/"),
        home=home,
        name=env.get("ENCORE_WORKER_NAME") or socket.gethostname(),
        queues=queues,
        token=_token(env),
        encore_home=encore_home,
        mounts=_mapping(env, "ENCORE_WORKER_MOUNTS"),
        secrets=_secrets(env),
        isolation=env.get("ENCORE_WORKER_ISOLATION", "auto"),
        keep=int(env.get("ENCORE_WORKER_KEEP", "5")),
        keep_failed=int(env.get("ENCORE_WORKER_KEEP_FAILED", "20")),
        allow_other_patch=env.get("ENCORE_WORKER_ALLOW_OTHER_PATCH", "") == "1",
    )


def _token(env: dict[str, str]) -> str:
    if path := env.get("ENCORE_WORKER_TOKEN_FILE"):
        try:
            return Path(path).read_text().strip()
        except OSError as error:
            raise ValueError(
                f"The worker's token file cannot be read ({error}). Set ENCORE_WORKER_TOKEN_FILE to a file that holds it."
            ) from error
    return env.get("ENCORE_WORKER_TOKEN", "")


def _mapping(env: dict[str, str], name: str) -> dict[str, str]:
    text = env.get(name)
    if not text:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f'{name} is not JSON ({error}). Give an object such as {{"/old": "/new"}}.') from error
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ValueError(f'{name} must be an object of strings, such as {{"/old": "/new"}}.')
    return value


def _secrets(env: dict[str, str]) -> dict[str, str]:
    """From a file of the worker's, never from the recipe."""
    path = env.get("ENCORE_WORKER_SECRETS_FILE")
    return _mapping({"ENCORE_WORKER_SECRETS_FILE": Path(path).read_text()}, "ENCORE_WORKER_SECRETS_FILE") if path else {}
