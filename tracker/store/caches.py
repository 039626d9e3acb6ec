"""What a process keeps of the metric store: at most ``ENCORE_CACHE_MB`` in all, the least recently used goes first.

One memory for directories (by object key), columns, axes and pyramids (by object key, what and which), decoded hot segments (by writer and
first record) and key lists (by run and hash): whichever a workload needs gets the room. All of it never changes under its key.
"""

from __future__ import annotations

from django.conf import settings

from tracker.store.cache import ByteCache

directories = columns = hot = ByteCache(max(int(getattr(settings, "ENCORE_CACHE_MB", 384)), 1) * 2**20)


def forget() -> None:
    """Empty it (tests)."""
    directories.clear()
