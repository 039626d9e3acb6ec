"""What a process keeps decoded of the metric store: at most ``ENCORE_CACHE_MB`` in all, of which blocks' columns get the most."""

from __future__ import annotations

from django.conf import settings

from tracker.store.cache import ByteCache

_TOTAL = max(int(getattr(settings, "ENCORE_CACHE_MB", 384)), 1) * 2**20

directories = ByteCache(_TOTAL // 6)
columns = ByteCache(_TOTAL * 4 // 6)
hot = ByteCache(_TOTAL // 6)


def forget() -> None:
    """Empty them (tests)."""
    for cache in (directories, columns, hot):
        cache.clear()
