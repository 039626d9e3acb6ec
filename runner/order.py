"""The order of a job as the tracker hands it out (docs/formats.md, Job order): read once, asked by every step."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from typing import Any

from runner.errors import RecipeFailure, WorkerFault

ID = re.compile(r"[a-z2-7]{26}")
FORMAT = 1


@dataclass(frozen=True)
class Order:
    job: str
    fence: int
    lease_seconds: float
    key: str
    project: str
    run: str
    original: str | None
    recipe: dict[str, Any]
    overrides: dict[str, Any]
    scope: dict[str, Any]
    limits: dict[str, Any]

    def __repr__(self) -> str:  # the key never shows in a traceback or log
        return f"Order(job={self.job!r}, fence={self.fence}, run={self.run!r})"

    @property
    def command(self) -> dict[str, Any]:
        return _section(self.recipe, "command")

    @property
    def source(self) -> dict[str, Any]:
        return _section(self.recipe, "source")

    @property
    def environment(self) -> dict[str, Any]:
        return _section(self.recipe, "environment")

    @property
    def numerics(self) -> dict[str, Any]:
        return _section(self.recipe, "numerics")

    @property
    def inputs(self) -> list[dict[str, Any]]:
        return _entries(self.recipe, "inputs")

    @property
    def outputs(self) -> list[dict[str, Any]]:
        return _entries(self.recipe, "outputs")

    def folders_written_to(self) -> list[tuple[str, str | None]]:
        """(absolute path, path in the source root or None) of the folders that were there when the program first wrote into them.

        A snapshot holds no empty or ignored folder, and a private /tmp begins empty. What the program made itself it makes again.
        """
        made = [entry["path"] for entry in self.outputs if entry.get("by") == "folder"]
        found: dict[str, str | None] = {}
        for entry in self.outputs:
            folder, below = posixpath.dirname(entry["path"]), entry.get("in_root")
            if folder.startswith("/") and not any(inside(folder, each) is not None for each in made):
                found[folder] = posixpath.dirname(below) if isinstance(below, str) else None
        return list(found.items())

    @property
    def root(self) -> str:
        """The original source root, absolute, without a trailing slash; "" where none was recorded."""
        root = self.source.get("root")
        return posixpath.normpath(root) if isinstance(root, str) and root.startswith("/") else ""

    @property
    def original_home(self) -> str | None:
        """HOME of the original run: as recorded, else guessed from its root."""
        home = (self.command.get("env") or {}).get("HOME")
        if isinstance(home, str) and home.startswith("/"):
            return posixpath.normpath(home)
        guess = re.match(r"/root(?=/|$)|/(?:home|Users)/[^/]+", self.root or "")
        return guess.group() if guess else None

    @property
    def seconds(self) -> float | None:
        value = self.limits.get("seconds")
        return float(value) if isinstance(value, (int, float)) and value > 0 else None


def read(body: Any, job_id: str) -> Order:
    """Raises WorkerFault if the answer is no order that this version understands."""
    if not isinstance(body, dict):
        raise WorkerFault("the tracker answered the claim with something that is no order")
    if not isinstance(body.get("format"), int) or body["format"] > FORMAT:
        raise WorkerFault(f"the order has format {body.get('format')!r}, this worker reads up to {FORMAT}; update the worker")
    if body.get("job") != job_id or not ID.fullmatch(str(body.get("run"))) or not ID.fullmatch(job_id):
        raise WorkerFault("the order names another job, or ids that are not ids")
    try:
        return Order(
            job=job_id,
            fence=int(body["fence"]),
            lease_seconds=float(body.get("lease_seconds") or 60),
            key=str(body["key"]),
            project=str(body["project"]),
            run=body["run"],
            original=body.get("original"),
            recipe=_section(body, "recipe"),
            overrides=_section(body, "overrides"),
            scope=_section(body, "scope"),
            limits=_section(body, "limits"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WorkerFault(f"the order lacks a field this worker needs: {error!r}") from error


def inside(path: str, folder: str) -> str | None:
    """``path`` relative to ``folder`` ("." for itself), or None if it does not lie in it. Purely by text."""
    path, folder = posixpath.normpath(path), posixpath.normpath(folder)
    if path == folder:
        return "."
    prefix = folder if folder.endswith("/") else folder + "/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def relative(path: Any, what: str) -> str:
    """A recorded relative path that stays where it belongs. Raises RecipeFailure for one that does not."""
    if not isinstance(path, str) or not path or "\0" in path or path.startswith("/") or ".." in path.split("/"):
        raise RecipeFailure(
            "source_differs", f"The recipe names {what} as {path!r}, which does not stay inside the source folder.", missing=str(path)
        )
    return posixpath.normpath(path)


def _section(mapping: dict[str, Any], name: str) -> dict[str, Any]:
    value = mapping.get(name)
    return value if isinstance(value, dict) else {}


def _entries(recipe: dict[str, Any], name: str) -> list[dict[str, Any]]:
    value = _section(recipe, "data").get(name)
    return [entry for entry in value if isinstance(entry, dict) and isinstance(entry.get("path"), str)] if isinstance(value, list) else []
