"""Judging a reproduction: what the store has of both runs goes through the one pure function, and its document is kept.

Idempotent: the same data give the same document, and it can be asked for again at any time without running anything.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from django.utils import timezone

from tracker.domain import facts, storable
from tracker.domain.compare import Series
from tracker.domain.verdict import End, KeySeries
from tracker.domain.verdict import judge as decide
from tracker.models import Attempt, Blob, Event, KeyDefinition, Reproduction, Run

POINTS_AT_ONCE = 4_000_000
"""Points of both runs held in memory at a time (some 50 bytes each)."""
KEYS_AT_ONCE = 500


def judge(*, reproduction: Reproduction) -> dict[str, Any]:
    """The verdict (docs/formats.md), stored with ``judged_at``. A job that never ran is judged by its failure alone."""
    original, rerun, job = reproduction.original, reproduction.rerun, reproduction.job
    evidence, failure = job.evidence or {}, _failure(job)
    first, second = _attempt(original), _attempt(rerun)
    document = decide(
        _series(original, rerun) if rerun is not None else (),
        original=_end(original, first),
        rerun=_end(rerun, second) if rerun is not None else None,
        definitions=list(KeyDefinition.objects.filter(run=original).order_by("id").values_list("pattern", "fields")),
        failure=failure,
        evidence=evidence,
        recipe=_recipe(first),
        differences=_differences(original, rerun, first, second, reproduction.overrides or {}, evidence),
        scope=reproduction.scope or {},
        not_looked_at=_not_looked_at(rerun) if rerun is not None else (),
    )
    document = storable.value(document)
    reproduction.verdict = document
    reproduction.judged_at = timezone.now()
    Reproduction.objects.filter(pk=reproduction.pk).update(verdict=document, judged_at=reproduction.judged_at)
    return document


def _failure(job: Any) -> dict[str, Any] | None:
    """The worker's word; for jobs that ended without one, what their state says."""
    if job.failure:
        return job.failure
    if job.state in ("cancelled", "lost"):
        return {"code": job.state, "message": ""}
    if job.state == "failed":
        return {"code": "unknown", "message": "the job failed without a reason"}
    return None


def _end(run: Run, attempt: Attempt | None) -> End:
    dropped = {str(reason): int(number) for reason, number in (run.dropped or {}).items() if number}
    # A hole is a range of records that was refused or torn; how many points lay in it nobody knows.
    holes = Event.objects.filter(run=run, name="hole").count()
    if holes:
        dropped["unreadable records"] = holes
    return End(run.state, run.exit_code, run.signal, run.error, dropped, attempt.world_size if attempt else None)


def _attempt(run: Run | None) -> Attempt | None:
    return run.attempts.order_by("-number").first() if run is not None else None


def _recipe(attempt: Attempt | None) -> dict[str, Any]:
    return (attempt.recipe if attempt else None) or {}


# Series -----------------------------------------------------------------------------------------------------------------------


def _series(original: Run, rerun: Run) -> Iterator[KeySeries]:
    """Every key of either run with all its ranks, some millions of points at a time. The machine's own metrics are named, not read."""
    from tracker.store import reading  # here, so that a web process that never judges does not load the codecs

    counts: Counter[str] = Counter()
    for run in (original, rerun):
        counts.update({key: sum(ranks.values()) for key, ranks in reading.keys_of(run.id).items()})
    for keys in _portions(counts):
        found: dict[str, dict[str, list[Series]]] = {key: {original.id: [], rerun.id: []} for key in keys}
        read = [key for key in keys if not key.startswith("system/")]
        for column in reading.history([original.id, rerun.id], read, None) if read else ():
            found[column.key][column.run].append(_winning(column))
        for key in keys:
            yield KeySeries(key, found[key][original.id], found[key][rerun.id])


def _winning(column: Any) -> Series:
    if column.bits is None:
        return Series.of(column.key, column.rank, column.steps, column.values, column.times, column.winner)
    # A key that logged integers and floats: the bits are exact, the mask tells which is which.
    bits = column.bits.view(np.float64)
    return Series.of(column.key, column.rank, column.steps, bits, column.times, column.winner, column.is_int)


def _portions(counts: dict[str, int]) -> Iterator[list[str]]:
    portion: list[str] = []
    points = 0
    for key in sorted(counts):
        if portion and (points + counts[key] > POINTS_AT_ONCE or len(portion) >= KEYS_AT_ONCE):
            yield portion
            portion, points = [], 0
        portion.append(key)
        points += counts[key] or 0
    if portion:
        yield portion


# Facts ------------------------------------------------------------------------------------------------------------------------


def _differences(
    original: Run, rerun: Run | None, first: Attempt | None, second: Attempt | None, overrides: dict[str, Any], evidence: dict[str, Any]
) -> list[facts.Difference]:
    was, now = _recipe(first), _recipe(second)
    files = None
    checked = (evidence.get("source") or {}).get("equal") is True
    trees = [(recipe.get("source") or {}).get("tree") for recipe in (was, now)]
    if rerun is not None and not checked and all(trees) and trees[0] != trees[1]:
        files = _both(_files(original, was), _files(rerun, now))
    # A rerun that never came to log its config says nothing about it.
    config = (original.config or {}, (rerun.config if rerun is not None and rerun.config else original.config) or {})
    return facts.differences(was, now, config=config, files=files, overrides=overrides, evidence=evidence)


def _files(run: Run, recipe: dict[str, Any]) -> dict[str, str] | None:
    """path → digest of a run's source snapshot, or None where its manifest cannot be read."""
    blob = Blob.objects.filter(project_id=run.project_id, digest=(recipe.get("source") or {}).get("manifest")).first()
    if blob is None:
        return None
    from tracker.store.blobs import MissingObject, blob_store

    try:
        with blob_store().open(blob.object_key) as file:
            manifest = json.loads(file.read())
        return {str(item.get("path") or item.get("path_b64")): f"{item.get('mode')} {item.get('digest')}" for item in manifest["files"]}
    except (MissingObject, OSError, ValueError, KeyError, TypeError):
        return None  # the digests still say that the source differs; only the names of the files are not known


def _both(a: dict[str, str] | None, b: dict[str, str] | None) -> tuple[dict[str, str], dict[str, str]] | None:
    return (a, b) if a is not None and b is not None else None


def _not_looked_at(rerun: Run) -> Iterable[dict[str, str]]:
    """Overrides that the program never read: the rerun was not what was asked for, and its verdict must say so."""
    found = []
    for data in Event.objects.filter(run=rerun, name="override_not_applied").values_list("data", flat=True)[:100]:
        name = data.get("key") or data.get("name") or data.get("config") or "an override"
        found.append({"key": f"override {name}", "what": "override", "why": "the program never read it, so it changed nothing"})
    return found
