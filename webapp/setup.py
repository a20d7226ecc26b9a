"""The first step of every installation and upgrade: `flask --app webapp setup`.

    python -m webapp.setup [--brief]

does the same without loading pages and API, in half the time: `make run` waits for it.
"""

from __future__ import annotations

import fcntl
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from flask import current_app
from flask.cli import with_appcontext
from sqlalchemy import select, text

from ml.catalogue import STARTER_DIR, STARTER_SERIES_DIR
from webapp import create_core
from webapp.audit import record
from webapp.extensions import db
from webapp.models import (
    Act,
    Dataset,
    ModelVersion,
    Role,
    Scan,
    User,
    compare_newest_with,
    live_version,
    new_id,
    promote,
    request_comparison,
)
from webapp.storage import storage

SETUP_LOCK = 0x68656D6F  # "hemo" in ASCII: PostgreSQL identifies advisory locks by numbers.
FIRST_ADMIN = "admin"
PREDICTIONS = "predictions.csv"
"""A model's out-of-fold predictions (`ml.validation.shipped_answers`), in its folder and in
storage.
"""


@click.command("setup")
@click.option("--brief", is_flag=True, help="Print only what needs attention.")
@with_appcontext
def setup(brief: bool) -> None:
    """Create or update the tables, the first administrator and the starter models. Safe to repeat,
    and to run more than once at the same time.
    """
    # Imported here because the other commands and all processes work without Alembic.
    from flask_migrate import upgrade

    with one_at_a_time():
        upgrade()
        ensure_admin()
        if has_storage():
            install_starter(STARTER_DIR)
            if STARTER_SERIES_DIR.is_dir():
                install_starter(STARTER_SERIES_DIR)
    if not brief:
        click.echo("Setup is complete.")


def tell_progress(sentence: str) -> None:
    """Print what was done, unless the command was asked to be brief."""
    context = click.get_current_context(silent=True)
    if context is None or not context.params.get("brief"):
        click.echo(sentence)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let only one setup of a database run at a time."""
    if db.engine.dialect.name == "postgresql":
        # In autocommit mode, so that the connection of the lock has no open transaction during the
        # migrations.
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": SETUP_LOCK})
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": SETUP_LOCK})
        return
    home: Path = current_app.config["HEMOSCAN_HOME"]
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ensure_admin() -> None:
    """Create the first administrator and print the password, unless there is one already."""
    if db.session.scalar(select(User.id).where(User.role == Role.ADMIN).limit(1)):
        return
    if db.session.scalar(select(User.id).where(User.username_key == FIRST_ADMIN)):
        click.echo(
            f"There is no administrator, and the username {FIRST_ADMIN!r} is taken. Create one with"
            " `flask --app webapp create-admin USERNAME`."
        )
        return
    password = secrets.token_urlsafe(12)
    admin = User(username=FIRST_ADMIN, password=password, name="Administrator", role=Role.ADMIN)
    db.session.add(admin)
    db.session.flush()
    record(Act.ADMIN_MADE, admin.id)
    db.session.commit()
    click.echo(
        f"The first administrator is {FIRST_ADMIN!r} with the password {password} (shown only this"
        " once; change it after the first login)."
    )


def has_storage() -> bool:
    """Return whether the storage is available; for a new installation it is created.

    If the database refers to files, an empty folder is the mount point of an unmounted storage, and
    is left alone.
    """
    named = [
        db.session.scalar(select(table.id).limit(1)) for table in (ModelVersion, Scan, Dataset)
    ]
    db.session.commit()
    if not any(named):
        storage.start()
        return True
    if storage.answers():
        return True
    click.echo(
        "The storage is unavailable or empty, although the database refers to files in it. The"
        " starter models were not installed; run setup again when the storage is back.",
        err=True,
    )
    return False


def install_starter(folder: Path) -> None:
    """Store a starter model and make it the live model for its kind of input, unless an
    administrator has promoted a trained one.
    """
    if not (folder / "card.json").exists():
        click.echo(
            "There is no starter model. All scans will fail until an administrator trains and"
            " promotes a model.",
            err=True,
        )
        return
    content = (folder / "card.json").read_bytes()
    card = json.loads(content)
    installed = db.session.scalar(
        select(ModelVersion.storage_prefix).where(
            ModelVersion.card_id == card["id"], ModelVersion.run_id.is_(None)
        )
    )
    if installed is not None:
        db.session.commit()
        if not storage.exists(f"{installed}/{PREDICTIONS}"):
            store_predictions(folder, installed)
        return
    version_id = new_id()
    prefix = f"models/{version_id}"
    db.session.commit()  # No transaction is open while files are stored.
    for name in card["files"]:
        storage.put(f"{prefix}/{name}", folder / name)
    storage.put(f"{prefix}/card.json", content)
    store_predictions(folder, prefix)
    version = ModelVersion(
        id=version_id,
        card_id=card["id"],
        architecture=card["architecture"],
        reads=card["reads"],
        storage_prefix=prefix,
        card=card,
    )
    db.session.add(version)
    live = live_version(version.reads)
    # Only starter models have no run; a trained version stays live.
    if live is None or live.run_id is None:
        promote(version, None, "Included with Hemoscan.")
        record(Act.VERSION_PROMOTED, version.id)
        db.session.flush()
        compare_newest_with(version)
    else:
        db.session.flush()
        request_comparison(version.id, live.id)
    db.session.commit()
    tell_progress(
        f"Installed the starter model {card['id']} ({card['architecture']}, input: one"
        f" {card['reads']})."
    )


def store_predictions(folder: Path, prefix: str) -> None:
    """Store the out-of-fold predictions shipped with a model, if there are any, so that other
    versions can be compared with it.
    """
    if (folder / PREDICTIONS).exists():
        storage.put(f"{prefix}/{PREDICTIONS}", folder / PREDICTIONS)


if __name__ == "__main__":
    with create_core().app_context():
        setup()
