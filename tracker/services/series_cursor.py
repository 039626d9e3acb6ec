"""Where a chart stands: the cursor that a client sends back, and the tag that says whether an answer would still be the same.

A writer's records are numbered and only added to, so the count of a run's writers and the sum of their next records tell whether anything
came: one row for each run, whatever its ranks.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tracker.domain.errors import Invalid
from tracker.domain.lineage import mark
from tracker.models import KeyDefinition
from tracker.services.series_runs import Plan
from tracker.store import reading, rows
from tracker.store.reading import WriterInfo

MOST_BYTES = 8 * 2**20
_RUNS_AT_ONCE = 500
_SHORT = 10  # base32 characters of an id that tell it apart: 50 bits; of two alike the lower record counts


@dataclass
class Cursor:
    """By the short id: each writer's next record; each stitched run's history; each run's (writers, sum of next). ``forks``: who inherits
    from whom, as one number."""

    writers: dict[str, int] = field(default_factory=dict)
    histories: dict[str, int] = field(default_factory=dict)
    totals: dict[str, tuple[int, int]] = field(default_factory=dict)
    forks: int = 0

    def since(self, writers: Mapping[str, WriterInfo]) -> dict[str, int]:
        """For ``reading.read``."""
        return {name: self.writers.get(name[:_SHORT], 0) for name in writers}

    def is_of(self, histories: Mapping[str, int], runs: Iterable[str]) -> bool:
        """Whether what was drawn of these runs is still their history; of a run that was not there yet nothing was drawn."""
        known = self.totals.keys() | self.histories.keys()
        return all(self.histories.get(run[:_SHORT]) == histories.get(run) for run in runs if run[:_SHORT] in known)

    def text(self) -> str:
        told = json.dumps([self.writers, self.histories, self.totals, self.forks], separators=(",", ":"))
        return base64.urlsafe_b64encode(zlib.compress(told.encode(), 1)).decode().rstrip("=")


def of(plan: Plan, writers: Mapping[str, WriterInfo], histories: Mapping[str, int]) -> Cursor:
    found = Cursor(forks=_forks(plan))
    for name in sorted(writers):
        info = writers[name]
        short, run = name[:_SHORT], info.run[:_SHORT]
        found.writers[short] = min(info.next, found.writers.get(short, info.next))
        count, total = found.totals.get(run, (0, 0))
        found.totals[run] = count + 1, total + info.next
    found.histories = {run[:_SHORT]: number for run, number in sorted(histories.items())}
    return found


def _forks(plan: Plan) -> int:
    if not plan.forks:
        return 0
    return int.from_bytes(hashlib.blake2b(repr(sorted(plan.forks.items())).encode(), digest_size=6).digest(), "little")


def histories_of(plan: Plan, writers: Mapping[str, WriterInfo]) -> dict[str, int]:
    """Of each run that is stitched a number that changes with what counts in it."""
    return {run: mark(spans) for run, spans in reading.plans_of(plan.runs, writers, plan.forks).items()}


def read(text: str) -> Cursor:
    """Raises Invalid."""
    try:
        packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        inflater = zlib.decompressobj()
        told = json.loads(inflater.decompress(packed, MOST_BYTES))
        if inflater.unconsumed_tail or not isinstance(told, list) or len(told) != 4 or not _is_whole(told[3]):
            raise ValueError
        writers, histories, totals, forks = told
        if not all(isinstance(part, dict) for part in told[:3]):
            raise ValueError
        if not all(_is_whole(n) for part in (writers, histories) for n in part.values()):
            raise ValueError
        if not all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_whole, pair)) for pair in totals.values()):
            raise ValueError
    except (ValueError, RecursionError, zlib.error):
        raise Invalid("since is no cursor of an earlier answer: ask once without it.", since="malformed") from None
    return Cursor(writers, histories, {run: (pair[0], pair[1]) for run, pair in totals.items()}, forks)


def _is_whole(found: object) -> bool:
    return isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 2**62


def nothing_came(plan: Plan, before: Cursor) -> bool:
    """Whether all runs and their ancestors stand where they stood, and nobody opened a writer."""
    if before.forks != _forks(plan):
        return False
    names = reading.with_ancestors(plan.runs, plan.forks)
    now = _totals(names)
    return all(now.get(run) == before.totals.get(run[:_SHORT]) for run in names)


def _totals(names: Sequence[str]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    with rows.cursor() as cursor:
        for some in _portions(names):
            cursor.execute(
                'SELECT run_id, COUNT(*), SUM("next") FROM tracker_writer '  # noqa: S608
                f"WHERE run_id IN ({', '.join(['%s'] * len(some))}) GROUP BY run_id",
                some,
            )
            found.update({run: (int(count), int(total)) for run, count, total in cursor.fetchall()})
    return found


def tag(plan: Plan, keys: Sequence[str], shifts: Mapping) -> str:
    """A text that differs whenever the answer would: the question, who is in it, what came, how ranks go together."""
    names = reading.with_ancestors(plan.runs, plan.forks)
    blocks: list[tuple] = []
    with rows.cursor() as cursor:
        for some in _portions(names):
            cursor.execute(
                "SELECT run_id, COUNT(*), MAX(id), SUM(points) FROM tracker_metricblock "  # noqa: S608
                f"WHERE run_id IN ({', '.join(['%s'] * len(some))}) GROUP BY run_id",
                some,
            )
            blocks += [(run, int(count), int(most), int(points)) for run, count, most, points in cursor.fetchall()]
    definitions = list(
        KeyDefinition.objects.filter(run_id__in=plan.runs).order_by("run_id", "id").values_list("run_id", "id", "pattern", "fields")
    )
    arrays = None if plan.query.arrays is None else sorted(plan.query.arrays)
    query = {**plan.query.__dict__, "arrays": arrays}
    came = sorted(_totals(names).items()), sorted(blocks)
    text = repr((2, query, plan.runs, plan.forks, plan.groups, list(keys), came, definitions, shifts))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _portions(names: Sequence[str]) -> Iterable[list[str]]:
    return (list(names[at : at + _RUNS_AT_ONCE]) for at in range(0, len(names), _RUNS_AT_ONCE))
