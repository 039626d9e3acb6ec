"""Metrics of runs that have more of them than summaries are kept for: who has them, and which of them get a summary all the same.

A run keeps summaries of the first ``MOST_KEYS`` metrics that it logs, and beyond those of what the program defines and what somebody
in the project filters or sorts by, ``MOST_MORE`` of them. Of the others only a hash is kept, so that ``has metric`` is answered.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable

from tracker.domain import keys as meanings
from tracker.models import KeyDefinition, Run, RunValue, SearchedKey, WideKeys
from tracker.services import lineage

MOST_KEYS = 500
MOST_MORE = 500
MOST_SEARCHED = 300
"""Per project."""


def hash_of(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def chooser(run_id: str, project_id: str, *, most: int | None = None) -> Callable[[str, Collection[str]], bool]:
    """Whether a key that has no summary yet is to have one, beside those that have. The database is asked once, and only if need be."""
    wanted: list = []
    first = MOST_KEYS if most is None else most

    def chosen(key: str, there: Collection[str]) -> bool:
        if len(there) < first:
            return True
        if len(there) >= first + MOST_MORE:
            return False
        if not wanted:
            patterns = KeyDefinition.objects.filter(run_id=run_id).values_list("pattern", flat=True)
            wanted.append([meanings.glob(pattern) for pattern in patterns])
            wanted.append(set(SearchedKey.objects.filter(project_id=project_id).values_list("path", flat=True)))
        return key in wanted[1] or any(pattern.match(key) for pattern in wanted[0])

    return chosen


def record(run: Run, keys: Iterable[str]) -> None:
    """Note that the run has these metrics."""
    fresh: dict[int, set[bytes]] = defaultdict(set)
    for key in keys:
        found = hash_of(key)
        fresh[found[0]].add(found)
    if not fresh:
        return
    there = {bucket: bytes(hashes) for bucket, hashes in WideKeys.objects.filter(run=run).values_list("bucket", "hashes")}
    rows = []
    for bucket, hashes in fresh.items():
        together = hashes | set(_split(there.get(bucket, b"")))
        if len(together) * 8 != len(there.get(bucket, b"")):
            rows.append(WideKeys(run=run, project_id=run.project_id, bucket=bucket, hashes=b"".join(sorted(together))))
    WideKeys.objects.bulk_create(rows, batch_size=150, update_conflicts=True, unique_fields=["run", "bucket"], update_fields=["hashes"])


def _split(hashes: bytes) -> list[bytes]:
    return [hashes[at : at + 8] for at in range(0, len(hashes), 8)]


def runs_with(key: str, projects: list[str]) -> list[str]:
    """Runs that noted this metric."""
    found = hash_of(key)
    rows = WideKeys.objects.filter(project__in=projects, bucket=found[0]).values_list("run_id", "hashes")
    return [run for run, hashes in rows if found in _split(bytes(hashes))]


def searched(paths: Collection[str], projects: list[str]) -> None:
    """Somebody filters or sorts by these metrics: wide runs that have them without a summary are to make one (services/stitched.py)."""
    buckets = {hash_of(path)[0] for path in paths}
    if not WideKeys.objects.filter(project__in=projects, bucket__in=buckets).exists():
        return
    for path in dict.fromkeys(paths):
        having = runs_with(path, projects)
        if not having:
            continue
        shown = set(RunValue.objects.filter(run__in=having, kind=RunValue.Kind.SUMMARY, path=path).values_list("run_id", flat=True))
        lacking = dict(Run.objects.filter(id__in=set(having) - shown, deleted_at=None).values_list("id", "project_id"))
        asked = set(SearchedKey.objects.filter(project__in=set(lacking.values()), path=path).values_list("project_id", flat=True))
        for project in set(lacking.values()) - asked:
            if SearchedKey.objects.filter(project_id=project).count() < MOST_SEARCHED:
                SearchedKey.objects.bulk_create([SearchedKey(project_id=project, path=path)], ignore_conflicts=True)
                lineage.mark_stale([run for run, own in lacking.items() if own == project], [path])
