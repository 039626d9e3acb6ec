"""Which run is meant: the two ways in which that can fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import EncoreError

if TYPE_CHECKING:
    from .runs import Run


class Ambiguous(EncoreError):
    """Several runs fit what was asked for; ``.runs`` has them."""

    def __init__(self, reference: str, runs: list[Run]) -> None:
        listed = "\n".join(f"  {run.id}  {run.project}/{run.name}  {run.state}" for run in runs[:20])
        more = "" if len(runs) <= 20 else f"\n  … and {len(runs) - 20} more"
        super().__init__(f"{reference!r} fits {len(runs)} runs; give the id of one:\n{listed}{more}")
        self.runs = runs


class NotFound(EncoreError):
    """No run fits what was asked for."""


def quoted(text: str) -> str:
    """A text of the filter language."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
