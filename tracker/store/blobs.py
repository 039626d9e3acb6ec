"""The one place that knows which backend this instance uses: S3 where a bucket is set, else the folder below ENCORE_HOME."""

from __future__ import annotations

import functools
import secrets

from django.conf import settings

from tracker.store.backends.base import Backend, BadKey, MissingObject

__all__ = ["COLD", "BadKey", "MissingObject", "blob_store", "has_cold", "random_key"]

COLD = "cold"
"""Keys below this lie in the cold store, if the instance has one."""


def blob_store() -> Backend:
    """The instance's store; the same object each time, safe to use from many threads."""
    hot = _store(settings.ENCORE_S3["bucket"], tuple(sorted(settings.ENCORE_S3.items())), str(settings.ENCORE_STORE))
    return _tiered(hot, _cold()) if has_cold() else hot


def has_cold() -> bool:
    told = settings.ENCORE_COLD
    return bool(told["bucket"] or told["class"]) if settings.ENCORE_S3["bucket"] else bool(told["store"])


def _cold() -> Backend:
    told = settings.ENCORE_COLD
    if not settings.ENCORE_S3["bucket"]:
        return _store("", (), told["store"])
    s3 = {**settings.ENCORE_S3, "bucket": told["bucket"] or settings.ENCORE_S3["bucket"], "class": told["class"]}
    return _store(s3["bucket"], tuple(sorted(s3.items())), "")


@functools.lru_cache(4)
def _tiered(hot: Backend, cold: Backend) -> Backend:
    from tracker.store.backends.tiered import Tiered

    return Tiered(hot, cold, f"{COLD}/")


@functools.lru_cache(8)
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
