"""A SQLite that does not corrupt WAL databases written by several connections: 3.51.3 or newer (fixed there)."""

import sys

FIXED_IN = (3, 51, 3)


def use_fixed_sqlite() -> None:
    """Put the ``pysqlite3`` wheel's SQLite in the place of the standard library's, where that one is too old.

    Must run before anything imports ``sqlite3``. Raises RuntimeError if no fixed version can be had.
    """
    import sqlite3

    if sqlite3.sqlite_version_info >= FIXED_IN:
        return
    try:
        import pysqlite3
    except ImportError:
        raise RuntimeError(
            f"SQLite {sqlite3.sqlite_version} can corrupt a database in WAL mode; 3.51.3 or newer is needed. "
            "Install the wheel pysqlite3 (pip install 'encore-tracker[server]'), or set DATABASE_URL to a PostgreSQL."
        ) from None
    if pysqlite3.sqlite_version_info < FIXED_IN:
        raise RuntimeError(f"pysqlite3 carries SQLite {pysqlite3.sqlite_version}; 3.51.3 or newer is needed: pip install -U pysqlite3")
    sys.modules["sqlite3"] = pysqlite3
    sys.modules["sqlite3.dbapi2"] = pysqlite3.dbapi2
