"""Retention: rules, what they would do, and doing it. Nothing goes without a rule that somebody set.

Left alone by every rule: runs that are not over, and runs with the tag ``keep``. By every rule but ``cold``, which takes nothing away:
runs that a reproduction has to do with (their verdict stands on their points), and runs that others were forked from.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.db.models.functions import Coalesce
from django.utils import timezone

from tracker.domain import retention as rules_
from tracker.domain.errors import Forbidden, Invalid
from tracker.domain.lifecycle import RunState
from tracker.domain.retention import Rule
from tracker.models import Project, Reproduction, RetentionDone, RetentionRule, Run, RunValue, User
from tracker.models.project import Role
from tracker.services import cold, dropping, filters, freeing, projects, runs, sweeping

log = structlog.get_logger()


# -- rules -----------------------------------------------------------------------------------------------------------------------------


def rules(project: Project | None) -> list[Rule]:
    """The rules of this project alone; None: the instance's."""
    return [_rule(row) for row in RetentionRule.objects.filter(project=project).order_by("id")]


def in_force(project: Project) -> tuple[list[Rule], bool]:
    """(rules, whether they are the instance's): a project's own take their place."""
    own = rules(project)
    return (own, False) if own else (rules(None), True)


def _rule(row: RetentionRule) -> Rule:
    return Rule(row.action, row.after_days, tuple(row.keys), row.filter, row.archived, row.id)


def replace(*, user: User | None, project: Project | None, told: Any) -> list[Rule]:
    """Set all rules of a project (its owner may) or of the instance (a superuser may). ``user`` None: the server's own command line."""
    if user is not None:
        _require(user, project)
    if not isinstance(told, list) or len(told) > rules_.MOST_RULES:
        raise Invalid(f"rules is a list of at most {rules_.MOST_RULES} rules.", rules="malformed")
    checked = [_checked(each) for each in told]
    with transaction.atomic():
        RetentionRule.objects.filter(project=project).delete()
        for rule in checked:
            _create(user, project, rule)
    return rules(project)


def add(*, project: Project | None, told: dict[str, Any]) -> Rule:
    """From the server's command line: one rule more."""
    rule = _checked(told)
    if RetentionRule.objects.filter(project=project).count() >= rules_.MOST_RULES:
        raise Invalid(f"There are {rules_.MOST_RULES} rules already: remove one first.")
    return _rule(_create(None, project, rule))


def _checked(told: Any) -> Rule:
    rule = rules_.rule_of(told)
    if rule.action == rules_.COLD:
        cold.require()
    return rule


def _create(user: User | None, project: Project | None, rule: Rule) -> RetentionRule:
    return RetentionRule.objects.create(
        project=project, created_by=user, **{name: value for name, value in rule.told().items() if name != "id"}
    )


def remove(rule_id: int) -> bool:
    return bool(RetentionRule.objects.filter(id=rule_id).delete()[0])


def _require(user: User, project: Project | None) -> None:
    if project is not None:
        projects.require_role(user=user, project=project, role=Role.OWNER)
    elif not user.is_superuser:
        raise Forbidden("The instance's rules are a superuser's.")


# -- what they mean --------------------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What one rule does, or would do, in one project."""

    project: str
    rule: Rule
    runs: int = 0
    points: int = 0
    bytes: int = 0
    freed_at: datetime | None = None
    """When the last of these bytes are free again: the trash has its delays."""
    failed: int = 0
    """Runs at which it failed; the server's log says why."""
    complete: bool = True
    """False: the time was over before the last run."""

    def told(self) -> dict[str, Any]:
        when = self.freed_at.isoformat() if self.freed_at else None
        return {**vars(self), "rule": {**self.rule.told(), "sentence": self.rule.sentence()}, "freed_at": when}


def due(rule: Rule, project: Project, now: datetime | None = None) -> QuerySet[Run]:
    """The runs that this rule has something to do with and that it may touch."""
    before = (now or timezone.now()) - timedelta(days=rule.after_days)
    found = Run.objects.filter(project=project, deleted_at=None, state__in=[s.value for s in RunState if s.is_terminal])
    found = found.annotate(over_at=Coalesce("finished_at", "heartbeat_at", "created_at")).filter(over_at__lt=before)
    if rule.archived is not None:
        found = found.filter(archived_at__isnull=not rule.archived)
    if rule.filter.strip():
        found = found.filter(filters.bound(rule.filter, projects=[project.id]))
    pinned = RunValue.objects.filter(run=OuterRef("pk"), kind=RunValue.Kind.TAG, path=rules_.PIN)
    found = found.filter(~Exists(pinned))
    if rule.action != rules_.COLD:
        judged = Reproduction.objects.filter(Q(original=OuterRef("pk")) | Q(rerun=OuterRef("pk")))
        forks = Run.objects.filter(fork_run=OuterRef("pk"), deleted_at=None)
        found = found.filter(~Exists(judged), ~Exists(forks))
    if rule.action != rules_.TRASH:
        # A run that was resumed since then is looked at anew, once it is over again.
        done = RetentionDone.objects.filter(run=OuterRef("pk"), action=rule.action, detail=rule.detail, at__gte=OuterRef("over_at"))
        found = found.filter(~Exists(done))
    return found.order_by("over_at", "id")


def apply(
    *, project: Project | None = None, dry_run: bool = False, seconds: float | None = None, now: datetime | None = None
) -> list[Outcome]:
    """Every rule of every project (or of one), the oldest runs first, for at most ``seconds``. With ``dry_run`` nothing is changed.

    Safe to run twice at once. A run counts once for each rule.
    """
    until = None if seconds is None else time.monotonic() + seconds
    outcomes = []
    for each in [project] if project is not None else Project.objects.order_by("slug"):
        for rule in in_force(each)[0]:
            if rule.action == rules_.KEEP:
                continue
            outcome = Outcome(each.slug, rule)
            for run in _some(due(rule, each, now)):
                if until is not None and time.monotonic() > until:
                    outcome.complete = False
                    break
                try:
                    _act(rule, run, outcome, dry_run)
                except Exception:  # a damaged block, a store that is away: the others do not wait for it, and it is tried again
                    outcome.failed += 1
                    log.exception("retention failed", run=run.id, rule=rule.sentence())
            if outcome.runs:
                outcome.freed_at = _freed_at(rule, dry_run)
                if not dry_run:
                    log.info("retention", **{k: v for k, v in outcome.told().items() if k != "rule"}, rule=rule.sentence())
            outcomes.append(outcome)
    return outcomes


def _some(found: QuerySet[Run]) -> Iterator[Run]:
    """By id first: what is done to one run must not disturb the reading of the list."""
    ids = list(found.values_list("id", flat=True))
    for start in range(0, len(ids), 500):
        by_id = Run.objects.select_related("project").in_bulk(ids[start : start + 500])
        yield from (by_id[run] for run in ids[start : start + 500] if run in by_id)


def _act(rule: Rule, run: Run, outcome: Outcome, dry_run: bool) -> None:
    if rule.action == rules_.TRASH:
        size = freeing.size_of(run.id)
        freed = dropping.Dropped(size.points, size.bytes)
        if not dry_run:
            runs.to_trash(run)
    elif rule.action == rules_.POINTS:
        freed = dropping.points(run, rule.keys, dry_run=dry_run)
    elif rule.action == rules_.LOGS:
        freed = dropping.logs(run, dry_run=dry_run)
    else:
        freed = cold.move(run.id, dry_run=dry_run)
    if freed.points or freed.bytes or rule.action == rules_.TRASH:
        outcome.runs += 1
        outcome.points += freed.points
        outcome.bytes += freed.bytes
    if not dry_run:
        done, _ = RetentionDone.objects.get_or_create(run=run, action=rule.action, detail=rule.detail)
        account = {"points": F("points") + freed.points, "bytes": F("bytes") + freed.bytes}
        RetentionDone.objects.filter(id=done.id).update(**account, at=timezone.now())


def _freed_at(rule: Rule, dry_run: bool) -> datetime:
    later = timedelta(0) if rule.action == rules_.LOGS else sweeping.TRASH
    if rule.action == rules_.TRASH:
        later += timedelta(days=settings.ENCORE_TRASH_DAYS)
    return timezone.now() + later


def total(outcomes: Iterable[Outcome]) -> dict[str, int]:
    found = list(outcomes)
    return {name: sum(getattr(each, name) for each in found) for name in ("runs", "points", "bytes")}
