"""Writers: opening one makes its run and attempt, and decides who may write."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import IntegrityError, transaction
from django.utils import timezone

from tracker.domain import ids, limits, storable
from tracker.domain.errors import Conflict, Forbidden, Invalid, NotFound, RunDeleted, RunIdTaken, TooLarge, WriterUnknown
from tracker.domain.lifecycle import RunState
from tracker.models import Attempt, Reproduction, Run, Token, User, Writer
from tracker.models.project import Role
from tracker.services import asks, attempts, documents, lineage, liveness, projects, values
from tracker.services.beats import beats
from tracker.store import rows

KINDS = set(Writer.Kind.values)
_FOR_HEARTBEAT = ("project_id", "state", "stop_requested_at", "deleted_at", "asks")


@dataclass
class Opened:
    run: Run
    writer: Writer
    stop: bool


def open_writer(*, user: User, token: Token | None, doc: dict) -> Opened:
    """Open the writer that ``doc`` (writer.json) describes, with its run, project and attempt. Idempotent.

    Raises Invalid, RunIdTaken, ProjectTaken, RunDeleted, Forbidden (a job's key on any run but its own).
    """
    told = _told(doc)
    with transaction.atomic():
        run = _run_for(user=user, token=token, told=told)
        run = Run.objects.select_for_update().get(pk=run.pk)
        if run.deleted_at is not None:
            raise RunDeleted
        writer = Writer.objects.filter(id=told["writer"]).first()
        if writer is not None and writer.run_id != run.id:
            raise Conflict("This writer id is open in another run.", code="writer_taken")
        if writer is None:
            writer = _new_writer(run, told)
            lineage.opened(run, writer, told["run"])
    return Opened(run=run, writer=writer, stop=stops(run))


def stops(run: Run) -> bool:
    """Whether the trainer is asked to stop."""
    return run.stop_requested_at is not None and not RunState(run.state).is_terminal


def _told(doc) -> dict:
    """What writer.json says, checked. Raises Invalid with the field; a newer format is refused by name."""
    if not isinstance(doc, dict) or not isinstance(doc.get("run"), dict):
        raise Invalid("writer.json is an object with 'run'.", run="missing")
    if doc.get("format", 1) != 1:
        raise Invalid(f"writer.json has format {doc.get('format')!r}; this server reads 1. Update the server.", format="newer")
    run = doc["run"]
    for name, found in (("writer", doc.get("writer")), ("run.id", run.get("id"))):
        if not isinstance(found, str) or not ids.is_id(found):
            raise Invalid(f"{name} is no id: 26 characters of a-z and 2-7.", **{name: "malformed"})
    if not isinstance(run.get("project"), str) or not run["project"].strip():
        raise Invalid("run.project is missing: pass project=… to init, or set ENCORE_PROJECT.", **{"run.project": "missing"})
    kind = doc.get("kind", "trainer")
    if kind not in KINDS:
        raise Invalid(f"kind is one of {', '.join(sorted(KINDS))}.", kind="unknown")
    numbers = {name: doc.get(name, default) for name, default in (("rank", 0), ("local_rank", 0), ("world_size", 1))}
    now_us = int(timezone.now().timestamp() * 1e6)
    numbers["started_us"] = doc.get("started_us", now_us)
    numbers["anchor_wall_us"] = doc.get("anchor_wall_us", numbers["started_us"])
    for name, found in numbers.items():
        most = 2**63 if name.endswith("_us") else 2**31
        if not isinstance(found, int) or isinstance(found, bool) or not -most <= found < most:
            raise Invalid(f"{name} is no integer of its range.", **{name: "malformed"})
    pid = doc.get("pid")
    launch = doc.get("launch") if isinstance(doc.get("launch"), dict) else {}
    return {
        "writer": doc["writer"],
        "run": run,
        "kind": kind,
        **numbers,
        "host": storable.text(doc.get("host") or "", 250),
        "pid": pid if isinstance(pid, int) and 0 <= pid < 2**63 else None,
        "launch": storable.value(launch),
        "info": storable.value(doc),
    }


def _run_for(*, user: User, token: Token | None, told: dict) -> Run:
    said = told["run"]
    run = Run.objects.filter(id=said["id"]).select_related("project").first()
    if run is not None:
        require_write(user=user, token=token, run=run, otherwise=RunIdTaken)
        return run
    if token is not None and token.job_id is not None:
        raise RunIdTaken("A job's key writes into the job's own new run and no other.")
    project = projects.for_writing(user=user, name=said["project"])
    created = liveness.moment(said.get("created_us")) if isinstance(said.get("created_us"), int) else None
    tags = documents.clean_tags(said["tags"]) if isinstance(said.get("tags"), list) else []
    run = Run(
        id=said["id"],
        project=project,
        user=user,
        name=storable.text(said.get("name") or said["id"][:8], 250),
        group=storable.text(said.get("group") or "", 250),
        job_type=storable.text(said.get("job_type") or "", 100),
        tags=tags,
        notes=storable.text(said.get("notes") or ""),
        host=told["host"],
        state=RunState.RUNNING.value,
        started_at=created or liveness.moment(told["started_us"]),
        heartbeat_at=timezone.now(),
    )
    try:
        with transaction.atomic():
            run.save(force_insert=True)
    except IntegrityError:  # another rank was faster
        run = Run.objects.select_related("project").get(id=said["id"])
        require_write(user=user, token=token, run=run, otherwise=RunIdTaken)
        return run
    if tags:
        values.tags_changed(run)
    return run


def require_write(*, user: User, token: Token | None, run: Run, otherwise=Forbidden) -> None:
    """The right to write into ``run``: the editor's role in its project; a job's key only for its job's own new run.

    Raises ``otherwise``, or Forbidden to a viewer of the project.
    """
    if token is not None and token.job_id is not None:
        if not Reproduction.objects.filter(job_id=token.job_id, rerun_id=run.id).exists():
            raise otherwise()
        return
    role = projects.role_of(user=user, project=run.project)
    if role is None:
        raise otherwise()
    if role == Role.VIEWER.value:
        raise otherwise() if otherwise is RunIdTaken else Forbidden("Writing into a run needs the editor's role in its project.")


def _new_writer(run: Run, told: dict) -> Writer:
    attempt = attempts.attempt_for(run, told)
    writer = Writer.objects.create(
        id=told["writer"],
        run=run,
        attempt=attempt,
        kind=told["kind"],
        rank=told["rank"],
        local_rank=told["local_rank"],
        world_size=told["world_size"],
        host=told["host"],
        pid=told["pid"],
        info=told["info"],
        started_us=told["started_us"],
        anchor_wall_us=told["anchor_wall_us"],
        heartbeat_at=timezone.now(),
    )
    if told["kind"] == Writer.Kind.TRAINER:
        _run_goes_on(run, told, attempt)
    return writer


def _run_goes_on(run: Run, told: dict, attempt: Attempt) -> None:
    started = liveness.moment(told["started_us"])
    changed = set()
    if run.state == RunState.QUEUED.value or run.started_at is None:
        run.started_at = started
        changed.add("started_at")
    if run.host == "" and told["host"]:
        run.host = told["host"]
        changed.add("host")
    if run.stop_requested_at and attempt.number > 1 and not Writer.objects.filter(attempt=attempt).exclude(id=told["writer"]).exists():
        run.stop_requested_at = None  # the stop was for the start before this one
        changed.add("stop_requested_at")
    if changed:
        run.save(update_fields=sorted(changed))
    liveness.settle(run)
    liveness.heard(run.id)


def heartbeat(*, user: User, token: Token | None, doc: dict) -> dict:
    """A sender's sign of life for the writers of one run on its host; times are the server's own.

    ``{"run", "host", "writers": [{"id", "alive", "unsent"}]}`` gives ``{"stop", "state", "next": {writer: n}}``. Unknown writers
    are left out of ``next``: the sender opens them again.
    """
    run_id = doc.get("run") if isinstance(doc, dict) else None
    if not isinstance(run_id, str) or not ids.is_id(run_id):
        raise Invalid("run is no id.", run="malformed")
    told = doc.get("writers") or []
    if not isinstance(told, list) or not all(isinstance(entry, dict) and isinstance(entry.get("id"), str) for entry in told):
        raise Invalid("writers is a list of {id, alive, unsent}.", writers="malformed")
    if len(told) > limits.WRITERS_PER_HEARTBEAT:
        raise TooLarge(f"A heartbeat speaks of {limits.WRITERS_PER_HEARTBEAT} writers at most: send several.")
    run = Run.objects.only(*_FOR_HEARTBEAT).filter(id=run_id).first()
    if run is None:
        raise WriterUnknown("This run is not here: post its writers' writer.json to ingest/writers first.")
    require_write(user=user, token=token, run=run, otherwise=WriterUnknown)
    if run.deleted_at is not None:
        raise RunDeleted
    known = _standing(run, [entry["id"] for entry in told if ids.is_id(entry["id"])])
    alive = [entry["id"] for entry in told if entry.get("alive", True) and entry["id"] in known]
    if alive:
        beats.note(run.id, alive, asks.skew(doc))
        run = liveness.is_alive(run)
    answer = {"stop": stops(run), "state": run.state, "next": known}
    asked = asks.hand_out(run, doc)
    return {**answer, "ask": asked} if asked else answer


def _standing(run: Run, writers: list[str]) -> dict[str, int]:
    """The next record of each of these writers of the run."""
    found: dict[str, int] = {}
    with rows.cursor() as cursor:  # the ORM takes three times as long, and each run asks each ten seconds
        for start in range(0, len(writers), 500):
            some = writers[start : start + 500]
            among = ", ".join(["%s"] * len(some))
            cursor.execute(f'SELECT id, "next" FROM tracker_writer WHERE run_id = %s AND id IN ({among})', [run.id, *some])  # noqa: S608
            found.update(cursor.fetchall())
    return found


def run_for_blobs(*, user: User, token: Token | None, run_id: str) -> Run:
    """The run whose project takes this sender's blobs. Raises NotFound, Forbidden, RunDeleted."""
    run = Run.objects.select_related("project").filter(id=run_id).first()
    if run is None:
        raise NotFound("There is no such run: open a writer of it first.")
    require_write(user=user, token=token, run=run, otherwise=NotFound)
    if run.deleted_at is not None:
        raise RunDeleted
    return run
