"""The migrations lead to the tables of the models and back, on both databases."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import flask_migrate
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from flask import Flask
from sqlalchemy import delete, select, text
from sqlalchemy.exc import IntegrityError

from webapp import create_app
from webapp.extensions import db
from webapp.models import ApiToken, AuditEvent, Comparison, JobStatus, ModelVersion, Promotion, Scan
from webapp.models.totals import ON_POSTGRESQL, ON_SQLITE

OF_ELEVEN = Path(__file__).with_name("eleven_migrations.sql")
"""A database of the eleven migrations that the first one replaces, with rows in every table."""

SINCE = {
    "audit_anchor",
    "audit_check",
    "audit_link",
    "dataset_analysis",
    "dataset_image",
    "dataset_pair",
    "dataset_scan",
    "earlier_answer",
    "environment",
    "evaluation",
    "idempotent_request",
    "label_correction",
    "notification",
    "notification_choice",
    "opinion",
    "preview",
    "paper_experiment",
    "received_scan",
    "received_study",
    "recovery_code",
    "replay",
    "replaced_scan",
    "replay_sample",
    "report",
    "run_tag",
    "scan_totals",
    "result_delivery",
    "second_factor",
    "shadow",
    "shadow_answer",
    "share",
    "site_figures",
    "training_point",
}
"""Tables that later migrations made and left empty."""
COMPARISON = "comparison"
"""The table into which one moved a column of `model_version`."""


@contextmanager
def app_at(database_url: str, home: Path) -> Iterator[Flask]:
    """Push an application on that database, as it is."""
    app = create_app(
        {
            "SECRET_KEY": "x",
            "HEMOSCAN_HOME": home,
            "DATABASE_URL": database_url,
            "BROKER_URL": f"redis+socket://{home / 'none'}",
        }
    )
    with app.app_context():
        yield app
        db.engine.dispose()


@pytest.fixture
def empty_app(database_url: str, tmp_path: Path) -> Iterator[Flask]:
    """An application whose database has no tables."""
    with app_at(database_url, tmp_path) as app:
        yield app


@pytest.fixture
def app_of_eleven(tmp_path: Path) -> Iterator[Flask]:
    """An application on a database that the eleven migrations made."""
    with closing(sqlite3.connect(tmp_path / "test.db")) as connection:
        connection.executescript(OF_ELEVEN.read_text())
    with app_at(f"sqlite:///{tmp_path / 'test.db'}", tmp_path) as app:
        yield app


def schema() -> set[tuple[str, ...]]:
    """Return the statements that make what an SQLite database holds, without their line breaks."""
    with db.engine.connect() as connection:
        made = connection.execute(text("SELECT type, name, coalesce(sql, '') FROM sqlite_master"))
        return {tuple(map(as_words, row)) for row in made}


def as_words(statement: str) -> str:
    """Return a statement without its line breaks."""
    return " ".join(statement.split())


def columns_of() -> dict[str, str]:
    """Return the columns of each table, as a query names them."""
    inspector = db.inspect(db.engine)
    return {
        table: ", ".join(f'"{column["name"]}"' for column in inspector.get_columns(table))
        for table in inspector.get_table_names()
    }


def rows(columns: dict[str, str] | None = None) -> dict[str, list[tuple[Any, ...]]]:
    """Return what stands in each table, or in these columns of it."""
    with db.engine.connect() as connection:
        return {
            table: sorted(
                map(tuple, connection.execute(text(f'SELECT {names} FROM "{table}"'))), key=str
            )
            for table, names in (columns or columns_of()).items()
        }


def differences() -> list[object]:
    """Return what the database lacks or has too much, by the models."""
    with db.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            made = "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'scan'"
            of_models = [as_words(statement) for statement in ON_SQLITE]
        else:
            made = (
                "SELECT prosrc FROM pg_proc WHERE proname IN ('count_scans', 'refuse_to_move_scan')"
            )
            of_models = [
                as_words(statement.split("$$")[1])
                for statement in ON_POSTGRESQL
                if "CREATE FUNCTION" in statement
            ]
            triggers = (
                "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger"
                " WHERE tgname LIKE 'scan_totals_%' ORDER BY tgname"
            )
            migrated = connection.execute(text(triggers)).all()
            with connection.begin_nested() as replaced:
                for name, _ in migrated:
                    connection.execute(text(f"DROP TRIGGER {name} ON scan"))
                for statement in ON_POSTGRESQL:
                    if "CREATE TRIGGER" in statement:
                        connection.execute(text(statement))
                assert connection.execute(text(triggers)).all() == migrated
                replaced.rollback()
        assert sorted(map(as_words, connection.scalars(text(made)))) == sorted(of_models)
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        return list(compare_metadata(context, db.metadata))


def test_the_migrations_make_exactly_the_models_tables(empty_app: Flask) -> None:
    flask_migrate.upgrade()

    assert differences() == []


def test_the_migrations_go_down_to_nothing_and_up_again(empty_app: Flask) -> None:
    flask_migrate.upgrade()
    flask_migrate.downgrade(revision="base")
    assert db.inspect(db.engine).get_table_names() == ["alembic_version"]

    flask_migrate.upgrade()
    assert differences() == []


def test_a_database_of_the_eleven_migrations_goes_on_with_its_rows(app_of_eleven: Flask) -> None:
    before, columns = rows(), columns_of()
    assert all(before.values())
    assert before.keys() == {"alembic_version", *db.metadata.tables} - SINCE - {COMPARISON}
    columns["model_version"] = columns["model_version"].replace(', "comparisons"', "")
    before = rows(columns)
    with db.engine.begin() as connection:
        (id,) = connection.scalars(text("SELECT id FROM model_version"))
        moved = json.dumps([{"version_id": id, "card_id": "a card", "reason": "None."}])
        connection.execute(text("UPDATE model_version SET comparisons = :moved"), {"moved": moved})

    flask_migrate.upgrade()

    after = rows(columns)
    assert after.pop("alembic_version") != before.pop("alembic_version")
    assert after == before
    totals = rows({"scan_totals": "user_id, scans, size"})["scan_totals"]
    counted = rows({"scan": "user_id, size"})["scan"]
    assert totals == [
        (user_id, len(sizes), sum(sizes))
        for user_id in sorted({user_id for user_id, _ in counted})
        if (sizes := [size for owner, size in counted if owner == user_id])
    ]
    assert not any(rows()[name] for name in SINCE - {"scan_totals"})
    assert differences() == []
    comparison = db.session.scalars(select(Comparison)).one()
    assert (comparison.version_id, comparison.status) == (id, JobStatus.DONE)
    assert comparison.results == [{"source": "out of fold", "reason": "None."}]
    for token in db.session.scalars(select(ApiToken)):
        everything = "read submit review admin" if token.user.is_admin else "read submit review"
        assert (token.scopes, token.expires_at) == (everything, None)
    as_trained = (None, None, None)
    for table in (ModelVersion, Promotion):
        for row in db.session.scalars(select(table)):
            assert (row.point, row.slice_threshold, row.scan_threshold) == as_trained
    scan = db.session.scalars(select(Scan).where(Scan.title == "A series")).one()
    assert scan.status == JobStatus.DONE
    assert scan.prediction is not None and scan.verdict_state == scan.prediction.state
    assert not scan.is_unread
    assert scan.prediction.model_version.run is not None
    with pytest.raises(IntegrityError, match="append-only"):
        db.session.execute(delete(AuditEvent))


def test_data_sets_learn_the_studies_of_their_scans_and_keep_deleted_ones(
    app_of_eleven: Flask,
) -> None:
    flask_migrate.upgrade(revision="b27c5e9a4d10")
    with db.engine.begin() as connection:
        connection.execute(text("UPDATE scan SET study_id = 'study ' || id"))
        connection.execute(
            text("INSERT INTO dataset_scan SELECT dataset.id, scan.id FROM dataset, scan")
        )
    before = rows()["dataset_scan"]
    flask_migrate.upgrade()
    assert rows({"dataset_scan": "study_id"})["dataset_scan"] == sorted(
        (f"study {scan_id}",) for _, scan_id in before
    )
    with db.engine.begin() as connection:
        connection.execute(text("DELETE FROM scan"))
    assert len(rows()["dataset_scan"]) == len(before) > 0
    flask_migrate.downgrade(revision="b27c5e9a4d10")
    assert rows()["dataset_scan"] == []


def test_links_lead_to_what_scans_say_that_they_replaced(app_of_eleven: Flask) -> None:
    flask_migrate.upgrade(revision="91b4c6e07d2f")
    first, second, *_ = sorted(id for (id,) in rows({"scan": "id"})["scan"])
    replaced = "UPDATE scan SET replaces = :items WHERE id = :id"
    with db.engine.begin() as connection:
        for id, gone in ((first, ["a", "b"]), (second, ["c"])):
            items = json.dumps([{"scan_id": each, "sentence": ""} for each in gone])
            connection.execute(text(replaced), {"items": items, "id": id})
    flask_migrate.upgrade()
    leads = [("a", first), ("b", first), ("c", second)]
    assert rows({"replaced_scan": "id, scan_id"})["replaced_scan"] == leads


def test_the_first_migration_makes_what_the_eleven_made(
    app_of_eleven: Flask, tmp_path: Path
) -> None:
    of_eleven = schema()

    with app_at(f"sqlite:///{tmp_path / 'new.db'}", tmp_path):
        flask_migrate.upgrade(revision="f4a07c1e58d2")
        assert schema() == of_eleven


def test_a_migration_that_fails_leaves_nothing_half_done(
    empty_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Operations, "create_index", fail)
    with pytest.raises(ZeroDivisionError):
        flask_migrate.upgrade()
    assert db.inspect(db.engine).get_table_names() == []


def fail(*_: object, **__: object) -> None:
    """Stand for a migration that meets what it did not expect."""
    raise ZeroDivisionError
