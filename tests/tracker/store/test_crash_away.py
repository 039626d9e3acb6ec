"""What is away for the moment is told apart from what is wrong: 503 with a time to wait, or a mistake of ours that must surface."""

from __future__ import annotations

import errno
import socket
import sqlite3
import threading

import psycopg
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, IncompleteReadError
from django.db import OperationalError, connection, transaction
from django.db.utils import load_backend

from tests.services import free_port
from tracker.api import errors
from tracker.store.away import database_is_away, store_is_away
from tracker.store.backends.s3 import S3


def caught(act) -> Exception:
    with pytest.raises(Exception) as told:  # noqa: PT011 - which one is the test's question
        act()
    return told.value


def a_connection(engine: str, **settings):
    defaults = {
        "ENGINE": engine, "NAME": "", "USER": "", "PASSWORD": "", "HOST": "", "PORT": "", "OPTIONS": {}, "TIME_ZONE": None,
        "CONN_MAX_AGE": 0, "CONN_HEALTH_CHECKS": False, "AUTOCOMMIT": True, "ATOMIC_REQUESTS": False, "TEST": {},
    }  # fmt: skip
    return load_backend(engine).DatabaseWrapper(defaults | settings)


@pytest.mark.django_db(transaction=True)
def test_a_locked_sqlite_is_away_and_a_wrong_statement_is_not(tmp_path):
    other = sqlite3.connect(tmp_path / "db", isolation_level=None)
    other.execute("CREATE TABLE t (a)")
    other.execute("BEGIN EXCLUSIVE")
    mine = a_connection("django.db.backends.sqlite3", NAME=str(tmp_path / "db"), OPTIONS={"timeout": 0})
    locked = caught(lambda: mine.cursor().execute("SELECT * FROM t"))
    assert isinstance(locked, OperationalError)
    assert database_is_away(locked)
    other.execute("ROLLBACK")
    wrong = caught(lambda: mine.cursor().execute("SELECT * FROM nowhere"))
    assert isinstance(wrong, OperationalError)  # SQLite calls both so
    assert not database_is_away(wrong)
    mine.close()
    other.close()


@pytest.mark.django_db(transaction=True)
def test_a_postgres_that_is_not_reached_or_ends_its_connection_is_away():
    mine = a_connection("django.db.backends.postgresql", NAME="postgres", HOST="127.0.0.1", PORT=str(free_port()))
    assert database_is_away(caught(mine.ensure_connection))


@pytest.mark.django_db(transaction=True)
def test_a_statement_cancelled_for_its_length_is_no_outage():
    """A search that takes too long must not be asked again as it is."""
    if connection.vendor != "postgresql":
        error = OperationalError("canceling statement due to statement timeout")
        error.__cause__ = psycopg.errors.QueryCanceled()
    else:

        def too_long() -> None:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SET LOCAL statement_timeout = 20")
                cursor.execute("SELECT pg_sleep(30)")

        error = caught(too_long)
    assert not database_is_away(error)


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:1"), True),
        (IncompleteReadError(actual_bytes=1, expected_bytes=2), True),
        (ClientError({"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}, "GetObject"), True),
        (ClientError({"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "GetObject"), False),
        (OSError(errno.ENOSPC, "full"), True),
        (OSError(errno.EIO, "broken"), True),
        (FileNotFoundError(errno.ENOENT, "not there"), False),
        (ValueError("a mistake"), False),
    ],
)
def test_a_store_that_fails_is_away_and_a_store_that_refuses_is_not(error: Exception, away: bool):
    assert store_is_away(error) is away
    named = errors.named(error)
    assert (named is not None and named.status == 503 and named.retry_after == 5) is away


def test_a_put_to_s3_waits_for_no_word_in_between():
    """Where the connection ended within "100 Continue", botocore would read its end for ever and compaction stand still."""
    heads = []
    with socket.create_server(("127.0.0.1", 0)) as door:

        def answer() -> None:
            client, _ = door.accept()
            with client:
                heads.append(client.recv(65536).partition(b"\r\n\r\n")[0].lower())
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        names = {"bucket": "b", "access_key": "a", "secret_key": "s", "endpoint": f"http://127.0.0.1:{door.getsockname()[1]}"}
        assert S3(names).put("blocks/a", b"whole") == 5
        thread.join()
    assert b"put /b/blocks/a" in heads[0]
    assert b"expect" not in heads[0]
