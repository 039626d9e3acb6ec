"""Two runs laid side by side: every compared pair with its judgement, and what follows from how both ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from tracker.domain import sentences as say
from tracker.domain.compare import Gap, Pair
from tracker.domain.endings import End, Ending, of_original, same_failure
from tracker.domain.keys import KeyMeaning

Ends = Mapping[int | None, int]


@dataclass(frozen=True)
class Envelope:
    """How far values may lie apart: ``given`` by a person, ``measured`` from repeats, or the spread of ``seeds``.
    ``keys``: glob → bounds (relative, absolute) of its own."""

    source: str
    relative: float = 0.0
    absolute: float = 0.0
    repeats: int | None = None
    keys: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def bounds(self, key: str) -> tuple[float, float]:
        matching = [bounds for pattern, bounds in self.keys.items() if fnmatchcase(key, pattern)]
        return matching[-1] if matching else (self.relative, self.absolute)

    def words(self) -> str:
        return self.source + (f", {say.count(self.repeats, 'repeat')}" if self.repeats else "")


@dataclass
class Row:
    """A pair with its judgement."""

    pair: Pair
    meaning: KeyMeaning
    excused: int = 0  # points of the original that the rerun could not reach
    beyond: int = 0  # points of the rerun after the original had ended
    lost: int = 0  # points that may have been lost on the way
    difference: Gap | None = None
    evidence: bool = True

    @property
    def why_not(self) -> str | None:
        if self.evidence:
            return None
        return self.meaning.why_not or "a constant: it would be the same whatever was computed"

    @property
    def rank_order(self) -> int:
        return -1 if self.pair.rank is None else self.pair.rank


@dataclass
class Case:
    """``steps``: the probe's length, else None. ``reshaped``: other world sizes, so ranks were reduced before they were compared."""

    original: End
    rerun: End
    ending: Ending
    rows: list[Row]
    steps: int | None
    reshaped: bool
    envelope: Envelope | None

    def __post_init__(self) -> None:
        self.first = of_original(self.original)
        self.ends_original = _ends(self.rows, "last_logged")
        self.ends_rerun = _ends(self.rows, "last_found")
        self.reproduced = self.first.kind == self.ending.kind == "failed" and same_failure(self.original, self.rerun, self.ending)
        self.probe_reached = self._probe_reached()
        self.short = self._short()
        for row in self.rows:
            self._assess(row)
        self.evident: Sequence[Row] = [row for row in self.rows if row.evidence]
        self.logged = sum(row.pair.logged for row in self.evident)
        self.compared = sum(row.pair.compared for row in self.evident)
        self.lost = sum(row.lost for row in self.evident)
        self.divergence = min((row for row in self.evident if row.difference), key=self._order(), default=None)

    @property
    def whole(self) -> bool:
        """Every evidence point that was to be compared was."""
        return bool(self.evident) and all(
            row.pair.compared + (row.excused if self.probe_reached else 0) == row.pair.logged for row in self.evident
        )

    def _probe_reached(self) -> bool:
        """A probe is stopped in the middle of its last step: what that step lacks is no difference."""
        if self.steps is None or not self.ends_rerun:
            return False
        return max(self.ends_rerun.values()) + 1 >= min(self.steps, max(self.ends_original.values(), default=self.steps))

    def _rank_reached(self, rank: int | None) -> bool:
        assert self.steps is not None
        return rank in self.ends_rerun and self.ends_rerun[rank] + 1 >= min(self.steps, self.ends_original.get(rank, self.steps))

    def _short(self) -> bool:
        """A rerun that ended by itself, equal as far as it went, before the original's end: it skipped or resumed, it did not diverge."""
        found, logged = self.ends_rerun, self.ends_original
        if self.ending.kind != "finished" or self.probe_reached or not found or not logged or max(found.values()) >= max(logged.values()):
            return False
        pairs = [row.pair for row in self.rows if row.meaning.evidence]
        return all(
            p.differing == 0 and not len(p.extra) and (not len(p.missing) or p.missing[0] >= found.get(p.rank, p.missing[0])) for p in pairs
        )

    def _assess(self, row: Row) -> None:
        """What of a pair's missing and extra points is a difference, and what follows from an early end or a loss on the way."""
        pair = row.pair
        tail_missing = not self.reproduced and (self.ending.kind != "finished" or self.short or self.probe_reached)
        tail_extra = not self.reproduced and self.first.kind != "finished"
        row.excused = _tail(pair.missing, self.ends_rerun.get(pair.rank)) if tail_missing else 0
        if self.probe_reached and not self._rank_reached(pair.rank):
            row.excused = 0  # the probe went as far as it should, but this rank did not
        row.beyond = _tail(pair.extra, self.ends_original.get(pair.rank)) if tail_extra else 0
        missing = pair.first_missing if row.excused < len(pair.missing) else None
        extra = pair.first_extra if row.beyond < len(pair.extra) else None
        if missing is not None and self.rerun.dropped:
            row.lost, missing = len(pair.missing) - row.excused, None
        if extra is not None and self.original.dropped:
            row.lost, extra = row.lost + len(pair.extra) - row.beyond, None
        value = pair.outside if self.envelope else pair.first
        row.difference = min((gap for gap in (value, missing, extra) if gap is not None), key=lambda gap: gap.step, default=None)
        # A constant that is equal proves nothing; one that changed or lacks points disproves.
        row.evidence = row.meaning.evidence and not (pair.constant and row.difference is None)
        if pair.logged == 0 and row.difference is None and not row.lost:
            row.evidence = False

    def _order(self) -> Callable[[Row], tuple[int, int, str, int]]:
        """By step; then by when the key was logged at that step (on any rank: clocks of two machines say nothing), by key, by rank."""
        logged: dict[tuple[str, int], int] = {}
        for row in self.rows:
            if row.difference:
                at = (row.pair.key, row.difference.step)
                time = row.pair.times.get(row.difference.step, 0)
                logged[at] = min(time, logged.get(at, time))

        def key(row: Row) -> tuple[int, int, str, int]:
            assert row.difference is not None
            return row.difference.step, logged[row.pair.key, row.difference.step], row.pair.key, row.rank_order

        return key

    def largest_gap(self) -> tuple[str, Gap] | None:
        gaps = [(row.pair.key, row.pair.largest) for row in self.evident if row.pair.largest is not None]
        finite = [(key, gap) for key, gap in gaps if gap.relative is not None and math.isfinite(gap.relative)]
        return max(finite, key=lambda item: item[1].relative or 0.0, default=None)


def _ends(rows: Iterable[Row], side: str) -> Ends:
    """Rank → the last step of any of its metrics."""
    ends: dict[int | None, int] = {}
    for row in rows:
        last = getattr(row.pair, side)
        if last is not None:
            ends[row.pair.rank] = max(last, ends.get(row.pair.rank, last))
    return ends


def _tail(steps: np.ndarray, end: int | None) -> int:
    """How many of ``steps`` lie at or after the rank's end; all of them where the rank never began."""
    return len(steps) if end is None else int(np.count_nonzero(steps >= end))
