"""What the SDK raises, and only where a user asked for it (``ENCORE_STRICT=1``, the CLI, ``resume="must"``).

EncoreError
├── UsageError            an argument that cannot mean anything
├── ValueRefused          log() met a value that is no number (only under ENCORE_STRICT=1)
├── FormatError           bytes that are not what docs/formats.md says
├── ServerUnreachable     no answer from the server
└── ServerRefused         the server answered with an error; .status, .code, .fields
"""

from __future__ import annotations

from typing import Any

NOT_YET = "comes with a later version of Encore"


class EncoreError(Exception):
    """Root of all errors of the SDK."""


class UsageError(EncoreError):
    """An argument that cannot mean anything; the sentence says what would."""


class ValueRefused(EncoreError):
    """A value that log() cannot take. Raised only under ENCORE_STRICT=1; otherwise it is dropped, counted and said."""


class FormatError(EncoreError):
    """Bytes that do not follow docs/formats.md, or a version newer than this reader."""


class ServerUnreachable(EncoreError):
    """The server did not answer: refused, timed out, or cut in the middle."""


class ServerRefused(EncoreError):
    """The server answered with an error of its own."""

    def __init__(self, status: int, code: str, message: str, fields: dict[str, Any] | None = None) -> None:
        super().__init__(f"{message} ({status} {code})")
        self.status, self.code, self.message, self.fields = status, code, message, fields or {}
