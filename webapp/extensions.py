"""The Flask extensions, unbound, and the database settings that hold for every process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from sqlite3 import SQLITE_BUSY, SQLITE_FULL, SQLITE_LOCKED
from sqlite3 import Connection as SQLiteConnection
from sqlite3 import Error as SQLiteError
from typing import Any

from flask import Flask, has_request_context, request
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_login import LoginManager
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import CSRFProtect
from sqlalchemy import Connection, DateTime, Dialect, Engine, MetaData, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeDecorator


class Base(DeclarativeBase):
    """Every table; constraints are named so that migrations can drop them on both databases."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


# Rows stay readable after a commit: a view commits early, to hold no lock while it stores a file.
db = SQLAlchemy(model_class=Base, session_options={"expire_on_commit": False})
migrate = Migrate(render_as_batch=True)
login_manager = LoginManager()
csrf = CSRFProtect()
limiter = Limiter(get_remote_address)

BUSY_MS = 15_000
"""How long a statement waits for SQLite's write lock."""
REQUEST_BUSY_MS = 5_000
"""The same where somebody waits for an answer, and a thread with them."""
BUSY_STATES = ("40001", "40P01", "55P03")
"""PostgreSQL's: a transaction ended for another's sake, a deadlock, a lock that is held."""
DISK_FULL_STATE = "53100"

reads_only: ContextVar[bool] = ContextVar("reads_only", default=False)
"""True while a request that may not write is answered; SQLite then opens its transactions without
the write lock.
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
    """The database's clock in UTC, `database_now(20)` is 20 seconds ahead: leases never trust a
    worker's clock.
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
    # %f has milliseconds; three more digits make it the text that SQLAlchemy stores, so that
    # comparisons are exact.
    return (
        f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {compiler.process(element.clauses, **kwargs)} ||"
        " ' seconds')"
    )


def utc_now() -> datetime:
    """Return this machine's time, for what people read; leases use `database_now`."""
    return datetime.now(UTC)


@contextmanager
def noting() -> Iterator[None]:
    """Commit what is written inside, in a request that otherwise reads too.

    What was open before is committed. The answer does not hang on a note: a database that is too
    busy for it loses it.
    """
    # On SQLite a transaction that has read may not write once another process has written.
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
        # The driver must not open transactions of its own: `_begin_sqlite` does.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        # What a person deletes is overwritten, not only unlinked.
        connection.execute("PRAGMA secure_delete = ON")


@event.listens_for(Engine, "begin")
def _begin_sqlite(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        # Not by a statement of the transaction, which waits for this long itself.
        patience_ms = REQUEST_BUSY_MS if has_request_context() else BUSY_MS
        connection.connection.execute(f"PRAGMA busy_timeout = {patience_ms}")
        # A transaction that reads first and writes later fails at once if another process wrote in
        # between.
        connection.exec_driver_sql("BEGIN" if reads_only.get() else "BEGIN IMMEDIATE")


def is_busy(error: OperationalError) -> bool:
    """True where others held the database for too long; the same is worth another try."""
    if isinstance(error.orig, SQLiteError):
        return _code_of(error.orig) in (SQLITE_BUSY, SQLITE_LOCKED)
    return getattr(error.orig, "sqlstate", None) in BUSY_STATES


def is_full(error: OperationalError) -> bool:
    """True where the database could not write because its disk is full."""
    if isinstance(error.orig, SQLiteError):
        return _code_of(error.orig) == SQLITE_FULL
    return getattr(error.orig, "sqlstate", None) == DISK_FULL_STATE


def _code_of(error: SQLiteError) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # The rest says more of the same.


def forget_deleted(waits_s: tuple[float, ...] = (0.1, 0.3, 0.6)) -> bool:
    """Empty SQLite's write-ahead log, which holds copies of what was deleted; PostgreSQL overwrites
    by its own vacuum.

    While somebody reads it cannot be emptied: it is tried again after each of `waits_s`, and by
    every sweep. Nobody who writes is kept waiting meanwhile. True if it is empty.
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
        # With patience it would hold the write lock while it waits for those who read.
        cursor.execute("PRAGMA busy_timeout = 0")
        try:
            # Most is moved without the write lock, which is taken for what is left.
            cursor.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            ((busy, *_),) = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            cursor.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        return not busy
    finally:
        connection.close()


def init_extensions(app: Flask) -> None:
    """Bind all extensions to `app`."""
    db.init_app(app)
    migrate.init_app(app, db, directory=str(app.config["MIGRATIONS_DIR"]))
    login_manager.init_app(app)
    csrf.init_app(app)
    limiter.init_app(app)

    @app.before_request
    def mark_reading_requests() -> None:
        reads_only.set(request.method in ("GET", "HEAD", "OPTIONS"))

    @app.teardown_request
    def unmark(_error: BaseException | None) -> None:
        reads_only.set(False)  # What runs in this thread after the request may write.
