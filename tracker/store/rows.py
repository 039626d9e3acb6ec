"""SQL of the metric store's hot path, alike on SQLite and PostgreSQL. Past the ORM, which takes longer than the statements."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from django.db import connection, transaction

IS_POSTGRES = "postgresql"


@functools.cache
def on_postgres() -> bool:
    """Looked up once: Django finds the thread's connection anew at each use."""
    return connection.vendor == IS_POSTGRES


@contextlib.contextmanager
def cursor() -> Iterator:
    """A cursor with ``%s`` parameters whose bytes travel as bytes, both ways; errors are Django's. Inside a transaction it belongs to it.

    Ask for numbers, text, bytes and booleans by it alone: times and JSON would come as each database has them.
    """
    connection.ensure_connection()
    if not on_postgres():
        with connection.wrap_database_errors, contextlib.closing(connection.connection.cursor(_sqlite_cursor())) as found:
            yield found
        return
    import psycopg

    # Django's own binds on the client, where a body becomes twice as many hex digits.
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as found:
        found.format = psycopg.pq.Format.BINARY
        yield found


@functools.cache
def _sqlite_cursor() -> type:
    from django.db.backends.sqlite3.base import Database

    class Cursor(Database.Cursor):
        """``%s`` becomes ``?`` once for each statement, not at each use."""

        def execute(self, sql: str, args=()):
            return super().execute(_question_marks(sql), args)

    return Cursor


@functools.lru_cache(500)
def _question_marks(sql: str) -> str:
    return sql.replace("%s", "?")


@contextlib.contextmanager
def snapshot() -> Iterator:
    """A cursor under which the database stands still and nobody is kept waiting.

    Inside a transaction of the caller's it is that one (on PostgreSQL that is weaker; only tests do it).
    """
    with cursor() as found:
        if connection.in_atomic_block:
            yield found
            return
        # Raw: Django's atomic() would take SQLite's write lock (transaction_mode IMMEDIATE).
        found.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" if on_postgres() else "BEGIN DEFERRED")
        try:
            yield found
        finally:
            found.execute("ROLLBACK")


@contextlib.contextmanager
def lock_run_summaries(run_id: str) -> Iterator[None]:
    """A transaction in which no other one keeps up the summaries of this run. SQLite has one writer anyway."""
    with transaction.atomic():
        if on_postgres():
            with connection.cursor() as found:
                found.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 1))", [run_id])
        yield
