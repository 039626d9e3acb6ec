"""What log() could not take: counted by reason, said once, and due to be told to the run's page while the run goes on."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque

MAX_REASONS = 50  # shapes of arrays are without number
MAX_SAID = 20
TELL_EVERY_SECONDS = 10.0


class Losses:
    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self.inexact = 0
        self._new: deque[tuple[str, int]] = deque()
        self._folding = threading.Lock()  # taken without waiting alone: a signal handler may come in between
        self._said: set[str] = set()
        self._untold = False
        self._tell_after = 0.0

    def add(self, reason: str, count: int = 1) -> None:
        self._new.append((reason, count))
        self._untold = True
        self._fold()

    def _fold(self) -> None:
        if not self._folding.acquire(blocking=False):
            return
        try:
            counts = self._counts
            while self._new:
                reason, count = self._new.popleft()
                if reason not in counts and len(counts) >= MAX_REASONS:
                    reason = "other"
                counts[reason] = counts.get(reason, 0) + count
        finally:
            self._folding.release()

    @property
    def counts(self) -> dict[str, int]:
        self._fold()
        return self._counts

    def all(self) -> dict[str, int]:
        return self.counts | ({"inexact": self.inexact} if self.inexact else {})

    def due(self) -> bool:
        """Whether there are losses that the page does not know yet; true once, then not before ten seconds have passed."""
        if not self._untold:
            return False
        now = time.monotonic()
        if now < self._tell_after:
            return False
        self._untold, self._tell_after = False, now + TELL_EVERY_SECONDS
        return True

    def say(self, sentence: str, once: str | None = None) -> None:
        if once is not None:
            if once in self._said or len(self._said) > MAX_SAID:
                return
            self._said.add(once)
        with contextlib.suppress(Exception):
            print(f"encore: {sentence}", file=sys.__stderr__ or sys.stderr, flush=True)
