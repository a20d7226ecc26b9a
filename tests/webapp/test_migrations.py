"""The migrations lead to the tables of the models and back, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import flask_migrate
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from flask import Flask

from webapp import create_app
from webapp.extensions import db


@pytest.fixture
def empty_app(database_url: str, tmp_path: Path) -> Iterator[Flask]:
    """An application whose database has no tables."""
    app = create_app(
        {
            "SECRET_KEY": "x",
            "HEMOSCAN_HOME": tmp_path,
            "DATABASE_URL": database_url,
            "BROKER_URL": f"redis+socket://{tmp_path / 'none'}",
        }
    )
    with app.app_context():
        yield app
        db.engine.dispose()


def differences() -> list[object]:
    """Return what the database lacks or has too much, by the models."""
    with db.engine.connect() as connection:
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


def test_a_migration_that_fails_leaves_nothing_half_done(
    empty_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alembic.operations import Operations

    monkeypatch.setattr(Operations, "batch_alter_table", fail)
    with pytest.raises(ZeroDivisionError):
        flask_migrate.upgrade()
    assert db.inspect(db.engine).get_table_names() == []


def fail(*_: object, **__: object) -> None:
    """Stand for a migration that meets what it did not expect."""
    raise ZeroDivisionError
