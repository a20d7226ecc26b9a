"""The database, which every process uses, and its settings; `webapp/web_extensions.py` has the
extensions for pages and API.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from sqlite3 import SQLITE_BUSY, SQLITE_CONSTRAINT_FOREIGNKEY, SQLITE_FULL, SQLITE_LOCKED
from sqlite3 import Connection as SQLiteConnection
from sqlite3 import Error as SQLiteError
from typing import Any, TypeVar

from flask import Flask, has_request_context
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Connection, DateTime, Dialect, Engine, MetaData, event
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeDecorator
from werkzeug.local import LocalProxy

Result = TypeVar("Result")


class Base(DeclarativeBase):
    """Base class of all tables; with named constraints, migrations can drop them on both
    databases.
    """

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


# Rows stay readable after a commit, because views commit before they store files.
db = SQLAlchemy(model_class=Base, session_options={"expire_on_commit": False})

LARGEST_INTEGER = 2**31 - 1
"""The largest number that an integer column holds."""
BUSY_MS = 15_000
"""How long a statement waits for SQLite's write lock."""
REQUEST_BUSY_MS = 5_000
"""The same if somebody is waiting for a response, which occupies a thread."""
DEADLOCK_STATE = "40P01"
BUSY_STATES = ("40001", DEADLOCK_STATE, "55P03")
"""SQLSTATEs of PostgreSQL: serialization failure, deadlock, lock not available."""
DISK_FULL_STATE = "53100"
FOREIGN_KEY_STATE = "23503"

reads_only: ContextVar[bool] = ContextVar("reads_only", default=False)
"""True during requests that must not write; SQLite then begins transactions without the write lock.
"""


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time: aware UTC in Python, naive UTC in the database."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC).replace(tzinfo=None) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value else None


class database_now(GenericFunction[datetime]):  # noqa: N801 - named like the SQL function it is
    """The database's clock in UTC, which leases use instead of a worker's; `database_now(20)` is 20
    seconds ahead.
    """

    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, ahead_s: float = 0) -> None:
        super().__init__(ahead_s)


@compiles(database_now, "postgresql")
def _postgresql_now(element: database_now, compiler: SQLCompiler, **kwargs: Any) -> str:
    return (
        "(timezone('utc', clock_timestamp()) + make_interval(secs =>"
        f" {compiler.process(element.clauses, **kwargs)}))"
    )


@compiles(database_now, "sqlite")
def _sqlite_now(element: database_now, compiler: SQLCompiler, **kwargs: Any) -> str:
    # %f has milliseconds; three more digits give the format that SQLAlchemy stores, so that
    # comparisons are exact.
    return (
        f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {compiler.process(element.clauses, **kwargs)} ||"
        " ' seconds')"
    )


def utc_now() -> datetime:
    """Return this machine's time, for display; leases use `database_now`."""
    return datetime.now(UTC)


@contextmanager
def noting() -> Iterator[None]:
    """Commit what is written within this context, also in a request that otherwise only reads.

    Commits the current transaction first. If the database is too busy, the write is dropped rather
    than the response.
    """
    # On SQLite, a transaction that began by reading cannot write after another process has written.
    db.session.commit()
    was_reading = reads_only.get()
    reads_only.set(False)
    try:
        yield
        db.session.commit()
    except OperationalError:
        db.session.rollback()
    finally:
        reads_only.set(was_reading)


@event.listens_for(Engine, "connect")
def _prepare_sqlite(connection: Any, _record: Any) -> None:
    if isinstance(connection, SQLiteConnection):
        # The driver must not begin transactions itself; `_begin_sqlite` does.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        # Overwrite deleted data with zeros.
        connection.execute("PRAGMA secure_delete = ON")


@event.listens_for(Engine, "begin")
def _begin_sqlite(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        # Not in a statement of the transaction, which itself would wait for this long.
        busy_ms = REQUEST_BUSY_MS if has_request_context() else BUSY_MS
        connection.connection.execute(f"PRAGMA busy_timeout = {busy_ms}")
        # A transaction that reads first and writes later fails immediately if another process wrote
        # in between.
        connection.exec_driver_sql("BEGIN" if reads_only.get() else "BEGIN IMMEDIATE")


def is_busy(error: OperationalError) -> bool:
    """Return whether the database was locked for too long, so that a retry may succeed."""
    if isinstance(error.orig, SQLiteError):
        return _code_of(error.orig) in (SQLITE_BUSY, SQLITE_LOCKED)
    return getattr(error.orig, "sqlstate", None) in BUSY_STATES


def is_full(error: OperationalError) -> bool:
    """True if the database could not write because its disk is full."""
    if isinstance(error.orig, SQLiteError):
        return _code_of(error.orig) == SQLITE_FULL
    return getattr(error.orig, "sqlstate", None) == DISK_FULL_STATE


def refers_to_deleted(error: IntegrityError) -> bool:
    """Return whether a row was not written because it refers to a row that no longer exists: that
    one was deleted after it had been read.
    """
    if isinstance(error.orig, SQLiteError):
        return getattr(error.orig, "sqlite_errorcode", 0) == SQLITE_CONSTRAINT_FOREIGNKEY
    return getattr(error.orig, "sqlstate", None) == FOREIGN_KEY_STATE


def _code_of(error: SQLiteError) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # The other bits give more details.


def retry_deadlocks(transaction: Callable[[], Result]) -> Result:
    """Return the result of `transaction`, which ends with a commit, with up to three tries: workers
    lock rows in a different order, and PostgreSQL aborts one of two transactions that wait for each
    other.

    Raises:
        OperationalError: it was aborted three times, or something else is wrong.
    """
    for _ in range(2):
        try:
            return transaction()
        except OperationalError as error:
            db.session.rollback()
            if getattr(error.orig, "sqlstate", None) != DEADLOCK_STATE:
                raise
    return transaction()


def forget_deleted(waits_s: tuple[float, ...] = (0.1, 0.3, 0.6)) -> bool:
    """Truncate SQLite's write-ahead log, which contains copies of deleted data; return whether it
    is empty. PostgreSQL overwrites deleted data when it vacuums.

    The log cannot be truncated while there are readers, so this retries after each of `waits_s`,
    and every sweep tries again. Writers are not blocked meanwhile.
    """
    if db.engine.dialect.name != "sqlite":
        return True
    for wait_s in waits_s:
        if _emptied_log():
            return True
        time.sleep(wait_s)
    return _emptied_log()


def _emptied_log() -> bool:
    connection = db.engine.raw_connection()
    try:
        cursor = connection.cursor()
        # With a timeout, it would hold the write lock while it waits for readers.
        cursor.execute("PRAGMA busy_timeout = 0")
        try:
            # Moves most pages without the write lock, which the next statement needs for the rest.
            cursor.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            ((busy, *_),) = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            cursor.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        return not busy
    finally:
        connection.close()


def init_database(app: Flask) -> None:
    """Connect `app` with its database, and load migrations only when they are first needed: Alembic
    would take a tenth of the startup time of each process.
    """

    def load_migrations() -> Any:
        # Imported here because of the time that Alembic takes.
        from flask_migrate import Migrate

        # Replaces the proxy below.
        Migrate(app, db, directory=str(app.config["MIGRATIONS_DIR"]), render_as_batch=True)
        return app.extensions["migrate"]

    db.init_app(app)
    app.extensions["migrate"] = LocalProxy(load_migrations)
