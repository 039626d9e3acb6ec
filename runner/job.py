"""The state of one job, in one object that the steps pass on; never on the task."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.environments.venv import Environment
from runner.errors import RecipeFailure
from runner.isolations import Isolation, Placement, Prepared
from runner.manifest import Manifest
from runner.order import Order
from runner.report import Report
from runner.settings import Settings
from runner.workspace import BlobCache, JobFolder


@dataclass
class Job:
    order: Order
    settings: Settings
    folder: JobFolder
    report: Report
    blobs: BlobCache
    isolation: Isolation
    manifest: Manifest | None = None
    environment: Environment | None = None
    placement: Placement = field(default_factory=Placement)
    prepared: Prepared | None = None
    failure: RecipeFailure | None = None
    """Why the job failed although its steps went on (the program's own failure)."""
    differences: list[dict[str, Any]] = field(default_factory=list)
    """``{"fact", "was", "is"}`` of whatever is not as recorded."""
    evidence: dict[str, Any] = field(default_factory=lambda: {"format": 1})

    def differs(self, fact: str, was: Any, now: Any) -> None:
        self.differences.append({"fact": fact, "was": was, "is": now})

    def stored(self, digest: str, name: str, target: Path) -> None:
        """A blob as a new file, with ``name`` in the failure if the tracker has it no more."""
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self.blobs.put(digest, target)
        except RecipeFailure as failure:
            failure.message = f"{name}: {failure.message}"
            failure.detail.setdefault("path", name)
            raise
