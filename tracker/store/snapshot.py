"""What one question finds at one moment: writers, blocks that overlap, hot segments, and what of which attempt is told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tracker.domain import lineage
from tracker.domain.lineage import Fork, Span
from tracker.store import hot_reads, rows
from tracker.store.block_reads import BlockRow
from tracker.store.columns import ALL, CURRENT, HI, LO, WriterInfo

RUNS_AT_ONCE = 500


@dataclass(frozen=True)
class Asked:
    """A question as ``reading.read`` takes it."""

    runs: Sequence[str]
    keys: Sequence[str] | None = None
    """None: whatever there is; no segment is left out for its keys."""
    ranks: frozenset[int] | None = None
    lo_step: int = LO
    hi_step: int = HI
    since: Mapping[str, int] | None = None
    forks: Mapping[str, Sequence[Fork]] = field(default_factory=dict)
    branch: str | int = CURRENT
    shifts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


class Snapshot:
    """Rows of one moment. ``hot`` are heads and their decoded batches; with ``newest`` only the last segment of each set of key lists."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.runs = list(dict.fromkeys(asked.runs))
        self.all_runs = with_ancestors(self.runs, asked.forks)
        self.writers: dict[str, WriterInfo] = {}
        self.plans: dict[str, list[Span]] = {}
        self.tops: dict[str, int] = {}
        self.blocks: list[BlockRow] = []
        self.heads: list[hot_reads.Head] = []
        self.hot: list[hot_reads.HotBatch] = []

    def take(self, needed=None) -> Snapshot:
        """Read it. ``needed``: of the heads of segments, those whose bodies are read too (all that may hold the keys)."""
        if not self.all_runs:
            return self
        asked = self.asked
        with rows.snapshot() as cursor:
            self.writers = writers_by_cursor(cursor, self.all_runs)
            self._make_plans()
            if asked.since is not None and all(info.next <= asked.since.get(info.id, 0) for info in self.writers.values()):
                return self  # nothing came
            for start in range(0, len(self.all_runs), RUNS_AT_ONCE):
                some = self.all_runs[start : start + RUNS_AT_ONCE]
                args = [*some, asked.lo_step, asked.hi_step]
                cursor.execute(
                    'SELECT object_key, directory_bytes, bytes, writer_id, run_id, "first", "last", lo_step '  # noqa: S608
                    "FROM tracker_metricblock "
                    f'WHERE run_id IN {among(some)} AND hi_step >= %s AND lo_step <= %s ORDER BY run_id, writer_id, "first"',
                    args,
                )
                self.blocks += [BlockRow(*row[:6]) for row in cursor.fetchall() if self._is_wanted(row[3], row[6], row[7])]
                cursor.execute(
                    'SELECT run_id, writer_id, "first", "last", keylists, points, lo_step FROM tracker_metricsegment '  # noqa: S608
                    f"WHERE run_id IN {among(some)} AND hi_step >= %s AND lo_step <= %s",
                    args,
                )
                self.heads += [hot_reads.Head(*row[:6]) for row in cursor.fetchall() if self._is_wanted(row[1], row[3], row[6])]
            if needed is None and asked.keys is not None:
                sieve = hot_reads.Sieve(asked.keys)
                needed = lambda heads: [head for head in heads if sieve.lets_through(head)]  # noqa: E731
            self.hot = hot_reads.batches(cursor, needed(self.heads) if needed is not None else self.heads)
        return self

    def _make_plans(self) -> None:
        """What of which attempt is told; and up to which step the runs that are read for their forks alone are needed."""
        branch = self.asked.branch
        if not isinstance(branch, int):
            for run, plan in plans_of(self.runs, self.writers, self.asked.forks).items():
                self.plans[run] = plan if branch == ALL else [span for span in plan if span.branch is None]
        inherited = [span for plan in self.plans.values() for span in plan if span.generation]
        self.tops = {run: max((s.hi for s in inherited if s.run == run), default=LO) for run in self.all_runs[len(self.runs) :]}

    def _is_wanted(self, writer: str, last: int, lo_step: int) -> bool:
        info = self.writers.get(writer)
        if info is None or (self.asked.ranks is not None and info.rank not in self.asked.ranks):
            return False
        if self.tops and lo_step > self.tops.get(info.run, HI):
            return False
        return self.asked.since is None or last >= self.asked.since.get(writer, 0)


def among(values: Sequence) -> str:
    return "(" + ", ".join(["%s"] * len(values)) + ")"


def with_ancestors(run_ids: Sequence[str], forks: Mapping[str, Sequence[Fork]]) -> list[str]:
    return list(dict.fromkeys([*run_ids, *(fork.run for run in run_ids for fork in forks.get(run, ()))]))


def writers_of(run_ids: Sequence[str]) -> dict[str, WriterInfo]:
    """The writers of these runs and where they stand."""
    with rows.cursor() as cursor:
        return writers_by_cursor(cursor, run_ids)


def writers_by_cursor(cursor, run_ids: Sequence[str]) -> dict[str, WriterInfo]:
    found = {}
    for start in range(0, len(run_ids), RUNS_AT_ONCE):
        some = list(run_ids[start : start + RUNS_AT_ONCE])
        cursor.execute(
            'SELECT w.id, w.run_id, w.rank, a.number, w.started_us, w."next", a.rewound_to, w.kind, w.last_step '  # noqa: S608
            f"FROM tracker_writer w JOIN tracker_attempt a ON a.id = w.attempt_id WHERE w.run_id IN {among(some)}",
            some,
        )
        found.update({row[0]: WriterInfo(*row) for row in cursor.fetchall()})
    return found


def plans_of(run_ids: Iterable[str], writers: Mapping[str, WriterInfo], forks: Mapping[str, Sequence[Fork]]) -> dict[str, list[Span]]:
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
