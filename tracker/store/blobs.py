"""The one place that knows which backend this instance uses: S3 where a bucket is set, else the folder below ENCORE_HOME."""

from __future__ import annotations

import functools
import secrets

from django.conf import settings

from tracker.store.backends.base import Backend, BadKey, MissingObject

__all__ = ["BadKey", "MissingObject", "blob_store", "random_key"]


def blob_store() -> Backend:
    """The instance's store; the same object each time, safe to use from many threads."""
    return _store(settings.ENCORE_S3["bucket"], tuple(sorted(settings.ENCORE_S3.items())), str(settings.ENCORE_STORE))


@functools.lru_cache(4)
def _store(bucket: str, s3: tuple, folder: str) -> Backend:
    if bucket:
        from tracker.store.backends.s3 import S3

        return S3(dict(s3))
    from tracker.store.backends.folder import Folder

    return Folder(folder)


def random_key(folder: str, suffix: str = "") -> str:
    """A key nobody can guess or collide with, below ``folder``; the second level keeps folders small."""
    name = secrets.token_hex(16)
    return f"{folder}/{name[:2]}/{name}{suffix}"
