"""How far a rerun is kept from the machine: one protocol, a table of kinds.

Every kind answers the same questions; the steps never ask which kind it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from runner.errors import WorkerFault
from runner.order import Order
from runner.settings import Settings
from runner.workspace import JobFolder


@dataclass
class Placement:
    """What the data step found out, for the isolation to bring about."""

    restored: list[tuple[Path, str]] = field(default_factory=list)
    """(restored file of ours, the absolute path where the program expects it)."""
    in_place: list[str] = field(default_factory=list)
    """Recorded inputs used where they lie."""
    mapped: list[tuple[str, str]] = field(default_factory=list)
    """(where the file is on this machine, the absolute path where the program expects it)."""
    into_source: list[tuple[str, Path]] = field(default_factory=list)
    """(where the file is on this machine, its place in the restored source)."""


@dataclass(frozen=True)
class Prepared:
    view: dict[str, Any] | None
    """A plan for ``mounts.enter``, or None."""
    env: dict[str, str]
    redirect: dict[str, str]
    """For the rerun file: absolute path or folder -> where it is now."""
    restored: frozenset[str] = frozenset()


class Isolation(Protocol):
    name: str

    def works(self, settings: Settings) -> str | None:
        """None where it works on this machine, really tried; else why not."""

    def prepare(self, order: Order, folder: JobFolder, settings: Settings, placement: Placement, needed: list[str]) -> Prepared:
        """Makes ready. ``needed``: absolute paths that the program must see as they are. Raises RecipeFailure ``would_overwrite``."""

    def redirected(self, folder: JobFolder, prepared: Prepared) -> list[dict[str, str]]:
        """What the program wrote outside its folder, and where it landed."""

    def where(self, path: str, folder: JobFolder) -> Path:
        """Where an absolute path that the program wrote is now."""


def choose(settings: Settings) -> Isolation:
    """The operator's kind, or the strongest that works here. Raises WorkerFault if the chosen one does not work."""
    from runner.isolations.none import NoIsolation
    from runner.isolations.overlay import Overlay

    kinds: dict[str, Isolation] = {"overlay": Overlay(), "none": NoIsolation()}
    if settings.isolation in kinds:
        kind = kinds[settings.isolation]
        if why := kind.works(settings):
            raise WorkerFault(f"the isolation {kind.name!r} that this worker is set to does not work here: {why}")
        return kind
    if settings.isolation != "auto":
        raise WorkerFault(f"ENCORE_WORKER_ISOLATION={settings.isolation!r} is unknown; choose auto, {' or '.join(kinds)}")
    return next(kind for kind in kinds.values() if kind.works(settings) is None)
