"""How text is matched alike on SQLite and PostgreSQL, and how long a question may take.

Letters' case is ignored for ASCII alone, on both: SQLite knows no other, and PostgreSQL's columns are collated by code point.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator

from django.db import OperationalError, connection, transaction
from django.db.backends.signals import connection_created
from django.db.models import CharField, Lookup, TextField
from django.dispatch import receiver

from tracker.domain.errors import FilterTooSlow
from tracker.domain.patterns import Pattern

SECONDS = 5.0
"""One question of the database. A filter that takes longer is refused with advice; a page is to take 0.1 s."""
STEPS = 20_000
"""Of SQLite's machine between two looks at the clock: a fraction of a millisecond."""


class _Matching(Lookup):
    """The right side is a Pattern; ``sqlite`` and ``postgres`` make an operator and a parameter of it."""

    prepare_rhs = False

    def get_db_prep_lookup(self, value, connection):
        return "%s", [value]

    def as_sql(self, compiler, connection):
        left, params = self.process_lhs(compiler, connection)
        make = self.postgres if connection.vendor == "postgresql" else self.sqlite
        template, right = make(self.rhs)
        return template.format(left), [*params, right]

    def sqlite(self, found: Pattern) -> tuple[str, str]:
        raise NotImplementedError

    def postgres(self, found: Pattern) -> tuple[str, str]:
        raise NotImplementedError


class Regex(_Matching):
    lookup_name = "matching"

    def sqlite(self, found):
        return "encore_matching({0}, %s)", found.re2

    def postgres(self, found):
        return "{0} ~ %s", found.postgres


class Like(_Matching):
    """GLOB, since SQLite's LIKE knows no case."""

    lookup_name = "like"

    def sqlite(self, found):
        return "{0} GLOB %s", _glob(found.postgres)

    def postgres(self, found):
        return "{0} LIKE %s", found.postgres


class LikeAnyCase(_Matching):
    lookup_name = "ilike"

    def sqlite(self, found):
        return "{0} LIKE %s ESCAPE '\\'", found.postgres

    def postgres(self, found):
        return "{0} ILIKE %s", found.postgres


for _field in (CharField, TextField):
    for _lookup in (Regex, Like, LikeAnyCase):
        _field.register_lookup(_lookup)


def containing(word: str) -> Pattern:
    """For LikeAnyCase: ``word`` anywhere."""
    quoted = word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return Pattern("", f"%{quoted}%")


def _glob(like: str) -> str:
    out, escaped = [], False
    for character in like:
        if not escaped and character == "\\":
            escaped = True
            continue
        wild = None if escaped else {"%": "*", "_": "?"}.get(character)
        out.append(wild or (f"[{character}]" if character in "*?[" else character))
        escaped = False
    return "".join(out)


@functools.cache
def has_regex() -> bool:
    """Whether this database can match regular expressions: SQLite needs RE2, which takes linear time whatever the expression."""
    if connection.vendor == "postgresql":
        return True
    try:
        import re2  # noqa: F401
    except ImportError:
        return False
    return True


@functools.lru_cache(maxsize=64)
def _compiled(pattern: str):
    import re2

    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)


def _matching(text: str | None, pattern: str) -> bool | None:
    return None if text is None else _compiled(pattern).search(text) is not None


@receiver(connection_created)
def _teach(connection, **_) -> None:
    if connection.vendor == "sqlite" and has_regex():
        connection.connection.create_function("encore_matching", 2, _matching, deterministic=True)


if connection.connection is not None:  # opened before this was loaded
    _teach(connection)


@contextlib.contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    """Questions inside are given up after ``seconds``. Raises FilterTooSlow then."""
    connection.ensure_connection()
    with (_bounded_postgres if connection.vendor == "postgresql" else _bounded_sqlite)(seconds):
        yield


@contextlib.contextmanager
def _bounded_postgres(seconds: float) -> Iterator[None]:
    """Also: no compiling of queries that take milliseconds, and room to hash the runs that a comparison finds."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(
                "SELECT set_config('statement_timeout', %s, true), set_config('jit', 'off', true), set_config('work_mem', '64MB', true)",
                [str(int(seconds * 1000))],
            )
            yield
            if connection.in_atomic_block and connection.savepoint_ids:  # within a caller's transaction: it goes on as it was
                cursor.execute("SELECT set_config('statement_timeout', '0', true)")
    except OperationalError as error:
        if type(error.__cause__).__name__ == "QueryCanceled":
            raise FilterTooSlow() from None
        raise


@contextlib.contextmanager
def _bounded_sqlite(seconds: float) -> Iterator[None]:
    raw = connection.connection
    until = time.monotonic() + seconds
    raw.set_progress_handler(lambda: time.monotonic() > until, STEPS)
    try:
        yield
    except OperationalError as error:
        if "interrupted" in str(error):
            raise FilterTooSlow() from None
        raise
    finally:
        raw.set_progress_handler(None, 0)
