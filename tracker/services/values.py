"""Keeps RunValue, the typed leaves that runs are filtered and sorted by, equal to a run's config, summary and tags."""

from __future__ import annotations

import json
import math
from typing import Any

from tracker.domain import storable
from tracker.models import Run, RunValue
from tracker.models.key import RunValue as Value

MOST_LEAVES = 2000
"""Per run and kind. The documents themselves are kept whole; only what can be filtered by is bounded."""
LONGEST = 500
_ENDLESS = {"Infinity": math.inf, "-Infinity": -math.inf}
"""JSON has them as text only. They sort and compare as numbers; NaN has no order and stays a text."""


def _row(run: Run, kind: str, path: str, found: Any) -> RunValue:
    number = _ENDLESS.get(found) if isinstance(found, str) else storable.number_of(found)
    text: str | None
    if isinstance(found, bool):
        text = "true" if found else "false"
    elif isinstance(found, str):
        text = found[:LONGEST]
    elif number is not None or found is None:
        text = None
    elif isinstance(found, float):
        text = storable.special(found)
    else:
        text = json.dumps(found, ensure_ascii=False)[:LONGEST]
    return RunValue(project_id=run.project_id, run=run, kind=kind, path=path, number=number, text=text)


def _write(run: Run, kind: str, found: dict[str, Any]) -> None:
    rows = [_row(run, kind, path, value) for path, value in found.items() if len(path) <= LONGEST]
    RunValue.objects.bulk_create(
        rows, update_conflicts=True, unique_fields=["run", "kind", "path"], update_fields=["number", "text"], batch_size=150
    )


def config_changed(run: Run) -> None:
    found = storable.leaves(run.config, MOST_LEAVES)
    stale = set(run.values.filter(kind=Value.Kind.CONFIG).values_list("path", flat=True)) - set(found)
    if stale:
        run.values.filter(kind=Value.Kind.CONFIG, path__in=list(stale)[:900]).delete()
    _write(run, Value.Kind.CONFIG, found)


def summary_changed(run: Run, changed: dict[str, Any]) -> None:
    """What the program set in its summary; a dictionary counts by its leaves, as in config (``best.acc``)."""
    leaves = storable.leaves(changed, MOST_LEAVES)
    for key, found in changed.items():
        if isinstance(found, dict):
            run.values.filter(kind=Value.Kind.SUMMARY, path__startswith=f"{key}.").exclude(path__in=list(leaves)[:900]).delete()
    changed = leaves
    room = MOST_LEAVES - run.values.filter(kind=Value.Kind.SUMMARY).count()
    known = set()
    if len(changed) > room:
        known = set(run.values.filter(kind=Value.Kind.SUMMARY).values_list("path", flat=True))
    kept: dict[str, Any] = {}
    for path, found in changed.items():
        if path in known or room > 0:
            kept[path] = found
            room -= path not in known
    _write(run, Value.Kind.SUMMARY, kept)


def tags_changed(run: Run) -> None:
    run.values.filter(kind=Value.Kind.TAG).exclude(path__in=run.tags).delete()
    _write(run, Value.Kind.TAG, {tag: tag for tag in run.tags})
