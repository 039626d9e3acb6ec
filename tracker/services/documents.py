"""What is not a point: each document type of docs/formats.md, applied inside the transaction of its batch.

Nothing a program writes may stop its batch: an unknown type or a malformed document is kept as an event and shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from django.utils import timezone

from tracker.domain import recipes, storable
from tracker.domain.lifecycle import RunState
from tracker.models import Attempt, Event, KeyDefinition, LogChunk, Media, Run, Writer
from tracker.services import asks, attempts, liveness, ranks, values

NO_STEP = -(2**63)
DEFINE_FIELDS = ("goal", "x", "kind", "reduce", "over", "same", "result")
MOST_DEFINITIONS = 1000
MOST_TAGS = 200


@dataclass
class _Batch:
    """What one batch's documents add up to; rows are written at its end, in bulk."""

    run: Run
    writer: Writer
    attempt: Attempt | None = None
    fields: set[str] = field(default_factory=set)
    config: bool = False
    tags: bool = False
    ended: bool = False
    summary: dict[str, Any] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    logs: list[LogChunk] = field(default_factory=list)
    media: list[Media] = field(default_factory=list)


class _Malformed(Exception):
    pass


def apply(*, run: Run, writer: Writer, docs: list[dict]) -> None:
    """Apply ``docs`` (``{"n", "step", "time" µs, "doc"}`` in order of n) to ``run``. Call inside the batch's transaction.

    Locks the run's row: documents of two ranks that touch the same config must not overwrite each other.
    """
    batch = _Batch(run=Run.objects.select_for_update().get(pk=run.pk), writer=Writer.objects.get(pk=writer.pk))
    for entry in docs:
        doc = entry.get("doc")
        try:
            doc = _whole(batch, doc)
            _TYPES[doc["type"]](batch, entry, doc)
        except (_Malformed, KeyError, TypeError, ValueError, AttributeError) as problem:
            _keep_as_event(batch, entry, doc, problem)
    _write(batch)
    # The caller's objects stay true.
    for name in ("state", "config", "summary", "name", "tags", "finished_at", "asks"):
        setattr(run, name, getattr(batch.run, name))
    writer.finish = batch.writer.finish


def _write(batch: _Batch) -> None:
    if batch.fields:
        batch.run.save(update_fields=sorted(batch.fields))
    if batch.attempt is not None:
        batch.attempt.save(update_fields=["recipe"])
    if batch.config:
        values.config_changed(batch.run)
    if batch.summary:
        values.summary_changed(batch.run, batch.summary)
    if batch.tags:
        values.tags_changed(batch.run)
    # A record's range arrives once, so rows can be there already only after a restore: then the first stays.
    LogChunk.objects.bulk_create(batch.logs, ignore_conflicts=True, batch_size=100)
    Event.objects.bulk_create(batch.events, batch_size=100)
    Media.objects.bulk_create(batch.media, batch_size=100)
    if batch.ended:
        liveness.settle(batch.run)
        if (batch.writer.finish or {}).get("state") == RunState.PREEMPTED.value:
            attempts.give_reasons(batch.run)  # the next start may be known already


def _whole(batch: _Batch, doc) -> dict:
    """The document itself: one over 256 KiB lies in a blob, and the record names its digest."""
    if not isinstance(doc, dict) or not isinstance(doc.get("type"), str):
        raise _Malformed("a document is an object with a type")
    digest = doc.get("blob")
    if digest is None or len(doc) > 2:
        return doc
    from tracker.services import blobs

    raw = blobs.read_small(project_id=batch.run.project_id, digest=digest, most=64 * 2**20)
    if raw is None:
        raise _Malformed(f"the blob {digest} of this document has not arrived")
    whole = json.loads(raw)
    if not isinstance(whole, dict) or whole.get("type") not in (None, doc["type"]):
        raise _Malformed("the blob holds no document of this type")
    return {**whole, "type": doc["type"]}


def _config(batch: _Batch, entry: dict, doc: dict) -> None:
    found = storable.value(_object(doc["value"]))
    run = batch.run
    if batch.writer.rank == 0 and not _is_overtaken(batch):
        run.config = {**run.config, **found} if doc.get("update") else found
    else:
        # Every rank of a launch sends its config; rank 0's word stands, the others only add what it did not say. So does an earlier
        # attempt whose journal comes late: it lies under what later ones said.
        run.config = {**found, **run.config}
    batch.fields.add("config")
    batch.config = True


def _is_overtaken(batch: _Batch) -> bool:
    """Whether a later attempt has begun."""
    return Attempt.objects.filter(run=batch.run, number__gt=batch.writer.attempt.number).exists()


def _summary(batch: _Batch, entry: dict, doc: dict) -> None:
    found = storable.value(_object(doc["values"]))
    batch.run.summary = {**batch.run.summary, **found}
    batch.summary.update(found)
    batch.fields.add("summary")


def _define(batch: _Batch, entry: dict, doc: dict) -> None:
    pattern = storable.text(doc["pattern"], 500)
    found = {name: storable.value(doc[name]) for name in DEFINE_FIELDS if name in doc}
    row = KeyDefinition.objects.filter(run=batch.run, pattern=pattern).first()
    if row is None:
        if batch.run.key_definitions.count() >= MOST_DEFINITIONS:
            raise _Malformed(f"a run keeps {MOST_DEFINITIONS} definitions")
        row = KeyDefinition(run=batch.run, pattern=pattern)
    row.fields = {**row.fields, **found}
    row.save()


def _log(batch: _Batch, entry: dict, doc: dict) -> None:
    batch.logs.append(
        LogChunk(
            run=batch.run,
            writer=batch.writer,
            number=entry["n"],
            rank=batch.writer.rank,
            stream=storable.text(doc.get("stream") or "stdout", 6),
            time_us=_time(entry),
            text=storable.text(doc["text"]),
        )
    )


def _event(batch: _Batch, entry: dict, doc: dict) -> None:
    name = storable.text(doc["name"], 50)
    data = storable.value(doc.get("data") or {})
    data = data if isinstance(data, dict) else {"value": data}
    _add_event(batch, entry, name, data)
    if name == "finish":
        _finish(batch, entry, data)
    elif name == "gone":
        _gone(batch, entry, data)
    elif name == "dropped":
        _dropped(batch, entry, data)
    elif name == "coordinates":
        ranks.place(batch.writer, data)
    elif name == "stacks" and asks.spread_stall(batch.run, batch.writer, data):
        batch.fields.add("asks")


def _finish(batch: _Batch, entry: dict, data: dict) -> None:
    batch.writer.finish = {**data, "time_us": _time(entry)}
    batch.writer.save(update_fields=["finish"])
    dropped = data.get("dropped")
    if isinstance(dropped, dict) and dropped:
        _dropped(batch, entry, dropped)
    batch.ended = True


def _gone(batch: _Batch, entry: dict, data: dict) -> None:
    """A trainer vanished without a word, as the node's writer saw. Its own word, should it still arrive, counts more."""
    gone = Writer.objects.filter(id=str(data.get("writer") or batch.writer.id), run=batch.run).first()
    if gone is None or gone.finish is not None:
        return
    state = data.get("state") if isinstance(data.get("state"), str) else RunState.CRASHED.value
    gone.finish = {
        "state": state,
        "exit_code": data.get("exit_code"),
        "signal": data.get("signal"),
        "error": data.get("error"),
        "gone": True,
        "time_us": _time(entry),
    }
    gone.save(update_fields=["finish"])
    if gone.id == batch.writer.id:
        batch.writer.finish = gone.finish
    batch.ended = True


def _dropped(batch: _Batch, entry: dict, counts: dict) -> None:
    """Losses, told while the run goes on and with ``finish``: the writer's whole count each time. What is new is added to the run's."""
    before = _last_told(batch, entry)
    more = {reason: count - before.get(reason, 0) for reason, count in counts.items() if _is_count(count)}
    more = {storable.text(reason, 250): count for reason, count in more.items() if count > 0}
    if more:
        batch.run.dropped = _added(batch.run.dropped, more)
        batch.fields.add("dropped")


def _last_told(batch: _Batch, entry: dict) -> dict[str, int]:
    told = next((event for event in reversed(batch.events) if event.name == "dropped" and event.number != entry.get("n")), None)
    told = told or Event.objects.filter(run=batch.run, writer=batch.writer, name="dropped").order_by("-number").first()
    return {reason: count for reason, count in told.data.items() if _is_count(count)} if told is not None else {}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _added(before: dict, more: dict) -> dict:
    total = dict(before)
    for reason, count in more.items():
        if _is_count(count):
            total[reason] = total.get(reason, 0) + count
    return total


def _meta(batch: _Batch, entry: dict, doc: dict) -> None:
    run = batch.run
    if isinstance(doc.get("name"), str) and doc["name"].strip():
        run.name = storable.text(doc["name"], 250)
        batch.fields.add("name")
    if isinstance(doc.get("notes"), str):
        run.notes = storable.text(doc["notes"])
        batch.fields.add("notes")
    if isinstance(doc.get("group"), str):
        run.group = storable.text(doc["group"], 250)
        batch.fields.add("group")
    if isinstance(doc.get("tags"), list):
        run.tags = clean_tags(doc["tags"])
        batch.fields.add("tags")
        batch.tags = True


def clean_tags(tags: list) -> list[str]:
    return list(dict.fromkeys(storable.text(tag, 250) for tag in tags if isinstance(tag, str) and tag.strip()))[:MOST_TAGS]


def _recipe(batch: _Batch, entry: dict, doc: dict) -> None:
    section = storable.text(doc["section"], 100)
    found = storable.value(_object(doc["value"]))
    if batch.attempt is None:
        batch.attempt = Attempt.objects.get(pk=batch.writer.attempt_id)
    before = batch.attempt.recipe.get(section)
    after = recipes.merged(before, found) if doc.get("merge") and isinstance(before, dict) else found
    batch.attempt.recipe = {**batch.attempt.recipe, section: after}


def _media(batch: _Batch, entry: dict, doc: dict) -> None:
    batch.media.append(
        Media(
            run=batch.run,
            writer=batch.writer,
            number=entry["n"],
            key=storable.text(doc["key"], 500),
            kind=storable.text(doc["kind"], 20),
            step=_step(entry),
            time_us=_time(entry),
            digest=storable.text(doc.get("digest") or "", 71),
            bytes=_integer(doc.get("bytes", 0)),
            mime=storable.text(doc.get("mime") or "", 100),
            meta=storable.value(_object(doc.get("meta") or {})),
        )
    )


def _unknown(batch: _Batch, entry: dict, doc: dict) -> None:
    _add_event(batch, entry, storable.text(doc["type"], 50), storable.value(doc))


class _Types(dict):
    def __missing__(self, name: str) -> Callable[[_Batch, dict, dict], None]:
        return _unknown


_TYPES = _Types(
    config=_config, summary=_summary, define=_define, log=_log, event=_event, meta=_meta, recipe=_recipe, media=_media
)  # fmt: skip


def _keep_as_event(batch: _Batch, entry: dict, doc, problem: Exception) -> None:
    data = {"problem": storable.text(problem, 500), "document": storable.value(doc)}
    _add_event(batch, entry, "malformed_document", data)


def _add_event(batch: _Batch, entry: dict, name: str, data: dict) -> None:
    batch.events.append(
        Event(
            run=batch.run,
            writer=batch.writer,
            number=entry.get("n"),
            name=name,
            step=_step(entry),
            time_us=_time(entry),
            data=data,
        )
    )


def _step(entry: dict) -> int | None:
    step = entry.get("step")
    return step if isinstance(step, int) and NO_STEP < step < 2**63 else None


def _time(entry: dict) -> int:
    time = entry.get("time")
    return time if isinstance(time, int) and -(2**63) <= time < 2**63 else int(timezone.now().timestamp() * 1e6)


def _integer(found) -> int:
    if not isinstance(found, int) or not 0 <= found < 2**63:
        raise _Malformed("not a size in bytes")
    return found


def _object(found) -> dict:
    if not isinstance(found, dict):
        raise _Malformed("not an object")
    return found
