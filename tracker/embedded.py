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


def prepare(home: Path, url: str, say: Callable[[str], None]) -> Access:
    """Bring the folder to this version and let its owner in. Raises Unusable."""
    _set_up_django()
    _migrate(say)
    collect_static(say)
    return enter(home, url)


def enter(home: Path, url: str) -> Access:
    """A fresh login link for the owner, and their API token, kept in ``credentials.json`` (mode 600) where the SDK finds it."""
    _set_up_django()
    from tracker.services import accounts

    owner = accounts.ensure_owner(_owner_name())
    token = _working_token(home / "credentials.json", owner)
    if token is None:
        _, token = accounts.create_token(user=owner, name="this machine", scopes=["api"])
    _write_private(home / "credentials.json", json.dumps({"url": url, "token": token}) + "\n")
    return Access(token=token, login_url=f"{url}/login/{accounts.login_link(owner)}")


def enrol_worker(home: Path) -> Path:
    """The file (mode 600) with this start's token for the embedded worker; tokens of earlier starts stop working."""
    from tracker.services import accounts

    path = home / "worker" / "token"
    _write_private(path, accounts.ensure_worker_token()[1])
    return path


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


def _owner_name() -> str:
    """The system's user who starts Encore here, as a user name."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in containers
        name = f"user-{os.getuid()}"
    return re.sub(r"[^\w.@+-]", "-", name)[:150] or "owner"


def _working_token(path: Path, owner) -> str | None:
    from tracker.domain.errors import EncoreError
    from tracker.services import accounts

    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, EncoreError):
        token = json.loads(path.read_text())["token"]
        if accounts.authenticate_token(token)[0] == owner:
            return token
    return None


def _write_private(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    aside.replace(path)
