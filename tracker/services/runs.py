"""Runs: found, changed, stopped, deleted."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from tracker.domain import ids, storable
from tracker.domain.errors import Forbidden, Invalid, NotFound
from tracker.domain.lifecycle import JobState, RunState
from tracker.models import Attempt, Job, MetricSegment, Project, Run, User
from tracker.services import compaction, documents, lineage, matching, paging, projects, search, values
from tracker.services.filters import Filter
from tracker.services.paging import Page


def find(
    *,
    user: User,
    project: Project | str | None = None,
    filter: str = "",
    sort: str = "",
    state: str = "",
    limit: int | str | None = None,
    cursor: str | None = None,
    archived: bool | None = None,
    ids: list[str] | None = None,
) -> Page:
    """A page of the runs ``user`` may see (``.results``, ``.next``), newest first unless ``sort`` says otherwise.

    ``sort``: a column or a value's name (``config.lr``, ``summary.val/loss``), with ``-`` in front for descending, several with commas
    between; numbers stand before texts, and runs without the value last. ``state``: comma-separated. ``archived``: None for both.
    ``ids``: of these alone.

    Raises FilterMistake, FilterTooSlow, Invalid, NotFound (project).
    """
    rows = Run.objects.visible_to(user)
    if ids is not None:
        rows = rows.filter(id__in=ids)
    if project is not None:
        project = projects.get(user=user, slug=project) if isinstance(project, str) else project
        rows = rows.filter(project=project)
        within = [project.id]
    else:
        within = list(Project.objects.visible_to(user).order_by().values_list("id", flat=True))
    if states := [word.strip() for word in state.split(",") if word.strip()]:
        if unknown := set(states) - {known.value for known in RunState}:
            raise Invalid(f"There is no state {sorted(unknown)[0]}.", state="unknown")
        rows = rows.filter(state__in=states)
    if archived is not None:
        rows = rows.filter(archived_at__isnull=not archived)
    rows = rows.select_related("project", "user")
    is_narrow = bool(states) or ids is not None or archived is True
    most = paging.limit_of(limit)
    try:
        with matching.bounded():
            chosen = Filter(filter, within)
            return search.page(rows, chosen=chosen, sort=sort, limit=most, cursor=cursor, is_narrow=is_narrow)
    except (ValidationError, TypeError, ValueError):
        if not cursor:
            raise
        raise paging.not_ours() from None


def get(*, user: User, run_id: str) -> Run:
    """Raises Invalid for what is no id, NotFound for what is unknown or hidden."""
    if not ids.is_id(run_id):
        raise Invalid("This is no id: 26 characters of a-z and 2-7.", id="malformed")
    run = Run.objects.visible_to(user).select_related("project", "user").filter(id=run_id).first()
    if run is None:
        raise NotFound("There is no such run, or you may not see it.")
    return run


def require_editor(*, user: User, run: Run) -> None:
    if not Run.objects.editable_by(user).filter(id=run.id).exists():
        raise Forbidden(f"This needs the editor's role in project {run.project.slug}.")


def update(
    *,
    user: User,
    run: Run,
    name: str | None = None,
    tags: list[str] | None = None,
    notes: str | None = None,
    group: str | None = None,
    archived: bool | None = None,
) -> Run:
    """Change what people say about a run; what it did never changes. None leaves a field as it is."""
    require_editor(user=user, run=run)
    with transaction.atomic():
        run = Run.objects.select_for_update(of=("self",)).select_related("project", "user").get(pk=run.pk)
        if name is not None:
            if not name.strip():
                raise Invalid("A run's name is not empty.", name="empty")
            run.name = storable.text(name.strip(), 250)
        if notes is not None:
            run.notes = storable.text(notes)
        if group is not None:
            run.group = storable.text(group, 250)
        if archived is not None:
            run.archived_at = (run.archived_at or timezone.now()) if archived else None
        if tags is not None:
            run.tags = documents.clean_tags(tags)
            values.tags_changed(run)
        run.save(update_fields=["name", "notes", "group", "archived_at", "tags"])
    return run


def request_stop(*, user: User, run: Run) -> Run:
    """Ask the sender to stop the trainer. Harmless for a run that is over, and twice."""
    require_editor(user=user, run=run)
    if not RunState(run.state).is_terminal and run.stop_requested_at is None:
        Run.objects.filter(pk=run.pk, stop_requested_at=None).update(stop_requested_at=timezone.now())
        run.refresh_from_db(fields=["stop_requested_at"])
    return run


def delete(*, user: User, run: Run) -> None:
    """To the trash: out of every list at once, gone for good after ENCORE_TRASH_DAYS. Late batches are told 410."""
    require_editor(user=user, run=run)
    to_trash(run)


def to_trash(run: Run) -> None:
    """``delete`` without asking who: retention's rules were set by somebody who may."""
    now = timezone.now()
    Run.objects.filter(pk=run.pk, deleted_at=None).update(deleted_at=now)
    lineage.deleted(run)
    # A job that still plays it again or writes it has nothing left to do.
    over = Q(reproduction__rerun_id=run.pk) | Q(reproduction__original_id=run.pk)
    open_jobs = Job.objects.filter(over, state__in=[JobState.QUEUED.value, JobState.RUNNING.value], cancel_requested_at=None)
    Job.objects.filter(id__in=list(open_jobs.values_list("id", flat=True))).update(cancel_requested_at=now)


def purge_trash() -> int:
    """Runs whose time in the trash is over lose everything but their id, which stays as a tombstone. Returns how many."""
    limit = timezone.now() - timedelta(days=settings.ENCORE_TRASH_DAYS)
    purged = 0
    for run in Run.objects.filter(deleted_at__lt=limit, purged_at=None).only("id")[:100]:
        purged += _purge(run.id)
    return purged


def _purge(run_id: str) -> int:
    with transaction.atomic():
        run = Run.objects.select_for_update().filter(id=run_id, purged_at=None).first()
        if run is None:
            return 0
        # The store's own trash removes the objects, after its delay: a reader may be in the middle of one.
        compaction.discard_blocks(run.id)
        MetricSegment.objects.filter(run_id=run.id).delete()
        run.metrickeyset_set.all().delete()
        run.metric_summaries.all().delete()
        run.values.all().delete()
        run.wide_keys.all().delete()
        run.stale_summaries.all().delete()
        run.key_definitions.all().delete()
        run.logchunk_set.all().delete()
        run.events.all().delete()
        run.media.all().delete()
        run.writers.all().delete()
        run.attempts.all().delete()
        run.config, run.summary, run.error, run.tags, run.notes, run.name = {}, {}, None, [], "", ""
        run.fork_run, run.fork_step = "", None
        run.purged_at = timezone.now()
        run.save()
    return 1


def recipe_of(run: Run, attempt: int | None = None) -> tuple[Attempt | None, dict]:
    """The recipe of attempt ``attempt``, else of the latest that has one. ``(None, {})`` when nothing was captured."""
    attempts = list(run.attempts.order_by("-number"))
    if attempt is not None:
        attempts = [found for found in attempts if found.number == attempt]
        if not attempts:
            raise NotFound(f"This run has no attempt {attempt}.")
    chosen = next((found for found in attempts if found.recipe.get("command")), attempts[0] if attempts else None)
    return chosen, (chosen.recipe if chosen else {})
