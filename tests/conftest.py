"""What all tests share: an application on an empty database, people, and logged-in browsers."""

from __future__ import annotations

import gc
import os
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
import requests
from argon2 import PasswordHasher
from flask import Flask
from flask.testing import FlaskClient
from jinja2 import Undefined
from moto.server import ThreadedMotoServer
from psycopg import sql
from sqlalchemy import make_url
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from webapp import create_app
from webapp.extensions import db
from webapp.models import Role, User

SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
# A superuser: the tests empty the tables and the statistics of a database that they share.
POSTGRES = os.environ.get("TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432")
REDIS = os.environ.get("TEST_REDIS", "redis://127.0.0.1:6379")
PASSWORD = "a long enough password"
TOKEN_FORM = {"scopes": ["read", "submit"], "days": "90"}
"""What the form of a new API token has checked when it opens."""


def answers(url: str) -> bool:
    """True if something listens at the host and port of `url`."""
    host, _, port = url.rsplit("@", 1)[-1].split("://")[-1].split("/")[0].partition(":")
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, int(port))) == 0


def unreachable(what: str) -> None:
    """Skip the test for want of a service; CI installs them all, so there it is a failure."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must have {what}.")
    pytest.skip(f"{what} cannot be reached here.")


@contextmanager
def empty_postgres_database() -> Iterator[str]:
    """Make a PostgreSQL database, yield its URL, and drop it."""
    name = f"hemoscan_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(f"{POSTGRES}/postgres", autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        # Nobody misses it after a power cut.
        admin.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
        try:
            yield f"{POSTGRES}/{name}"
        finally:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """An empty PostgreSQL database, dropped afterwards."""
    if not answers(POSTGRES):
        unreachable("PostgreSQL")
    with empty_postgres_database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind that Hemoscan runs on."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    return str(request.getfixturevalue("postgres_url"))


@cache
def empty_sqlite_database() -> bytes:
    """Return the file of an SQLite database with all tables and no row: copied for each test, as
    making the tables takes longer.
    """
    with tempfile.TemporaryDirectory() as folder:
        app = app_on(f"sqlite:///{folder}/made.db", Path(folder), tables=True)
        with app.app_context():
            db.engine.dispose()  # The last connection moves the write-ahead log into the file.
        return (Path(folder) / "made.db").read_bytes()


@pytest.fixture(scope="session")
def postgres_with_tables() -> Iterator[str]:
    """A PostgreSQL database for one test after the other, dropped at last: making one takes longer
    than most tests.
    """
    if not answers(POSTGRES):
        unreachable("PostgreSQL")
    with empty_postgres_database() as url:
        yield url


def remove_all_rows(postgres_url: str) -> None:
    """Leave nothing in a PostgreSQL database but its tables, whatever the last test did; ids begin
    again at 1, and the planner knows of no rows.
    """
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
        pages: dict[str, int] = dict(
            connection.execute(
                "SELECT relname, pg_relation_size(oid) / 8192 FROM pg_class"
                " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
            ).fetchall()
        )
        if any(size > 100 for size in pages.values()):  # Their indexes would stay large.
            connection.execute(sql.SQL("TRUNCATE {}").format(_listed(pages)))
        elif used := [name for name, size in pages.items() if size]:
            # TRUNCATE makes a new file for each table and index, which takes 20 times as long.
            connection.execute("SET session_replication_role = replica")  # Without foreign keys.
            for name in used:
                connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(name)))
            connection.execute(sql.SQL("VACUUM {}").format(_listed(used)))
        for forget in (
            "SELECT setval(format('%I', sequencename)::regclass, start_value, false)"
            " FROM pg_sequences WHERE schemaname = 'public' AND last_value IS NOT NULL",
            "UPDATE pg_class SET reltuples = -1, relpages = 0"
            " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND reltuples <> -1",
            "DELETE FROM pg_statistic WHERE starelid IN (SELECT oid FROM pg_class WHERE"
            " relnamespace = 'public'::regnamespace)",
        ):
            connection.execute(forget)


def _listed(tables: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, tables))


@pytest.fixture
def s3_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a real S3 server in this process."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "anybody",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    # Its buckets outlive a server, in this process.
    requests.post(f"http://{host}:{port}/moto-api/reset", timeout=30)
    boto3.client("s3").create_bucket(Bucket="hemoscan")
    yield "s3://hemoscan/some/where"
    server.stop()


class Browser(FlaskClient):
    """A client that closes what it sent: Werkzeug spools a large form to a file, and leaves it
    open.
    """

    def open(self, *args: Any, **kwargs: Any) -> TestResponse:
        """Send a request; return the response."""
        response = super().open(*args, **kwargs)
        for answer in (*response.history, response):
            answer.request.input_stream.close()
        return response


class Misspelled(Undefined):
    """A name that a template prints or loops over although nobody passed it: an error in tests. It
    may still be asked for, as in `if pending`.
    """

    __str__ = __iter__ = __len__ = Undefined._fail_with_undefined_error


def app_on(database_url: str, home: Path, *, tables: bool = False, **config: object) -> Flask:
    """Return an application with all tables on that database and no broker.

    Where there is no file of an SQLite database yet, it is a copy of one with tables; `tables` has
    them made instead.
    """
    file = (
        make_url(database_url).database
        if database_url.startswith("sqlite") and not tables
        else None
    )
    if file and not Path(file).exists():
        Path(file).write_bytes(empty_sqlite_database())
    app = create_app(
        {
            "TESTING": True,
            "SECRET_KEY": "not a secret",
            "HEMOSCAN_HOME": home,
            "DATABASE_URL": database_url,
            "BROKER_URL": f"redis+socket://{home / 'nobody.sock'}",
            "STORAGE_URL": f"file://{home / 'files'}",
            "WTF_CSRF_ENABLED": False,
            "RATELIMIT_ENABLED": False,
            # most pictures of the tests are bars and cells; the test of the check switches it on
            "CHECK_HEAD_CT": "0",
            **config,
        }
    )
    app.test_client_class = Browser
    app.jinja_env.undefined = Misspelled
    with app.app_context():
        if not file:
            db.create_all()
        app.extensions["storage"].start()
    return app


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    """An application on SQLite, its context pushed by nobody."""
    app = app_on(f"sqlite:///{tmp_path / 'test.db'}", tmp_path)
    yield app
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def any_database_app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Flask]:
    """An application on SQLite, then one on PostgreSQL, without a row."""
    if request.param == "sqlite":
        app = app_on(f"sqlite:///{tmp_path / 'test.db'}", tmp_path)
    else:
        url = request.getfixturevalue("postgres_with_tables")
        remove_all_rows(url)
        app = app_on(url, tmp_path)
    yield app
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


@pytest.fixture(autouse=True, scope="session")
def quick_passwords() -> Iterator[None]:
    """Argon2 is slow on purpose, and many tests log somebody in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "webapp.models.accounts.hasher",
            PasswordHasher(time_cost=1, memory_cost=8, parallelism=1),
        )
        yield


@pytest.fixture(autouse=True, scope="session")
def compiled_routes() -> Iterator[None]:
    """Werkzeug compiles a function for each route of each application, which takes most of the time
    of making one; here one application takes those of the one before.
    """
    compiled: dict[tuple[object, ...], Callable[..., tuple[str, str]]] = {}
    compile_one = Rule._compile_builder

    def compile_once(rule: Rule, append_unknown: bool = True) -> Callable[..., tuple[str, str]]:
        key = (rule.rule, tuple(rule._trace), repr(rule.defaults), append_unknown)
        if key not in compiled:
            compiled[key] = compile_one(rule, append_unknown)
        return compiled[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rule, "_compile_builder", compile_once)
        yield


@pytest.fixture(autouse=True, scope="module")
def what_stays_is_not_collected() -> None:
    """Keras has all garbage collected after each fit: that takes seconds where many modules are
    loaded, so the collector no longer looks at what an earlier module of tests left alive.
    """
    gc.collect()
    gc.freeze()


def make_user(app: Flask, username: str, role: Role = Role.USER) -> str:
    """Create a person whose password is PASSWORD; return the id."""
    with app.app_context():
        user = User(
            username=username,
            password=PASSWORD,
            email=f"{username}@example.org",
            name=username.title(),
            role=role,
        )
        db.session.add(user)
        db.session.commit()
        return user.id


@pytest.fixture
def logged_in(app: Flask) -> Callable[..., FlaskClient]:
    """`logged_in("ann")` is a browser in which that person, made if need be, is logged in."""

    def log_in(username: str, role: Role = Role.USER) -> FlaskClient:
        make_user(app, username, role)
        client = app.test_client()
        answer = client.post("/login", data={"username": username, "password": PASSWORD})
        if answer.status_code != 302:
            raise RuntimeError(f"{username} could not log in: {answer.status_code}")
        return client

    return log_in
