"""Series as they are stored: one snapshot of blocks and hot segments, put together to columns, nothing left out.

Charts go through ``services/series.py``; verdicts, histories and exports read here, at full resolution.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tracker.domain import lineage, repeated
from tracker.domain.lineage import Fork, Span
from tracker.store import blocks, rows, wire
from tracker.store.blobs import MissingObject, blob_store
from tracker.store.cache import ByteCache
from tracker.store.inflate import inflate
from tracker.store.metrics import metric_store

LO, HI = lineage.LO, lineage.HI
CURRENT, ALL = "current", "all"
RUNS_AT_ONCE = 500

_directories = ByteCache(64 * 2**20)
_columns = ByteCache(256 * 2**20)
_batches = ByteCache(64 * 2**20)


@dataclass(slots=True, frozen=True)
class WriterInfo:
    id: str
    run: str
    rank: int
    attempt: int
    started_us: int
    next: int
    rewound_to: int | None = None
    """Of its attempt: what earlier attempts have beyond this step is an old branch."""
    kind: str = "trainer"
    last_step: int | None = None


@dataclass(slots=True)
class Piece:
    """Points of one key from one frame or block column, in order of records. ``values`` are float64 or int64."""

    records: np.ndarray
    steps: np.ndarray
    times: np.ndarray
    values: np.ndarray
    is_rising: bool = False
    """Known to rise in records and steps."""


@dataclass
class Column:
    """The points of (run, key, rank) on one branch, in the order in which they win: ancestors, attempt, writer's start, record number.

    ``values`` is int64 if every point is an integer, else float64; a key that logged both has ``bits`` and ``is_int``, which are
    exact also beyond 2**53. ``times`` are µs UTC.
    """

    run: str
    key: str
    rank: int
    records: np.ndarray
    steps: np.ndarray
    times: np.ndarray
    values: np.ndarray
    attempts: list[tuple[int, int]]
    """(attempt number, points) in order; ``lineage.INHERITED`` for points of an ancestor."""
    bits: np.ndarray | None = None
    is_int: np.ndarray | None = None
    branch: int | None = None
    """The attempt that left this old branch; None for the run's history."""

    @functools.cached_property
    def attempt(self) -> np.ndarray:
        """Attempt number of each point, int32."""
        return np.repeat(np.array([a for a, _ in self.attempts], "i4"), [n for _, n in self.attempts])

    @functools.cached_property
    def order(self) -> np.ndarray | None:
        """Positions of the winning points by rising step; None where that is all of them as they stand."""
        return repeated.winning_order(self.steps)

    @functools.cached_property
    def winner(self) -> np.ndarray:
        """True where no later point has the same step."""
        mask = np.ones(len(self.steps), bool)
        if self.order is not None:
            mask[:] = False
            mask[self.order] = True
        return mask


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
    attempt logged itself.
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
    """
    wanted = None if ranks is None else set(ranks)
    for attempt in (1, 2, 3):
        source = _Source(run_ids, tuple(dict.fromkeys(keys)), wanted, lo_step, hi_step, since, forks, branch, shifts)
        try:
            source.take_snapshot()
            found = source.columns()
        except MissingObject:
            if attempt == 3:
                raise
            continue  # compacted again and swept since the snapshot: look anew
        place = {run: at for at, run in enumerate(run_ids)}
        position = {key: at for at, key in enumerate(keys)}
        found.sort(key=lambda column: (place[column.run], position[column.key], column.rank, column.branch or 0))
        return found, source.writers
    raise AssertionError


def with_ancestors(run_ids: Sequence[str], forks: Mapping[str, Sequence[Fork]]) -> list[str]:
    return list(dict.fromkeys([*run_ids, *(fork.run for run in run_ids for fork in forks.get(run, ()))]))


def writers_of(run_ids: Sequence[str]) -> dict[str, WriterInfo]:
    """The writers of these runs and where they stand."""
    with rows.cursor() as cursor:
        return _writers(cursor, run_ids)


def plans_of(run_ids: Sequence[str], writers: Mapping[str, WriterInfo], forks: Mapping[str, Sequence[Fork]]) -> dict[str, list[Span]]:
    """The spans of those runs where something is rewound or inherited. Of all others every point is their history, as it stands."""
    rewound = {info.run for info in writers.values() if info.rewound_to is not None}
    plain = not rewound and not forks
    stitched = [] if plain else [run for run in run_ids if run in rewound or forks.get(run)]
    if not stitched:
        return {}
    by_attempt: dict[tuple[str, int], list[WriterInfo]] = defaultdict(list)
    for info in writers.values():
        by_attempt[info.run, info.attempt].append(info)
    starts: dict[str, list[lineage.Start]] = defaultdict(list)
    for (name, attempt), mine in by_attempt.items():
        trainers = [info for info in mine if info.kind == "trainer"] or mine
        steps = [info.last_step for info in trainers if info.last_step is not None]
        started = min(info.started_us for info in trainers)
        starts[name].append(lineage.Start(attempt, mine[0].rewound_to, started, max(steps, default=None)))
    return {run: lineage.plan(run, starts, forks.get(run, ())) for run in stitched}


def keys_of(run_id: str) -> dict[str, dict[int, int]]:
    """Every metric key of a run with its points by rank, exactly: for lists that MetricSummary (bounded) does not hold."""
    counts: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    source = _Source([run_id], None, None, LO, HI, None, None, ALL)
    source.take_snapshot()
    for object_key, size, writer, _ in source.blocks:
        directory = _directory(object_key, size)
        for column, entry_rows in enumerate(directory.columns["rows"].tolist()):
            counts[directory.name(column)][source.writers[writer].rank] += entry_rows
    for writer, batch in source.hot:
        rank = source.writers[writer].rank
        for frame in batch.frames:
            if isinstance(frame, wire.Dense):
                for key in frame.keys if len(frame.steps) else ():
                    counts[key][rank] += len(frame.steps)
            else:
                for at, count in zip(*np.unique(frame.index, return_counts=True), strict=True):
                    counts[frame.keys[at]][rank] += int(count)
    return {key: dict(sorted(ranks.items())) for key, ranks in sorted(counts.items())}


# -- the snapshot ------------------------------------------------------------------------------------------------------------------


def _among(values: Sequence) -> str:
    return "(" + ", ".join(["%s"] * len(values)) + ")"


def _writers(cursor, run_ids: Sequence[str]) -> dict[str, WriterInfo]:
    found = {}
    for start in range(0, len(run_ids), RUNS_AT_ONCE):
        some = list(run_ids[start : start + RUNS_AT_ONCE])
        cursor.execute(
            'SELECT w.id, w.run_id, w.rank, a.number, w.started_us, w."next", a.rewound_to, w.kind, w.last_step '  # noqa: S608
            f"FROM tracker_writer w JOIN tracker_attempt a ON a.id = w.attempt_id WHERE w.run_id IN {_among(some)}",
            some,
        )
        found.update({row[0]: WriterInfo(*row) for row in cursor.fetchall()})
    return found


class _Source:
    """What one question finds: blocks that overlap, then the hot segments, of one moment."""

    def __init__(self, run_ids, keys: tuple[str, ...] | None, ranks, lo_step: int, hi_step: int, since, forks, branch, shifts=None) -> None:
        self.asked, self.keys, self.ranks = list(dict.fromkeys(run_ids)), keys, ranks
        self.lo_step, self.hi_step, self.since = lo_step, hi_step, since
        self.forks, self.branch, self.shifts = forks or {}, branch, shifts or {}
        self.run_ids = with_ancestors(self.asked, self.forks)
        self.plans: dict[str, list[Span]] = {}
        self.tops: dict[str, int] = {}
        self.writers: dict[str, WriterInfo] = {}
        self.blocks: list[tuple[str, int, str, str]] = []  # object key, directory bytes, writer, run
        self.hot: list[tuple[str, wire.Batch]] = []

    def _is_wanted(self, writer: str, last: int, lo_step: int) -> bool:
        info = self.writers.get(writer)
        if info is None or (self.ranks is not None and info.rank not in self.ranks):
            return False
        if lo_step > self.tops.get(info.run, HI):
            return False
        return self.since is None or last >= self.since.get(writer, 0)

    def _make_plans(self) -> None:
        """What of which attempt is told; and up to which step the runs that are read for their forks alone are needed."""
        if not isinstance(self.branch, int):
            for run, plan in plans_of(self.asked, self.writers, self.forks).items():
                self.plans[run] = plan if self.branch == ALL else [span for span in plan if span.branch is None]
        inherited = [span for plan in self.plans.values() for span in plan if span.generation]
        self.tops = {run: max((s.hi for s in inherited if s.run == run), default=LO) for run in self.run_ids[len(self.asked) :]}

    def take_snapshot(self) -> None:
        if not self.run_ids:
            return
        with rows.snapshot() as cursor:
            self.writers = _writers(cursor, self.run_ids)
            self._make_plans()
            if self.since is not None and all(info.next <= self.since.get(info.id, 0) for info in self.writers.values()):
                return  # nothing came
            for start in range(0, len(self.run_ids), RUNS_AT_ONCE):
                some = self.run_ids[start : start + RUNS_AT_ONCE]
                args = [*some, self.lo_step, self.hi_step]
                cursor.execute(
                    'SELECT object_key, directory_bytes, writer_id, run_id, "last", lo_step FROM tracker_metricblock '  # noqa: S608
                    f'WHERE run_id IN {_among(some)} AND hi_step >= %s AND lo_step <= %s ORDER BY run_id, writer_id, "first"',
                    args,
                )
                self.blocks += [row[:4] for row in cursor.fetchall() if self._is_wanted(row[2], row[4], row[5])]
                cursor.execute(
                    'SELECT run_id, writer_id, "first", "last", keylists, lo_step FROM tracker_metricsegment '  # noqa: S608
                    f"WHERE run_id IN {_among(some)} AND hi_step >= %s AND lo_step <= %s",
                    args,
                )
                self._take_segments(cursor, [row for row in cursor.fetchall() if self._is_wanted(row[1], row[3], row[5])])

    def _take_segments(self, cursor, heads: list[tuple]) -> None:
        missing: dict[tuple[str, str], list[int]] = defaultdict(list)
        for run, writer, first, _, keylists, _ in heads:
            if not self._may_hold(run, keylists):
                continue
            batch = _batches.get((writer, first))
            if batch is None:
                missing[run, writer].append(first)
            else:
                self.hot.append((writer, batch))
        for (run, writer), firsts in missing.items():
            for start in range(0, len(firsts), 200):
                some = firsts[start : start + 200]
                cursor.execute(
                    'SELECT "first", encoding, body FROM tracker_metricsegment '  # noqa: S608
                    f'WHERE run_id = %s AND writer_id = %s AND "first" IN {_among(some)}',
                    [run, writer, *some],
                )
                for first, encoding, body in cursor.fetchall():
                    raw = inflate(bytes(body), encoding)
                    batch = wire.decode(raw, metric_store().lookup(run))
                    batch.docs = []
                    _batches.put((writer, first), batch, len(raw) + 1000)
                    self.hot.append((writer, batch))

    def _may_hold(self, run: str, keylists: str) -> bool:
        if self.keys is None:
            return True
        for name in keylists.split():
            if name == "*":
                return True
            found = metric_store().keylist(run, name)
            if found is None:
                return True
            places = _places(found)
            if any(key in places for key in self.keys):
                return True
        return False

    # -- columns ----------------------------------------------------------------------------------------------------------------

    def columns(self) -> list[Column]:
        pieces: dict[str, dict[tuple[str, int], dict[str, list[Piece]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
        for object_key, size, writer, run in self.blocks:
            info = self.writers[writer]
            for key, piece in self._block_pieces(object_key, size):
                pieces[run][key, info.rank][writer].append(piece)
        for writer, batch in self.hot:
            info = self.writers[writer]
            for frame in batch.frames:
                for key, piece in self._frame_pieces(frame):
                    pieces[info.run][key, info.rank][writer].append(piece)
        found = [column for run in self.asked for column in self._columns_of(run, pieces)]
        return [column for column in found if column is not None]

    def _columns_of(self, run: str, pieces: Mapping[str, dict[tuple[str, int], dict[str, list[Piece]]]]) -> Iterable[Column | None]:
        plan = self.plans.get(run)
        if plan is None:
            for (key, rank), by_writer in pieces[run].items():
                if isinstance(self.branch, int):
                    by_writer = {w: mine for w, mine in by_writer.items() if self.writers[w].attempt == self.branch}
                yield self._join(run, key, rank, [(w, mine, LO, HI) for w, mine in self._in_order(by_writer)])
            return
        names = dict.fromkeys(name for each in dict.fromkeys(span.run for span in plan) for name in pieces[each])
        for key, rank in names:
            if lineage.is_measured(key):  # by sample and not by step
                yield self._join(run, key, rank, [(w, mine, LO, HI) for w, mine in self._in_order(pieces[run].get((key, rank), {}))])
                continue
            parts: dict[int | None, list[tuple[str, list[Piece], int, int]]] = {}
            for span in plan:
                for writer, mine in self._in_order(pieces[span.run].get((key, rank), {})):
                    if self.writers[writer].attempt == span.attempt:
                        parts.setdefault(span.branch, []).append((writer, mine, span.lo, span.hi))
            for branch, those in parts.items():
                yield self._join(run, key, rank, those, branch)

    def _in_order(self, by_writer: dict[str, list[Piece]]) -> list[tuple[str, list[Piece]]]:
        """As they win: by attempt, then start."""
        infos = self.writers
        return sorted(by_writer.items(), key=lambda item: (infos[item[0]].attempt, infos[item[0]].started_us, item[0]))

    def _block_pieces(self, object_key: str, size: int) -> Iterable[tuple[str, Piece]]:
        directory = _directory(object_key, size)
        wanted = []
        for key in self.keys:
            for column in directory.find(key):
                axis = directory.axes[int(directory.columns[column]["axis"])]
                if axis["hi_step"] >= self.lo_step and axis["lo_step"] <= self.hi_step:
                    wanted.append((key, column, int(directory.columns[column]["axis"])))
        spans: list[tuple[int, int]] = []
        plan: list[tuple[str, int]] = []
        for axis in dict.fromkeys(axis for _, _, axis in wanted):
            if _columns.get((object_key, "axis", axis)) is None:
                plan.append(("axis", axis))
                spans += blocks.axis_spans(directory.axes[axis])
        for _, column, _ in wanted:
            if _columns.get((object_key, "column", column)) is None:
                plan.append(("column", column))
                spans.append(blocks.column_span(directory.columns[column]))
        read = {}
        raws = iter(blob_store().ranges(object_key, spans) if spans else ())
        for kind, at in plan:
            if kind == "axis":
                value = blocks.decode_axis(directory, directory.axes[at], [next(raws), next(raws), next(raws)])
            else:
                value = blocks.decode_column(directory.columns[at], next(raws))
            read[kind, at] = value
            _columns.put((object_key, kind, at), value, value.nbytes + 200)
        for key, column, axis_at in wanted:
            axis = read["axis", axis_at] if ("axis", axis_at) in read else _columns.get((object_key, "axis", axis_at))
            values = read["column", column] if ("column", column) in read else _columns.get((object_key, "column", column))
            if axis is None or values is None:  # pushed out by another thread just now
                entry = directory.axes[axis_at]
                axis = blocks.decode_axis(directory, entry, blob_store().ranges(object_key, blocks.axis_spans(entry)))
                values = blocks.decode_column(
                    directory.columns[column], blob_store().read(object_key, *blocks.column_span(directory.columns[column]))
                )
            axis = blocks.axis_of(axis, directory.columns[column])
            yield key, Piece(axis.records, axis.steps, axis.times, values, axis.is_rising)

    def _frame_pieces(self, frame: wire.Dense | wire.Sparse) -> Iterable[tuple[str, Piece]]:
        if isinstance(frame, wire.Dense):
            places = _places((frame.types, frame.keys))
            for key in self.keys:
                at = places.get(key)
                if at is not None and len(frame.steps):
                    bits = frame.matrix[at]
                    yield key, Piece(frame.records, frame.steps, frame.times, bits if frame.types[at] == "q" else bits.view("<f8"))
            return
        for key in self.keys:
            if key in frame.keys:
                mine = frame.index == frame.keys.index(key)
                for kind, dtype in ((0, "<f8"), (1, "<i8")):
                    at = np.flatnonzero(mine & (frame.types == kind))
                    if len(at):
                        yield key, Piece(frame.records[at], frame.steps[at], frame.times[at], frame.bits[at].view(dtype))

    def _join(
        self, run: str, key: str, rank: int, parts: list[tuple[str, list[Piece], int, int]], branch: int | None = None
    ) -> Column | None:
        """``parts``: of each writer, in the order in which they win, its pieces and the steps that count."""
        pieces: list[Piece] = []
        attempts = []
        for writer, its, lo, hi in parts:
            info = self.writers[writer]
            mine = self._of_writer(writer, its, max(lo, self.lo_step), min(hi, self.hi_step))
            if shift := self.shifts.get(run, {}).get(info.run, 0):
                mine = [Piece(each.records, each.steps, each.times + shift, each.values, each.is_rising) for each in mine]
            if count := sum(len(piece.steps) for piece in mine):
                attempts.append((info.attempt if info.run == run else lineage.INHERITED, count))
                pieces += mine
        if not attempts:
            return None
        records, steps, times = (_concatenate([getattr(p, name) for p in pieces]) for name in ("records", "steps", "times"))
        ints = [piece.values.dtype.kind == "i" for piece in pieces]
        column = Column(run, key, rank, records, steps, times, _concatenate([p.values for p in pieces]), attempts, branch=branch)
        if any(ints) and not all(ints):
            column.bits = np.concatenate([p.values.view("<i8") for p in pieces])
            column.is_int = np.repeat(ints, [len(p.steps) for p in pieces])
        return column

    def _of_writer(self, writer: str, pieces: list[Piece], lo: int, hi: int) -> list[Piece]:
        """In order of records, within the window. Frames of one batch may interleave; those are cut record by record."""
        first = 0 if self.since is None else self.since.get(writer, 0)
        pieces = [cut for piece in pieces if len((cut := _cut(piece, first, lo, hi)).steps)]
        pieces.sort(key=lambda piece: int(piece.records[0]))
        if all(a.records[-1] < b.records[0] for a, b in itertools.pairwise(pieces)):
            return pieces
        joined = Piece(*(np.concatenate([getattr(p, name) for p in pieces]) for name in ("records", "steps", "times")), None)
        order = np.argsort(joined.records, kind="stable")
        kinds = np.repeat([p.values.dtype.kind == "i" for p in pieces], [len(p.steps) for p in pieces])[order]
        bits = np.concatenate([p.values.view("<i8") for p in pieces])[order]
        edges = np.flatnonzero(kinds[1:] != kinds[:-1]) + 1
        found = []
        for at in np.split(np.arange(len(order)), edges):
            chosen = order[at]
            values = bits[at] if kinds[at[0]] else bits[at].view("<f8")
            found.append(Piece(joined.records[chosen], joined.steps[chosen], joined.times[chosen], values))
        return found


def _cut(piece: Piece, first: int, lo: int, hi: int) -> Piece:
    steps = piece.steps
    if piece.is_rising:
        a = max(int(np.searchsorted(steps, lo, "left")), int(np.searchsorted(piece.records, first, "left")))
        b = int(np.searchsorted(steps, hi, "right"))
        if a == 0 and b == len(steps):
            return piece
        return Piece(piece.records[a:b], steps[a:b], piece.times[a:b], piece.values[a:b], True)
    if piece.records[0] >= first and (lo == LO or steps.min() >= lo) and (hi == HI or steps.max() <= hi):
        return piece
    keep = np.flatnonzero((piece.records >= first) & (steps >= lo) & (steps <= hi))
    return Piece(piece.records[keep], steps[keep], piece.times[keep], piece.values[keep])


def _concatenate(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _directory(object_key: str, size: int) -> blocks.Directory:
    found = _directories.get(object_key)
    if found is None:
        found = blocks.Directory(blob_store().read(object_key, 0, blocks.HEAD.size + size))
        _directories.put(object_key, found, found.bytes)
    return found


@functools.lru_cache(1024)
def _places(keylist: wire.Keylist) -> dict[str, int]:
    return {key: at for at, key in enumerate(keylist[1])}


def forget() -> None:
    """Empty the caches (tests)."""
    for cache in (_directories, _columns, _batches):
        cache.clear()
