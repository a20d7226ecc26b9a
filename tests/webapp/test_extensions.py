from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import text

from webapp.extensions import db


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
