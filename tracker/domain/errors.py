"""Every error that has a name. Doors answer them all in one shape, ``{"code", "message", "fields"}`` (docs/api.md).

EncoreError
├── Invalid 400                 the question itself is wrong; ``fields`` says where
│   └── FilterMistake           the filter language, with the column
│       └── FilterTooSlow       nothing wrong with it, but the database gave up
├── Unauthenticated 401
├── Forbidden 403               seen, but not allowed
├── NotFound 404                unknown, or not for these eyes: the two look the same
│   └── WriterUnknown           open the writer again
├── Conflict 409
│   ├── RunIdTaken, ProjectTaken
│   ├── RangeConflict           ``fields.next``: cut the batch again from there
│   ├── RangeDiffers            other points are stored under these record numbers: set these aside, go on from ``fields.next``
│   ├── KeylistUnknown          send the batch again with its keys
│   ├── JobTaken, LeaseLost
│   └── RunNotFinished, AlreadyOver
├── Gone 410 (RunDeleted)
├── TooLarge 413
├── Refused 422                 a body that can never be accepted; nothing of it was stored
└── Busy 429                    wait ``retry_after`` seconds
    └── Unavailable 503
"""

from __future__ import annotations

from typing import Any


class EncoreError(Exception):
    """``message`` says what happened and what to do; ``fields`` carries the facts a program needs."""

    code = "error"
    status = 500
    default = "Something went wrong."

    def __init__(self, message: str = "", *, code: str | None = None, retry_after: int | None = None, **fields: Any) -> None:
        self.message = message or self.default
        self.fields = fields
        self.retry_after = retry_after
        if code:
            self.code = code
        super().__init__(self.message)


class Invalid(EncoreError):
    code, status, default = "invalid", 400, "The request is not valid."


class FilterMistake(Invalid):
    """``fields``: ``filter`` (the text) and ``column`` (from 1)."""

    code = "filter_mistake"


class FilterTooSlow(FilterMistake):
    code = "filter_too_slow"
    default = "This filter takes too long here: narrow it to a project, or use fewer terms, = instead of ~, LIKE and =~."


class Unauthenticated(EncoreError):
    code, status = "unauthenticated", 401
    default = "Log in, or send a token: 'Authorization: Bearer <token>' (make one with 'encore token create')."


class Forbidden(EncoreError):
    code, status, default = "forbidden", 403, "You may see this, but not do that with it."


class NotFound(EncoreError):
    code, status, default = "not_found", 404, "There is no such thing, or you may not see it."


class WriterUnknown(NotFound):
    code, default = "writer_unknown", "This writer is not open here: post its writer.json to ingest/writers first."


class Conflict(EncoreError):
    code, status = "conflict", 409


class RunIdTaken(Conflict):
    code, default = "run_id_taken", "This run id belongs to somebody else: choose another ENCORE_RUN_ID."


class ProjectTaken(Conflict):
    code = "project_taken"
    default = "A project of this name exists and you may not write into it: choose another, or ask its owner for the editor's role."


class RangeConflict(Conflict):
    code, default = "range", "The range does not start at the next record: cut the batch again from fields.next."


class RangeDiffers(Conflict):
    code = "range_conflict"
    default = (
        "Other points are stored under these record numbers, and stay: two writers share one id, or the journal was changed. "
        "Set this batch aside and go on from fields.next."
    )


class KeylistUnknown(Conflict):
    code, default = "keylist_unknown", "The server has not seen this key list: send the batch again with keys and types."


class JobTaken(Conflict):
    code, default = "job_taken", "The job is not waiting: another worker has it, or it is over."


class LeaseLost(Conflict):
    code, default = "lease_lost", "The lease of this job is gone: stop the program; nothing more of it is accepted."


class RunNotFinished(Conflict):
    code, default = "run_not_finished", "The run has not ended yet: wait for it, or stop it first."


class AlreadyOver(Conflict):
    code, default = "already_over", "It is already over."


class Gone(EncoreError):
    code, status, default = "gone", 410, "It was deleted."


class RunDeleted(Gone):
    code, default = "run_deleted", "The run was deleted: stop sending. The journal on the sender's machine stays."


class TooLarge(EncoreError):
    code, status, default = "too_large", 413, "The body is too large."


class Refused(EncoreError):
    code, status, default = "refused", 422, "The body cannot be accepted, now or later."


class Busy(EncoreError):
    code, status, default = "busy", 429, "The server is busy: wait, then send again."

    def __init__(self, message: str = "", *, code: str | None = None, retry_after: int | None = 5, **fields: Any) -> None:
        super().__init__(message, code=code, retry_after=retry_after, **fields)


class Unavailable(Busy):
    code, status, default = "unavailable", 503, "Not available just now: try again."
