"""Whether a failure means that the database or the object store is away for the moment, and not that somebody made a mistake."""

from __future__ import annotations

import errno
import sys

from django.db import InterfaceError, OperationalError

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT}
_SQLITE = ("locked", "busy", "full", "disk I/O", "unable to open", "readonly")
"""SQLite also calls a wrong statement an OperationalError; these are the words of those that pass."""
_LATER = {"InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "ThrottlingException", "Throttling"}


def database_is_away(error: BaseException) -> bool:
    """Locked, full, restarting or not to be reached."""
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    cause = error.__cause__
    if type(cause).__module__.startswith(("sqlite3", "pysqlite3")):
        return any(word in str(error) for word in _SQLITE)
    return getattr(cause, "sqlstate", None) != "57014"  # a statement that was cancelled for its own length


def store_is_away(error: BaseException) -> bool:
    """The object store does not answer, answers with a fault of its own, breaks off, or its disk is full or failing."""
    if isinstance(error, OSError) and error.errno in _DISK:
        return True
    botocore = sys.modules.get("botocore.exceptions")  # without it no S3 was ever asked
    if botocore is None:
        return False
    if isinstance(error, botocore.ClientError):
        said = error.response
        status = said.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429 or said.get("Error", {}).get("Code") in _LATER
    return isinstance(error, botocore.BotoCoreError | botocore.HTTPClientError) or type(error).__module__.startswith("urllib3.")
