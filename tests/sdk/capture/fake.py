"""A writer at the boundary to the journal: what is emitted is a list, what is stored a dict."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from blake3 import blake3


class Fake:
    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self.rank, self.settings = folder, rank, SimpleNamespace()
        folder.mkdir(parents=True, exist_ok=True)
        self.docs: list[dict[str, Any]] = []
        self.blobs: dict[str, bytes] = {}
        self.lock = threading.Lock()

    def emit(self, doc: dict[str, Any], step: int | None = None) -> None:
        with self.lock:
            self.docs.append(doc)

    def put_blob(self, data: bytes | Path) -> str:
        content = data.read_bytes() if isinstance(data, Path) else bytes(data)
        digest = "blake3:" + blake3(content).hexdigest()
        self.blobs[digest] = content
        return digest

    def recipe(self) -> dict[str, Any]:
        return assemble(self.docs)


def assemble(docs: list[dict[str, Any]]) -> dict[str, Any]:
    """The recipe as the tracker puts it together (docs/formats.md, documents)."""
    recipe: dict[str, Any] = {}
    for doc in docs:
        if doc.get("type") != "recipe":
            continue
        value = doc["value"]
        recipe[doc["section"]] = _merge(recipe.get(doc["section"], {}), value) if doc.get("merge") else value
    return recipe


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for name, value in new.items():
        if isinstance(value, list) and isinstance(merged.get(name), list):
            merged[name] = merged[name] + value
        elif isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = {**merged[name], **value}
        else:
            merged[name] = value
    return merged
