"""What can go wrong in a job, told apart by whose fault it is.

JobError
├── RecipeFailure     the recipe cannot be played here: named by a code of docs/formats.md, shown to the user as the reason
├── WorkerFault       ours: disk full, broken mount, tracker out of reach; says nothing about the recipe (inconclusive)
└── Stopped
    ├── Cancelled     somebody asked for it
    ├── LeaseLost     the job belongs to another worker now; nothing more may be written to it
    └── ShuttingDown  this worker ends; the lease runs out and the job is queued again
"""

from __future__ import annotations

from typing import Any

CODES = frozenset(
    {
        "source_missing", "source_differs", "python_missing", "package_missing", "environment_failed", "data_missing", "data_differs",
        "would_overwrite", "secret_missing", "program_failed", "cancelled", "lost", "limit",
    }
)  # fmt: skip


class JobError(Exception):
    """Base of all."""


class RecipeFailure(JobError):
    """``detail`` may hold ``missing``, ``expected``, ``found`` and more, all JSON."""

    def __init__(self, code: str, message: str, **detail: Any):
        if code not in CODES:
            raise ValueError(f"unknown failure code {code!r}")
        super().__init__(message)
        self.code, self.message, self.detail = code, message, detail

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, **self.detail}


class WorkerFault(JobError):
    """Not the recipe's fault."""

    def as_dict(self) -> dict[str, Any]:
        return {"code": "lost", "message": f"The worker could not do it, which says nothing about the run: {self}", "fault": "worker"}


class Stopped(JobError):
    """The job must end now, whatever it is doing."""


class Cancelled(Stopped):
    def as_dict(self) -> dict[str, Any]:
        return {"code": "cancelled", "message": "Cancelled on request; the program and everything it had started were stopped."}


class LeaseLost(Stopped):
    pass


class ShuttingDown(Stopped):
    pass
