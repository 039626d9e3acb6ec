"""The source snapshot of a run: its manifest, and each file's bytes."""

from __future__ import annotations

import base64
import json

from tracker.domain.errors import NotFound, TooLarge
from tracker.models import Run
from tracker.services import blobs, runs

MOST_MANIFEST = 64 * 2**20
MOST_CONTENT = 8 * 2**20


def files(run: Run, attempt: int | None = None) -> list[dict]:
    """``[{"path", "bytes", "digest", "mode", "state"}]`` by path; empty when no source was captured or it has not arrived."""
    _, recipe = runs.recipe_of(run, attempt)
    source = recipe.get("source")
    digest = source.get("manifest") if isinstance(source, dict) else None
    raw = blobs.read_small(project_id=run.project_id, digest=digest, most=MOST_MANIFEST) if digest else None
    if raw is None:
        return []
    try:
        listed = json.loads(raw)["files"]
        return [_shown(entry) for entry in listed if isinstance(entry, dict)]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def _shown(entry: dict) -> dict:
    path = entry.get("path")
    if path is None:
        path = base64.b64decode(entry["path_b64"]).decode(errors="replace")
    size = entry.get("bytes")
    return {
        "path": str(path),
        "bytes": size if isinstance(size, int) else 0,
        "digest": str(entry.get("digest", "")),
        "mode": str(entry.get("mode", "100644")),
        "state": str(entry.get("state", "")),
    }


def content(run: Run, path: str, attempt: int | None = None) -> bytes:
    """One file of the snapshot. Only a path that its manifest names is ever read. Raises NotFound, TooLarge."""
    entry = next((found for found in files(run, attempt) if found["path"] == path), None)
    if entry is None:
        raise NotFound(f"The snapshot of this run has no file {path}.")
    if entry["bytes"] > MOST_CONTENT:
        raise TooLarge(f"The file has {entry['bytes']} bytes; fetch it as a blob: GET blobs/{entry['digest']}.", digest=entry["digest"])
    raw = blobs.read_small(project_id=run.project_id, digest=entry["digest"], most=MOST_CONTENT)
    if raw is None:
        raise NotFound(f"The bytes of {path} have not arrived here.")
    return raw
