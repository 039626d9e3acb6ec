"""Prepares the data folder of the embedded mode: tables, static files, the owner's account, the tokens of this machine."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class Unusable(Exception):
    """The installation or the data folder cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Access:
    token: str
    login_url: str
    worker_token_file: Path


def prepare(home: Path, url: str, say: Callable[[str], None]) -> Access:
    """Bring the folder to this version and let its owner in. Raises Unusable."""
    _set_up_django()
    _migrate(say)
    collect_static(say)
    return enter(home, url)


def enter(home: Path, url: str) -> Access:
    """A fresh login link, the owner's API token (kept in ``credentials.json``, mode 600) and the worker's (mode 600 too)."""
    _set_up_django()
    from tracker.services import accounts

    owner = _owner()
    token = _keep_token(home / "credentials.json", url, owner, name="this machine", scopes=["api"])
    worker = _service_account("worker")
    worker_file = home / "worker" / "token"
    worker_file.parent.mkdir(mode=0o700, exist_ok=True)
    _keep_token(worker_file, None, worker, name="embedded worker", scopes=["worker"])
    return Access(token=token, login_url=accounts.login_link(owner), worker_token_file=worker_file)


def _set_up_django() -> None:
    import django

    try:
        django.setup()
    except RuntimeError as problem:  # the SQLite that is too old, from tracker/sqlite.py
        raise Unusable(str(problem)) from None


def _migrate(say: Callable[[str], None]) -> None:
    from django.core.management import call_command
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor
    from django.db.utils import DatabaseError

    try:
        executor = MigrationExecutor(connection)
        unknown = [key for key in executor.loader.applied_migrations if key[0] == "tracker" and key not in executor.loader.disk_migrations]
        if unknown:
            raise Unusable(f"the database was made by a newer Encore (it has {unknown[0][1]}). Update this one, or choose another --home.")
        if executor.migration_plan(executor.loader.graph.leaf_nodes()):
            say("Preparing the database …")
            call_command("migrate", interactive=False, verbosity=0)
    except DatabaseError as problem:
        raise Unusable(f"the database cannot be opened ({problem}). Is DATABASE_URL right, and the data folder whole?") from None


def collect_static(say: Callable[[str], None]) -> None:
    """Collected once for each state of the files (names, sizes, times), so a second start does not wait for it."""
    from django.conf import settings
    from django.contrib.staticfiles.finders import get_finders
    from django.core.management import call_command

    state = hashlib.sha256()
    for finder in get_finders():
        for path, storage in sorted(finder.list([]), key=lambda pair: pair[0]):
            status = os.stat(storage.path(path))
            state.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    root = Path(settings.STATIC_ROOT)
    mark = root / ".collected"
    with contextlib.suppress(OSError):
        if mark.read_text() == state.hexdigest():
            return
    say("Collecting the pages' files …")
    shutil.rmtree(root, ignore_errors=True)
    call_command("collectstatic", interactive=False, verbosity=0)
    mark.write_text(state.hexdigest())


def _owner():
    """The account of the system's user who started Encore here; made at the first start."""
    from tracker.models import User

    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in containers
        name = f"user-{os.getuid()}"
    name = re.sub(r"[^\w.@+-]", "-", name)[:150] or "owner"
    owner = User.objects.filter(is_superuser=True, is_active=True).order_by("id").first() or User.objects.filter(username=name).first()
    if owner is None:
        owner = User.objects.create_user(username=name, is_superuser=True, is_staff=True)
        owner.set_unusable_password()
        owner.save(update_fields=["password"])
    return owner


def _service_account(name: str):
    from tracker.models import User

    account, created = User.objects.get_or_create(username=name)
    if created:
        account.set_unusable_password()
        account.save(update_fields=["password"])
    return account


def _keep_token(path: Path, url: str | None, user, *, name: str, scopes: list[str]) -> str:
    """The token that the file holds if it still works, else a new one written there. ``url``: as ``credentials.json``, else bare."""
    from tracker.models.token import Token, digest
    from tracker.services import accounts

    secret = ""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        secret = json.loads(path.read_text())["token"] if url else path.read_text().strip()
    usable = Token.objects.filter(digest=digest(secret), user=user, revoked_at=None, expires_at=None) if secret else Token.objects.none()
    if not usable.exists():
        _, secret = accounts.create_token(user=user, name=name, scopes=scopes)
    _write_private(path, json.dumps({"url": url, "token": secret}) + "\n" if url else secret)
    return secret


def _write_private(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    aside.replace(path)
