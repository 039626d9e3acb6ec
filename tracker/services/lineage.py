"""Whose history a run goes on: what writers say of it, the chain of forks as a person may see it, and summaries that it makes stale.

The rule itself is ``tracker/domain/lineage.py``; the points are put together in ``tracker/store/reading.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.db import connection

from tracker.domain import ids, lineage, storable
from tracker.domain.lineage import Fork
from tracker.models import Attempt, Event, Reproduction, Run, StaleSummary, Writer
from tracker.store import wire

MOST_TOLD = 200


# -- what a writer says -------------------------------------------------------------------------------------------------------------


def opened(run: Run, writer: Writer, said: Mapping[str, Any]) -> None:
    """Heed ``fork_from``, ``rewind_to`` and ``resume`` of a new writer (``run`` of its writer.json). Call with the run's row locked.

    Nothing here refuses a writer: what makes no sense is an event on the run's page, and the points come in.
    """
    if writer.kind != Writer.Kind.TRAINER:
        return
    attempt = writer.attempt
    changed = _rewound(run, writer, attempt, said.get("rewind_to"))
    if said.get("fork_from") is not None or run.fork_run:
        changed |= _forked(run, writer, said.get("fork_from"))
    if changed:
        run.is_stitched = True
        run.save(update_fields=["fork_run", "fork_step", "is_stitched"])
    if changed or run.fork_run:  # a fork's start that is earlier than those known: it inherits from fewer of its parent's attempts
        mark_stale([run.id])
    mark_stale(below(run.id))  # what this run has changes what its forks inherit
    _missing(run, writer, said.get("resume"))


def _rewound(run: Run, writer: Writer, attempt: Attempt, told: Any) -> bool:
    if told is None:
        return False
    step = _step(told)
    if step is None:
        _note(run, writer, "rewind_refused", {"rewind_to": told, "why": "this is no step"})
        return False
    if attempt.rewound_to is not None and attempt.rewound_to <= step:
        return False  # ranks of one start that say different things: the lowest, whoever comes first
    attempt.rewound_to = step
    attempt.save(update_fields=["rewound_to"])
    return True


def _forked(run: Run, writer: Writer, told: Any) -> bool:
    """A run is the fork of what its first attempt says; journals come in any order, so the first may come after others."""
    fork = _fork_of(told)
    if told is not None and fork is None:
        _note(run, writer, "fork_refused", {"fork_from": told, "why": "this is no run's id with a step"})
    stored = Fork(run.fork_run, run.fork_step) if run.fork_run and run.fork_step is not None else None
    if fork == stored or (stored and fork and stored.step == fork.step and told.get("given")):
        return False  # what a name meant at the first start, it means at the others
    if writer.attempt.number > 1:
        if fork is not None:
            why = "only the first start of a run says whose history it goes on"
            _note(run, writer, "fork_refused", {"fork_from": told, "why": why})
        return False
    first = run.writers.filter(kind=Writer.Kind.TRAINER, attempt__number=1).order_by("rank", "started_us", "id")
    said = [(info.get("run") or {}).get("fork_from") for info in first.values_list("info", flat=True)]
    found = next((_named(run, each, fork) for each in said if (fork := _fork_of(each)) is not None), None)
    if found == stored:
        return False
    if found is not None and (why := _circle(run.id, found)):
        _note(run, writer, "fork_refused", {"fork_from": told, "why": why})
        return False
    run.fork_run, run.fork_step = (found.run, found.step) if found else ("", None)
    return True


def _named(run: Run, told: Any, fork: Fork) -> Fork:
    """The SDK makes an id of a name, as it does for ``init(id=…)``. If no run has that id, it may be the name that a run is shown under."""
    given = told.get("given") if isinstance(told, Mapping) else None
    if not isinstance(given, str) or Run.objects.filter(id=fork.run).exists():
        return fork
    found = list(Run.objects.filter(project_id=run.project_id, name=storable.text(given), deleted_at=None).values_list("id", flat=True)[:2])
    return Fork(found[0], fork.step) if len(found) == 1 else fork


def _circle(run_id: str, fork: Fork) -> str | None:
    parent = fork.run
    for _ in range(lineage.MOST_ANCESTORS):
        if parent == run_id:
            return "the run would be its own ancestor"
        parent = Run.objects.filter(id=parent).values_list("fork_run", flat=True).first() or ""
        if not parent:
            return None
    return f"its history would go through more than {lineage.MOST_ANCESTORS} runs"


def _missing(run: Run, writer: Writer, resume: Any) -> None:
    """``resume="must"`` of a run that is not here: taken all the same, and said, until its earlier start comes after all."""
    if writer.attempt.number != 1:
        return
    others = run.writers.filter(kind=Writer.Kind.TRAINER).exclude(attempt_id=writer.attempt_id)
    if others.exists():
        Event.objects.filter(run=run, name="resume_missing").delete()
    elif resume == "must" and not run.events.filter(name="resume_missing").exists() and not _is_rerun(run):
        _note(run, writer, "resume_missing", {"why": 'resume="must", but no earlier start of this run had come'})


def _is_rerun(run: Run) -> bool:
    """A new run by intent, whatever its script says."""
    return Reproduction.objects.filter(rerun=run).exists()


def _note(run: Run, writer: Writer, name: str, data: dict[str, Any]) -> None:
    Event.objects.create(run=run, writer=writer, name=name, time_us=writer.started_us, data=storable.value(data))


def _step(told: Any) -> int | None:
    if isinstance(told, int) and not isinstance(told, bool) and lineage.LO < told <= lineage.HI:
        return told
    return None


def _fork_of(told: Any) -> Fork | None:
    if isinstance(told, Mapping):
        told = [told.get("run"), told.get("step")]
    if not isinstance(told, list) or len(told) != 2:
        return None
    step = _step(told[1])
    return Fork(told[0], step) if isinstance(told[0], str) and ids.is_id(told[0]) and step is not None else None


# -- the chain ----------------------------------------------------------------------------------------------------------------------


def forks_of(rows: Iterable[tuple[str, str, int | None]], within) -> dict[str, tuple[Fork, ...]]:
    """The ancestors of each forked run of ``rows`` (id, fork_run, fork_step), nearest first, as far as they are ``within`` (runs).

    No query where nothing is forked; else one a generation.
    """
    begun = {run: Fork(parent, step) for run, parent, step in rows if parent and step is not None}
    known: dict[str, Fork | None] = {}
    wanted = {fork.run for fork in begun.values()}
    for _ in range(lineage.MOST_ANCESTORS):
        if not wanted:
            break
        for run, parent, step in within.filter(id__in=wanted).values_list("id", "fork_run", "fork_step"):
            known[run] = Fork(parent, step) if parent and step is not None else None
        wanted = {fork.run for run in wanted if (fork := known.get(run)) is not None} - set(known)
    chains = {}
    for run, fork in begun.items():
        chain: list[Fork] = []
        following: Fork | None = fork
        seen = {run}
        while following is not None and following.run in known and following.run not in seen and len(chain) < lineage.MOST_ANCESTORS:
            chain.append(following)
            seen.add(following.run)
            following = known[following.run]
        if chain:
            chains[run] = tuple(chain)
    return chains


def forks_for(user, run: Run) -> dict[str, tuple[Fork, ...]]:
    """``forks_of`` one run, as this person may see it."""
    return forks_of([(run.id, run.fork_run, run.fork_step)], Run.objects.visible_to(user))


def forks_for_summaries(run: Run) -> dict[str, tuple[Fork, ...]]:
    """Summaries are the same for all who see the run, so they inherit only within its project, whose members see all of it."""
    return forks_of([(run.id, run.fork_run, run.fork_step)], Run.objects.filter(project_id=run.project_id, deleted_at=None))


def below(run_id: str) -> list[str]:
    """All runs that inherit from this one, through other forks too."""
    found: dict[str, None] = {}
    wanted = [run_id]
    for _ in range(lineage.MOST_ANCESTORS):
        wanted = [fork for fork in Run.objects.filter(fork_run__in=wanted).values_list("id", flat=True) if fork not in found]
        if not wanted:
            break
        found.update(dict.fromkeys(wanted))
    return list(found)


# -- stale summaries ----------------------------------------------------------------------------------------------------------------


def mark_stale(run_ids: Iterable[str], keys: Sequence[str] = ("",)) -> None:
    """Their summaries of these keys (all, unless named) are to be made again from the series: services/stitched.py."""
    marked = [(run_id, key) for run_id in sorted(run_ids) for key in sorted(keys)]  # in one order: two of these cannot wait for each other
    if not marked:
        return
    table = StaleSummary._meta.db_table
    with connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {table} (run_id, key, marks) VALUES (%s, %s, 1) "  # noqa: S608
            f"ON CONFLICT (run_id, key) DO UPDATE SET marks = {table}.marks + 1",
            marked,
        )


class Change:
    """What newly counted records of a run change for its forks. A parent that goes on beyond the step of a fork changes nothing there."""

    def __init__(self) -> None:
        self._lowest: int | None = None
        self._tops: dict[int, int] = {}

    def logged(self, batches: Iterable[wire.Batch]) -> None:
        """Points of any key: also of those that have no summary here, since a fork may have one."""
        for batch in batches:
            if batch.lo_step is None or (self._lowest is not None and batch.lo_step >= self._lowest):
                continue
            for frame in batch.frames:
                if frame.points and not all(map(lineage.is_measured, frame.keys)):
                    lowest = int(frame.steps.min())
                    self._lowest = lowest if self._lowest is None else min(lowest, self._lowest)

    def came_to(self, attempt: int, step: int | None) -> None:
        """A writer of this attempt (its id) moved, and the highest step that it has come to."""
        if step is not None:
            self._tops[attempt] = max(step, self._tops.get(attempt, step))

    def heirs(self, run_id: str) -> list[str]:
        """The runs whose summaries are to be made again, through other forks too."""
        forks = Run.objects.filter(fork_run=run_id)
        if self._lowest is not None and forks.filter(fork_step__gte=self._lowest).exists():
            return below(run_id)
        # Whether an attempt reaches a fork's step decides over those after it (domain/lineage.py: _begun), and over nothing where none is.
        latest = Attempt.objects.filter(run_id=run_id).order_by("-number").values_list("id", flat=True).first()
        top = max((step for attempt, step in self._tops.items() if attempt != latest), default=None)
        return below(run_id) if top is not None and forks.filter(fork_step__lte=top).exists() else []


def deleted(run: Run) -> None:
    """A run goes to the trash: its forks keep their own points, and no longer what they inherited."""
    mark_stale(below(run.id))


# -- telling ------------------------------------------------------------------------------------------------------------------------


def told(*, user, run: Run) -> dict[str, Any]:
    """``forked_from`` and ``forks`` as this person may know of them."""
    return {"forked_from": _parent(user, run), "forks": _children(user, run)}


def _parent(user, run: Run) -> dict[str, Any] | None:
    if not run.fork_run:
        return None
    found = {"run": run.fork_run, "step": run.fork_step, "name": None, "project": None, "state": "unknown"}
    there = Run.objects.filter(id=run.fork_run).select_related("project").first()
    if there is not None and Run.objects.visible_to(user).filter(id=there.id).exists():
        return {**found, "name": there.name, "project": there.project.slug, "state": "inherited"}
    # Within a project all members see all runs: so much may be said of one that is deleted.
    return {**found, "state": "deleted"} if there is not None and there.deleted_at and there.project_id == run.project_id else found


def _children(user, run: Run) -> list[dict[str, Any]]:
    rows = Run.objects.visible_to(user).filter(fork_run=run.id).order_by("fork_step", "created_at", "id")
    return [
        {"run": child, "name": name, "step": step, "state": state}
        for child, name, step, state in rows.values_list("id", "name", "fork_step", "state")[:MOST_TOLD]
    ]
