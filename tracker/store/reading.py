"""Series as they are stored: one snapshot of blocks and hot segments, put together to columns, nothing left out.

Charts go through ``services/series.py``; verdicts, histories and exports read here, at full resolution. The steps of a read:
``snapshot`` (rows of one moment) → ``block_reads`` and ``hot_reads`` (pieces) → ``stitching`` (columns).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from tracker.domain.errors import Unavailable
from tracker.domain.lineage import Fork
from tracker.store import blocks, caches
from tracker.store.backends.base import StoreTrouble
from tracker.store.blobs import MissingObject
from tracker.store.block_reads import BlockReader
from tracker.store.blocks import DamagedBlock
from tracker.store.columns import ALL, CURRENT, HI, LO, Column, Line, Piece, WriterInfo
from tracker.store.key_reads import Last, keys_of_snapshot, lasts_of_snapshot
from tracker.store.snapshot import RUNS_AT_ONCE, Asked, Snapshot, plans_of, with_ancestors, writers_of
from tracker.store.stitching import Stitcher

__all__ = [
    "ALL", "CURRENT", "HI", "LO", "RUNS_AT_ONCE", "Column", "DamagedBlock", "Last", "Line", "WriterInfo", "forget", "history",
    "keys_of", "last_values", "plans_of", "read", "read_intact", "with_ancestors", "writers_of",
]  # fmt: skip
TRIES = 3
PAUSE_SECONDS = 0.1
Found = TypeVar("Found")


def history(
    run_ids: Sequence[str],
    keys: Sequence[str],
    ranks: Iterable[int] | None = None,
    *,
    lo_step: int = LO,
    hi_step: int = HI,
    forks: Mapping[str, Sequence[Fork]] | None = None,
    branch: str | int = CURRENT,
) -> list[Column]:
    """Every point of these keys, at full resolution: one Column for each (run, key, rank) that has any.

    ``ranks`` None is all of them. Sorted by the order of ``run_ids`` and ``keys``, then rank. The caller has asked whether the
    runs may be seen, and the ancestors in ``forks`` (services/lineage.py); without them a fork has its own points alone.
    ``branch``: CURRENT, what later attempts have not rewound; ALL, with a Column for each old branch too; a number, all that this
    attempt logged itself. Raises DamagedBlock and Unavailable, as ``read`` does.
    """
    return read(run_ids, keys, ranks, lo_step=lo_step, hi_step=hi_step, forks=forks, branch=branch)[0]


def read(
    run_ids: Sequence[str],
    keys: Sequence[str],
    ranks: Iterable[int] | None = None,
    *,
    lo_step: int = LO,
    hi_step: int = HI,
    since: dict[str, int] | None = None,
    forks: Mapping[str, Sequence[Fork]] | None = None,
    branch: str | int = CURRENT,
    shifts: Mapping[str, Mapping[str, int]] | None = None,
) -> tuple[list[Column], dict[str, WriterInfo]]:
    """``history`` with the writers of the same snapshot, ancestors' too. ``since``: only records from there on, by writer.

    ``shifts``: for each fork, µs that are added to the times of each run it is made of, so that they fit on one clock.
    Raises DamagedBlock, which names run, key and object, where points are stored but cannot be read; Unavailable where the object
    store does not answer, asked three times.
    """
    columns, writers, damaged = read_intact(
        run_ids, keys, ranks, lo_step=lo_step, hi_step=hi_step, since=since, forks=forks, branch=branch, shifts=shifts
    )
    if damaged:
        raise damaged[0]
    return columns, writers


def read_intact(
    run_ids: Sequence[str],
    keys: Sequence[str],
    ranks: Iterable[int] | None = None,
    *,
    lo_step: int = LO,
    hi_step: int = HI,
    since: Mapping[str, int] | None = None,
    forks: Mapping[str, Sequence[Fork]] | None = None,
    branch: str | int = CURRENT,
    shifts: Mapping[str, Mapping[str, int]] | None = None,
) -> tuple[list[Column], dict[str, WriterInfo], list[DamagedBlock]]:
    """``read`` that leaves out the series it cannot read in full, and says which blocks are damaged instead of raising.

    A DamagedBlock without ``key`` (its directory is damaged) leaves out all keys of its run.
    """
    chosen = None if ranks is None else frozenset(ranks)
    asked = Asked(run_ids, tuple(dict.fromkeys(keys)), chosen, lo_step, hi_step, since, forks or {}, branch, shifts or {})
    place = {run: at for at, run in enumerate(run_ids)}
    position = {key: at for at, key in enumerate(keys)}

    def once() -> tuple[list[Column], dict[str, WriterInfo], list[DamagedBlock]]:
        snapshot = Snapshot(asked).take()
        pieces, damaged = _pieces(snapshot)
        found = [column for column in Stitcher(snapshot).columns(snapshot.runs, pieces) if not _is_hurt(column, damaged, asked.forks)]
        found.sort(key=lambda column: (place[column.run], position[column.key], column.rank, column.branch or 0))
        return found, snapshot.writers, damaged

    return patiently(once)


def last_values(run_ids: Sequence[str], keys: Sequence[str] | None = None) -> dict[tuple[str, str, int], Last]:
    """The last point of each (run, key, rank): the one of the greatest (attempt, writer's start, record).

    From the directories of blocks and, of the hot segments, the newest of each writer and set of key lists: no column is decoded.
    Runs that are stitched (rewound; ancestors are not asked) have their points read instead. ``keys`` None: of all there are.
    Raises DamagedBlock and Unavailable.
    """

    def once() -> dict[tuple[str, str, int], Last]:
        found, stitched = lasts_of_snapshot(Asked(run_ids, None if keys is None else tuple(dict.fromkeys(keys))))
        for run in stitched:
            names = list(keys_of(run)) if keys is None else keys
            for column in history([run], names):
                at = -1 if column.order is None else int(column.order.max())
                is_whole = column.bits is not None and column.is_int is not None and column.is_int[at]
                value = int(column.bits[at]) if is_whole else column.values[at].item()  # type: ignore[index]
                found[run, column.key, column.rank] = Last(int(column.steps[at]), value)
        return found

    return patiently(once)


def keys_of(run_id: str) -> dict[str, dict[int, int]]:
    """Every metric key of a run with its points by rank, exactly: for lists that MetricSummary (bounded) does not hold.

    Raises DamagedBlock and Unavailable.
    """
    return patiently(lambda: keys_of_snapshot(run_id))


def patiently(once: Callable[[], Found]) -> Found:
    """``once`` with a new snapshot where an object was compacted again and swept since the last, or the store erred."""
    for tried in range(1, TRIES + 1):
        try:
            return once()
        except MissingObject as problem:
            if tried == TRIES:
                raise DamagedBlock(f"Block {problem} is missing from the store. Restore the object from a backup.") from None
        except StoreTrouble as problem:
            if tried == TRIES:
                raise Unavailable(f"The object store does not answer: {problem}. Try again.", retry_after=5) from None
            time.sleep(PAUSE_SECONDS * tried)
    raise AssertionError


def _pieces(snapshot: Snapshot) -> tuple[dict[str, dict[tuple[str, int], dict[str, list[Piece]]]], list[DamagedBlock]]:
    asked, writers = snapshot.asked, snapshot.writers
    pieces: dict[str, dict[tuple[str, int], dict[str, list[Piece]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    keys = asked.keys or ()
    hashes = np.array([blocks.key_hash(key) for key in keys], np.uint64)
    reader = BlockReader()
    for row, key, piece in reader.pieces(snapshot.blocks, keys, hashes, asked.lo_step, asked.hi_step):
        pieces[row.run][key, writers[row.writer].rank][row.writer].append(piece)
    for batch in snapshot.hot:
        info = writers[batch.writer]
        of_run = pieces[info.run]
        for key, piece in batch.pieces(keys):
            of_run[key, info.rank][batch.writer].append(piece)
    return pieces, reader.damaged


def _is_hurt(column: Column, damaged: list[DamagedBlock], forks: Mapping[str, Sequence[Fork]]) -> bool:
    """Whether points of it lie in a damaged block: half a series would look like a whole one."""
    if not damaged:
        return False
    its = {column.run, *(fork.run for fork in forks.get(column.run, ()))}
    return any(problem.run in its and problem.key in (None, column.key) for problem in damaged)


def forget() -> None:
    """Empty the caches (tests)."""
    caches.forget()
