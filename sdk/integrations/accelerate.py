"""A tracker for Accelerate: ``Accelerator(log_with=[EncoreTracker()])``, or ``log_with="encore"`` where Accelerate has a register.

``accelerator.log`` speaks on the main process alone; every process opens the run, so that its console, its exit and its machine are seen.
``accelerator.end_training()`` ends a run that the tracker began.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from accelerate import tracking  # type: ignore[import-not-found,unused-ignore]
from accelerate.state import PartialState  # type: ignore[import-not-found,unused-ignore]

from ._shared import Joined, numbers, settle


class EncoreTracker(tracking.GeneralTracker):  # type: ignore[misc,unused-ignore]
    """``project``: also what ``init_trackers`` gives as the project's name. All else are arguments of ``sdk.init``."""

    name = "encore"
    requires_logging_directory = False
    main_process_only = False

    def __init__(self, project: str | None = None, **init: Any) -> None:
        super().__init__()
        self._joined = Joined({**({"project": project} if project else {}), **init})

    def start(self) -> None:
        self._joined.begin()

    @property
    def tracker(self) -> Any:
        """The run."""
        return self._joined.begin()

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        if PartialState().is_main_process:
            settle(self.tracker, values)

    def log(self, values: Mapping[str, Any], step: int | None = None, **_: Any) -> None:
        found = numbers(values)
        if found:
            self.tracker.log(found, step)
        texts = {str(key): value for key, value in values.items() if isinstance(value, str)}
        if texts:
            self.tracker.event("note", texts, step)

    def finish(self) -> None:
        self._joined.end()


with contextlib.suppress(Exception):  # since accelerate 1.12 or so; before, an instance is all there is
    if EncoreTracker.name not in tracking.LOGGER_TYPE_TO_CLASS:
        tracking.register_tracker_class(EncoreTracker)
