"""The tracker's part of the command ``encore``: up, user, token, project. Django is loaded only when one of them runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path


def register(subparsers) -> None:
    """Adds the tracker's subcommands (entry point ``encore.commands``)."""
    from tracker import retention_cli, up

    parser = subparsers.add_parser("up", help="start Encore on this machine")
    up.add_arguments(parser)
    parser.set_defaults(run=up.run)

    user = subparsers.add_parser("user", help="people who may log in").add_subparsers(dest="verb", required=True)
    create = _verb(user, "create", "a user with a password", _user_create)
    create.add_argument("name")
    create.add_argument("--password", help="read from the standard input when it is '-'; without it the user logs in by link")
    create.add_argument("--email", default="")
    create.add_argument("--superuser", action="store_true", help="may see and do everything")
    invite = _verb(user, "invite", "a link that logs somebody in once, within a week", _user_invite)
    invite.add_argument("name")
    invite.add_argument("--email", default="")

    token = subparsers.add_parser("token", help="tokens for programs").add_subparsers(dest="verb", required=True)
    create = _verb(token, "create", "a token; its secret is shown once", _token_create)
    create.add_argument("--user", required=True)
    create.add_argument("--scope", action="append", choices=["api", "worker"], help="api (default): all that the user may; worker: do jobs")
    create.add_argument("--name", default="command line")
    create.add_argument("--days", type=float, help="expires after so many days; never without it")

    project = subparsers.add_parser("project", help="projects").add_subparsers(dest="verb", required=True)
    create = _verb(project, "create", "a project with its owner", _project_create)
    create.add_argument("slug")
    create.add_argument("--owner", help="a user's name; the first superuser without it")
    create.add_argument("--name", default="")
    retention_cli.add_retention(_verb, subparsers)
    retention_cli.add_gc(_verb, subparsers)


def _verb(subparsers, name: str, help: str, function) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=help)
    parser.add_argument("--home", help="where Encore's data lies (default: ENCORE_HOME, else ~/.encore)")
    parser.add_argument("--json", action="store_true", help="one line of JSON on the standard output")
    parser.set_defaults(run=lambda args: _run(function, args))
    return parser


def _run(function, args) -> int:
    _start_django(args.home)
    from tracker.domain.errors import EncoreError

    try:
        found, sentence = function(args)
    except EncoreError as error:
        print(error.message, file=sys.stderr)
        return 1
    print(json.dumps(found) if args.json else sentence)
    return 0


def _start_django(home: str | None) -> None:
    if home:
        os.environ["ENCORE_HOME"] = str(Path(home).expanduser().resolve())
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tracker.settings")
    try:
        import django
    except ImportError:
        sys.exit("encore: this command belongs to the server; install it with: pip install 'encore-tracker[server]'")
    from django.apps import apps

    if not apps.ready:  # a second time would bind the log to another standard error
        django.setup()
    from django.core.management import call_command
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor

    executor = MigrationExecutor(connection)
    if executor.migration_plan(executor.loader.graph.leaf_nodes()):
        call_command("migrate", verbosity=0, interactive=False)


def _password(given: str | None) -> str | None:
    return sys.stdin.readline().rstrip("\n") if given == "-" else given


def _user_create(args):
    from tracker.services import accounts

    user = accounts.create_user(username=args.name, password=_password(args.password), email=args.email, superuser=args.superuser)
    return {"user": user.username, "superuser": user.is_superuser}, f"User {user.username} is there."


def _user_invite(args):
    from django.conf import settings

    from tracker.services import accounts

    user, secret = accounts.invite(username=args.name, email=args.email)
    url = f"{settings.ENCORE_URL}/login/{secret}"
    days = accounts.INVITATION_DAYS
    return {"user": user.username, "login_url": url}, f"This link logs {user.username} in once, within {days} days:\n{url}"


def _token_create(args):
    from tracker.services import accounts

    expires = datetime.now(timezone.utc) + timedelta(days=args.days) if args.days else None
    token, secret = accounts.create_token(user=_user(args.user), name=args.name, scopes=args.scope or ["api"], expires_at=expires)
    found = {
        "token": secret,
        "id": token.id,
        "user": args.user,
        "scopes": token.scopes,
        "expires_at": expires.isoformat() if expires else None,
    }
    return found, f"{secret}\n(shown now and never again; it may: {', '.join(token.scopes)})"


def _project_create(args):
    from tracker.domain.errors import Invalid
    from tracker.models import User
    from tracker.services import projects

    owner = _user(args.owner) if args.owner else User.objects.filter(is_superuser=True).order_by("id").first()
    if owner is None:
        raise Invalid("There is no user yet: make one with 'encore user create NAME --superuser', or pass --owner.")
    project = projects.create(user=owner, slug=args.slug, name=args.name)
    return {"project": project.slug, "owner": owner.username}, f"Project {project.slug} is there, owned by {owner.username}."


def _user(name: str):
    from tracker.domain.errors import NotFound
    from tracker.models import User

    user = User.objects.filter(username=name).first()
    if user is None:
        raise NotFound(f"There is no user {name}: make one with 'encore user create {name}'.")
    return user
