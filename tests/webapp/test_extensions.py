from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import text

from tests.conftest import make_user
from webapp.deletion import delete_account
from webapp.extensions import BUSY_MS, REQUEST_BUSY_MS, db, forget_deleted


def test_what_runs_after_a_reading_request_takes_the_write_lock_at_its_first_statement(
    app: Flask, tmp_path: Path
) -> None:
    assert app.test_client().get("/login").status_code == 200
    with app.app_context(), sqlite3.connect(tmp_path / "test.db", timeout=0) as other:
        db.session.execute(text("SELECT 1"))
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
    other.close()


def test_a_reading_request_leaves_the_write_lock_to_others(app: Flask, tmp_path: Path) -> None:
    locked: list[bool] = []

    @app.get("/reading")
    def reading() -> str:
        db.session.execute(text("SELECT 1"))
        with sqlite3.connect(tmp_path / "test.db", timeout=0) as other:
            other.execute("BEGIN IMMEDIATE")
        other.close()
        locked.append(False)
        return "read"

    assert app.test_client().get("/reading").data == b"read"
    assert locked == [False]


@contextmanager
def somebody_reads(file: Path) -> Iterator[None]:
    """Hold a transaction open that reads."""
    with closing(sqlite3.connect(file, check_same_thread=False, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM user").fetchall()
        yield


def longest_wait_to_write(file: Path, meanwhile: Callable[[], object]) -> float:
    """Return the seconds for which somebody who writes was kept waiting at most."""
    waits: list[float] = []
    over = threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(file, timeout=30, isolation_level=None)) as writer:
            while not over.wait(0.02):
                began = time.monotonic()
                writer.execute("BEGIN IMMEDIATE")
                writer.execute("ROLLBACK")
                waits.append(time.monotonic() - began)

    writing = threading.Thread(target=write)
    writing.start()
    try:
        meanwhile()
    finally:
        over.set()
        writing.join()
    return max(waits)


def test_who_deletes_while_somebody_reads_keeps_nobody_from_writing(
    app: Flask, tmp_path: Path
) -> None:
    file, log = tmp_path / "test.db", tmp_path / "test.db-wal"
    make_user(app, "ann")
    with app.app_context():
        with somebody_reads(file):
            make_user(app, "bob")
            emptied: list[bool] = []
            waited = longest_wait_to_write(file, lambda: emptied.append(forget_deleted()))
            assert emptied == [False]
            assert waited < 1
        assert forget_deleted()
        assert log.stat().st_size == 0
        assert db.session.scalar(text("PRAGMA busy_timeout")) == BUSY_MS


def test_what_is_deleted_while_somebody_reads_is_overwritten_once_they_have_read(
    app: Flask, tmp_path: Path
) -> None:
    def on_disk() -> bytes:
        return b"".join(path.read_bytes() for path in tmp_path.glob("test.db*"))

    user_id = make_user(app, "sally-quux")
    with app.app_context():
        assert forget_deleted() and b"sally-quux" in on_disk()
        with somebody_reads(tmp_path / "test.db"):
            delete_account(user_id)
            assert b"sally-quux" in on_disk()
        assert forget_deleted(waits_s=())  # As every sweep does.
        assert b"sally-quux" not in on_disk()


def test_a_request_waits_less_for_the_write_lock_than_a_worker(app: Flask) -> None:
    with app.app_context():
        assert db.session.scalar(text("PRAGMA busy_timeout")) == BUSY_MS
        db.session.remove()
    with app.test_request_context():
        assert db.session.scalar(text("PRAGMA busy_timeout")) == REQUEST_BUSY_MS
        db.session.remove()
    with app.app_context():  # The connection is the same.
        assert db.session.scalar(text("PRAGMA busy_timeout")) == BUSY_MS
