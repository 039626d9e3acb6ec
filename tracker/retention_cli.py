"""The commands ``encore retention`` and ``encore gc``, on the server's machine. ``tracker/commands.py`` starts Django before they run."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any


def add_retention(verb, subparsers) -> None:
    """``verb`` makes a subcommand with the options that all have (tracker/commands.py)."""
    parser = verb(subparsers, "retention", "what may go after how long: list, add, remove, run", _quietly(_retention))
    parser.add_argument("verb", nargs="?", choices=("list", "add", "remove", "run"), default="list", help="list without one")
    parser.add_argument("what", nargs="?", help="add: keep, trash, points, logs or cold; remove: the rule's number")
    parser.add_argument("--project", help="of this project; without it the instance's rules, and with run all projects")
    parser.add_argument("--after", type=int, metavar="DAYS", help="add: days since the run's end")
    parser.add_argument("--keys", nargs="+", default=[], metavar="GLOB", help="add points: which metrics, for example 'system/*'")
    parser.add_argument("--filter", default="", help="add: which runs, in the filter language")
    parser.add_argument("--archived", action="store_true", help="add: archived runs only")
    parser.add_argument("--dry-run", action="store_true", help="say what would go now, and change nothing")


def add_gc(verb, subparsers) -> None:
    parser = verb(subparsers, "gc", "empty the trash of what is due, and say how many bytes that freed", _quietly(_gc))
    parser.add_argument("--dry-run", action="store_true", help="say what lies in the trash, and change nothing")


def _quietly(function: Callable[[argparse.Namespace], tuple[Any, str]]) -> Callable[[argparse.Namespace], tuple[Any, str]]:
    """The services' log lines go to the standard error: the standard output is the answer's."""

    def run(args: argparse.Namespace) -> tuple[Any, str]:
        with contextlib.redirect_stdout(sys.stderr):
            return function(args)

    return run


def _retention(args: argparse.Namespace) -> tuple[Any, str]:
    from tracker.domain.errors import Invalid, NotFound
    from tracker.models import Project
    from tracker.services import retention

    project = None
    if args.project:
        project = Project.objects.filter(slug=args.project).first()
        if project is None:
            raise NotFound(f"There is no project {args.project}.")
    if args.verb == "add":
        told = {"action": args.what, "keys": args.keys, "filter": args.filter, "archived": True if args.archived else None}
        rule = retention.add(project=project, told=told if args.after is None else {**told, "after_days": args.after})
        return {**rule.told(), "sentence": rule.sentence()}, f"{rule.id}: {rule.sentence()}. Try it: encore retention --dry-run"
    if args.verb == "remove":
        if not (args.what or "").isdigit() or not retention.remove(int(args.what)):
            raise Invalid(f"There is no rule {args.what}: encore retention lists them.")
        return {"removed": int(args.what)}, f"Rule {args.what} is gone."
    if args.verb == "run" or args.dry_run:
        return _applied(retention.apply(project=project, dry_run=args.dry_run), args.dry_run)
    return _listed(project)


def _listed(project) -> tuple[Any, str]:
    from tracker.models import Project
    from tracker.services import retention

    found, lines = [], []
    for each in [project] if project else [None, *Project.objects.filter(retention_rules__isnull=False).distinct()]:
        name = each.slug if each else None
        for rule in retention.rules(each):
            found.append({"project": name, **rule.told(), "sentence": rule.sentence()})
            lines.append(f"{rule.id}  {name or 'every project without rules of its own'}: {rule.sentence()}")
    return {"rules": found}, "\n".join(lines) or "There are no rules: nothing ever goes by itself."


def _applied(outcomes: list, dry_run: bool) -> tuple[Any, str]:
    from tracker.domain import retention as words
    from tracker.services import retention

    lines = []
    for each in outcomes:
        says = f"{each.project}, rule {each.rule.id} ({each.rule.sentence()}): "
        says += f"{many(each.runs, 'run')}, {many(each.points, 'point')}, {size(each.bytes)}"
        if each.runs and each.rule.action == words.COLD:
            says += ", to the cold store"
        elif each.runs:
            says += f", {'would be ' if dry_run else ''}freed at {moment(each.freed_at)} (by the server, or encore gc)"
        if each.failed:
            says += f"; it failed at {many(each.failed, 'run')}, the lines above say why"
        lines.append(says)
    lines = lines or ["There are no rules: nothing goes."]
    lines.append("Nothing was changed." if dry_run else "Done.")
    return {"dry_run": dry_run, "results": [each.told() for each in outcomes], **retention.total(outcomes)}, "\n".join(lines)


def _gc(args: argparse.Namespace) -> tuple[Any, str]:
    from tracker.services import freeing

    found: dict[str, Any] = {"dry_run": args.dry_run}
    lines = []
    if not args.dry_run:
        freed = freeing.empty_trash()
        found |= {**vars(freed), "bytes": freed.bytes}
        lines.append(
            f"Freed {size(freed.bytes)}: {size(freed.object_bytes)} in {many(freed.objects, 'object')} of the store, "
            f"{size(freed.row_bytes)} in the database; {many(freed.runs, 'run')} purged, {many(freed.orphans, 'orphan')} removed."
        )
    left = freeing.waiting()
    found["waiting"] = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in vars(left).items()}
    if left.runs:
        lines.append(f"In the trash: {many(left.runs, 'run')} with {size(left.run_bytes)}; the next goes at {moment(left.next_run_at)}.")
    if left.objects:
        lines.append(f"In the store's trash: {many(left.objects, 'object')}; the next goes at {moment(left.next_object_at)}.")
    return found, "\n".join(lines or ["The trash is empty."])


def size(count: int) -> str:
    """1234567 → 1.2 MB."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count} bytes"


def many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def moment(when: datetime | None) -> str:
    return when.strftime("%Y-%m-%d %H:%M UTC") if when else "never"
