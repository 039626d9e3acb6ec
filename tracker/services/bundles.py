"""A run in one file, for a colleague, an archive, a paper."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from tracker.domain import byhand
from tracker.domain.errors import EncoreError, Invalid
from tracker.models import Blob, Reproduction, Run, User
from tracker.services import blobs, compaction, runs, sources
from tracker.store import blocks, bundle, rows
from tracker.store.blobs import blob_store
from tracker.store.metrics import SegmentHead, metric_store


class BundleFailed(EncoreError):
    code, status = "bundle_failed", 500


def write(*, user: User, run: Run, file: BinaryIO, created_us: int | None = None) -> list[bundle.Content]:
    """Write the bundle of ``run`` to ``file`` and return its contents. What has not arrived or is lost stands in ``left_out``.

    Raises NotFound (unknown, deleted, or not for these eyes), BundleFailed (the store's bytes are damaged).
    """
    run = runs.get(user=user, run_id=run.pk)
    attempt, recipe = runs.recipe_of(run)
    told = _told(run, attempt.number if attempt else None)
    documents = {"run.json": bundle.document(told), "recipe.json": bundle.document(recipe)}
    documents["README.md"] = byhand.readme(told, recipe).encode("utf-8", "replace")
    for reproduction in Reproduction.objects.visible_to(user).filter(original=run, judged_at__isnull=False).select_related("job"):
        documents[f"verdicts/{reproduction.id}.json"] = bundle.document(_verdict(reproduction))
    parts = [bundle.Part(path, data) for path, data in documents.items()]
    stored, left_out = _blobs(run, recipe)
    with tempfile.TemporaryFile() as aside:
        parts += [*stored, *_series(run.id, aside)]
        try:
            return bundle.write(
                file, run=run.id, created_us=time.time_ns() // 1000 if created_us is None else created_us, parts=parts, left_out=left_out
            )
        except bundle.BadBundle as problem:
            raise BundleFailed(f"The bundle cannot be made: {problem}.") from None


# -- documents ---------------------------------------------------------------------------------------------------------------------


def _told(run: Run, recipe_attempt: int | None) -> dict[str, Any]:
    """run.json."""
    names = ("id", "name", "state", "group", "job_type", "tags", "notes", "config", "summary", "host", "exit_code", "signal", "error")
    return {
        "format": 1,
        **{name: getattr(run, name) for name in (*names, "dropped")},
        "project": run.project.slug,
        "user": run.user.username if run.user else None,
        **{name: _when(getattr(run, name)) for name in ("created_at", "started_at", "finished_at")},
        **({"fork": {"run": run.fork_run, "step": run.fork_step}} if run.fork_run else {}),
        "recipe_attempt": recipe_attempt,
        "attempts": [
            {"number": each.number, "reason": each.reason, "world_size": each.world_size, "launch": each.launch}
            | ({} if each.rewound_to is None else {"rewound_to": each.rewound_to})
            for each in run.attempts.order_by("number")
        ],
        "writers": [
            {"id": each.id, "kind": each.kind, "attempt": each.attempt.number, "rank": each.rank, "local_rank": each.local_rank}
            | {"host": each.host, "started_us": each.started_us, "anchor_wall_us": each.anchor_wall_us, "finish": each.finish}
            for each in run.writers.select_related("attempt").order_by("attempt__number", "started_us", "id")
        ],
        "definitions": [{"pattern": each.pattern, "fields": each.fields} for each in run.key_definitions.order_by("pattern")],
    }


def _verdict(reproduction: Reproduction) -> dict[str, Any]:
    """verdicts/<id>.json."""
    return {
        "format": 1,
        "id": reproduction.id,
        "original": reproduction.original_id,
        "rerun": reproduction.rerun_id,
        "created_at": _when(reproduction.created_at),
        "judged_at": _when(reproduction.judged_at),
        "overrides": reproduction.overrides,
        "scope": reproduction.scope,
        "verdict": reproduction.verdict,
        "evidence": reproduction.job.evidence,
        "failure": reproduction.job.failure,
    }


def _when(moment) -> str | None:
    return moment.isoformat() if moment else None


# -- blobs -------------------------------------------------------------------------------------------------------------------------


def _blobs(run: Run, recipe: dict) -> tuple[list[bundle.Part], list[dict[str, str]]]:
    wanted = dict(reversed(list(_wanted(run, recipe))))
    found: dict[str, Blob] = {}
    names = list(wanted)
    for start in range(0, len(names), 900):
        some = names[start : start + 900]
        found.update({blob.digest: blob for blob in Blob.objects.filter(project=run.project_id, digest__in=some)})
    parts, left_out = [], []
    for digest, what in wanted.items():
        try:
            blob = found.get(digest) or blobs.find([run.project_id], blobs.hex_of(digest))
        except Invalid:
            blob = None
        if blob is None:
            left_out.append({"digest": digest, "what": what, "why": "its bytes have not arrived"})
        else:
            parts.append(bundle.Part(f"blobs/{digest.partition(':')[2]}", _opener(blob.object_key), blob.bytes))
    return parts, left_out


def _opener(object_key: str) -> Callable[[], BinaryIO]:
    return lambda: blob_store().open(object_key)


def _wanted(run: Run, recipe: dict) -> Iterator[tuple[str, str]]:
    """(digest, what it is) of every blob that the recipe stands on, the more telling names first."""
    section = {name: recipe[name] if isinstance(recipe.get(name), dict) else {} for name in ("source", "environment", "data", "numerics")}
    yield from _digests(section["source"].get("manifest"), "source manifest")
    for entry in sources.files(run):
        yield from _digests(entry["digest"], f"source {entry['path']}")
    yield from _digests((section["environment"].get("sdk") or {}).get("wheel"), "SDK wheel")
    for entry in section["data"].get("inputs") or ():
        if isinstance(entry, dict) and entry.get("stored"):
            yield from _digests(entry.get("digest"), f"data {entry.get('path')}")
    yield from _digests(section["numerics"].get("rng"), "RNG state")


def _digests(value: Any, what: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str) and blobs.DIGEST.fullmatch(value):
        yield value, what
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _digests(each, what)


# -- series ------------------------------------------------------------------------------------------------------------------------


def _series(run_id: str, aside: BinaryIO) -> list[bundle.Part]:
    """Block objects as they lie in the store, and what is still in segments as blocks made now; all of one moment.

    The new blocks go to ``aside``, so that a run of many ranks does not fill the memory.
    """
    parts = []
    with rows.snapshot() as cursor:
        cursor.execute('SELECT writer_id, "first", "last", bytes, object_key FROM tracker_metricblock WHERE run_id = %s', [run_id])
        for writer, first, last, size, object_key in cursor.fetchall():
            # A block that is compacted away now stays readable for an hour.
            parts.append(bundle.Part(f"series/{writer}/{first}-{last}.block", _opener(object_key), size))
        for heads in _portions(metric_store().segment_heads(cursor, run_id)):
            writer, first, last = heads[0].writer, heads[0].first, heads[-1].last
            batches = metric_store().batches(cursor, run_id, writer, first, heads[-1].first)
            made = blocks.encode(writer, first, last, [frame for batch in batches for frame in batch.frames])
            at = aside.seek(0, 2)
            aside.write(made.data)
            parts.append(bundle.Part(f"series/{writer}/{first}-{last}.block", _slice(aside, at, len(made.data)), len(made.data)))
    return parts


def _portions(heads: list[SegmentHead]) -> Iterator[list[SegmentHead]]:
    """Runs of one writer's segments, each as much as one block holds."""
    portion: list[SegmentHead] = []
    points = 0
    for head in heads:
        if portion and (head.writer != portion[0].writer or points + head.points > compaction.BLOCK_POINTS):
            yield portion
            portion, points = [], 0
        portion.append(head)
        points += head.points
    if portion:
        yield portion


def _slice(file: BinaryIO, at: int, size: int) -> Callable[[], BinaryIO]:
    def opened() -> BinaryIO:
        file.seek(at)
        return io.BytesIO(file.read(size))

    return opened
