"""Whose history a run goes on, who goes on with its own, and where it went back."""

from __future__ import annotations

from collections.abc import Sequence

from tracker.models import Attempt, Run, User
from tracker.services import lineage


def of_run(user: User, run: Run, attempts: Sequence[Attempt], tab: str) -> dict:
    """``old_branches``: whether the charts can show any; on the overview ``forked_from`` and ``forks`` too."""
    old = [attempt for attempt in attempts if attempt.rewound_to is not None and attempt.number > 1]
    inherits = run.fork_run and any(attempt.rewound_to is not None for attempt in attempts)
    found: dict = {"old_branches": tab == "charts" and (old or inherits)}
    if tab == "overview":
        found.update(lineage.told(user=user, run=run), rewinds=old)
    return found
