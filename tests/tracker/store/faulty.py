"""Ways for the object store, and for the process, to fail at a chosen call: around the real backend, below everything that uses it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tracker.store import blobs
from tracker.store.metrics import MetricStore

CALLS = ("put", "read", "ranges", "open", "delete", "list")


class Faulty:
    """A backend whose call number ``at`` (of those in ``kinds``) fails, before or after its work is done."""

    def __init__(self, inner: Any, at: int = -1, *, after: bool = False, kinds: tuple[str, ...] = CALLS) -> None:
        self.inner, self.at, self.after, self.kinds = inner, at, after, kinds
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        work = getattr(self.inner, name)
        if name not in self.kinds:
            return work

        def called(*args: Any, **more: Any) -> Any:
            number = len(self.calls)
            self.calls.append(name)
            if number == self.at and not self.after:
                raise OSError(f"the store failed at {name}")
            found = work(*args, **more)
            if number == self.at:
                raise OSError(f"the store did {name} and failed to say so")
            return found

        return called


def install(monkeypatch, at: int = -1, **more: Any) -> Faulty:
    """Every ``blob_store()`` is this one from now on."""
    faulty = Faulty(blobs.blob_store(), at, **more)
    monkeypatch.setattr(blobs, "_store", lambda *_: faulty)
    return faulty


def die_at(point: int) -> Callable[[], int]:
    """End this process without a word at point number ``point``: before and after each call to the store and each move of rows.

    For a forked child. What is returned tells how many points it has passed.
    """
    passed = 0

    def pass_by() -> None:
        nonlocal passed
        if passed == point:
            os._exit(9)
        passed += 1

    def watched(work: Callable) -> Callable:
        def called(*args: Any, **more: Any) -> Any:
            pass_by()
            found = work(*args, **more)
            pass_by()
            return found

        return called

    inner = blobs.blob_store()
    for name in ("put", "read", "delete"):
        setattr(inner, name, watched(getattr(inner, name)))
    for name in ("move_to_block", "replace_blocks", "discard"):
        setattr(MetricStore, name, watched(getattr(MetricStore, name)))
    return lambda: passed
