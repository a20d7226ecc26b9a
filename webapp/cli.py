"""Commands for operators: `flask --app webapp setup | create-admin | create-token |
reset-second-factor | set-role | import-dataset`.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import flask_migrate
from flask import Flask, current_app
from flask.cli import with_appcontext
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from ml.catalogue import STARTER_DIR, STARTER_SERIES_DIR
from webapp.audit import record
from webapp.display import display_term
from webapp.extensions import db
from webapp.forms import (
    MAX_EMAIL,
    MAX_NAME,
    MAX_PHONE,
    MAX_TOKEN_NAME,
    text_problem,
    username_problem,
)
from webapp.logins import end_access, end_logins
from webapp.models import (
    Act,
    Dataset,
    JobStatus,
    ModelVersion,
    Role,
    Scan,
    User,
    active_admins,
    compare_newest_with,
    live_version,
    new_id,
    promote,
    request_comparison,
)
from webapp.models.accounts import TooManyTokens, add_token, lock_person
from webapp.passwords import password_problem
from webapp.second_factors import remove
from webapp.storage import StorageError, storage

SETUP_LOCK = 0x68656D6F  # "hemo": PostgreSQL's advisory locks are numbers.
FIRST_ADMIN = "admin"
PREDICTIONS = "predictions.csv"
"""A model's out-of-fold answers (`ml.training.shipped_answers`), in its folder and in storage."""


@click.command("setup")
@click.option("--brief", is_flag=True, help="Print only what somebody has to know.")
@with_appcontext
def setup(brief: bool) -> None:
    """Create or update the tables, the first administrator and the starter models. Safe to repeat,
    and to run more than once at the same time.
    """
    with one_at_a_time():
        flask_migrate.upgrade()
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
    """Return whether the storage is available; that of a new installation is created.

    If the database refers to files, an empty folder is a mount point without its mount, and is left
    alone.
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
    db.session.commit()  # No transaction stays open while files are stored.
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
        promote(version, None, "starter")
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
    """Store the out-of-fold answers that ship with a model, if they do, so that other versions can
    be compared with it.
    """
    if (folder / PREDICTIONS).exists():
        storage.put(f"{prefix}/{PREDICTIONS}", folder / PREDICTIONS)


@click.command("create-admin")
@click.argument("username")
@click.option("--email", default=None, help="Email address.")
@click.option("--name", default=None, help="Full name.")
@click.option("--phone", default=None, help="Phone number.")
@with_appcontext
def create_admin(username: str, email: str | None, name: str | None, phone: str | None) -> None:
    """Make USERNAME an administrator. The password comes from HEMOSCAN_PASSWORD or a prompt.

    An existing account becomes an administrator's with the new password. It is enabled and logged
    out everywhere, and its API tokens are revoked, so this also helps an administrator who forgot
    the password.
    """
    password = os.environ.get("HEMOSCAN_PASSWORD") or click.prompt(
        "Password", hide_input=True, confirmation_prompt=True
    )
    problem = (
        username_problem(username)
        or password_problem(username, password)
        or text_problem(email or "", MAX_EMAIL)
        or text_problem(name or "", MAX_NAME)
        or text_problem(phone or "", MAX_PHONE)
    )
    if problem:
        raise click.ClickException(problem)
    user = db.session.scalar(select(User).where(User.username_key == username.lower()))
    if user is None:
        user = User(
            username=username,
            password=password,
            email=email,
            name=name or "",
            phone=phone or "",
            role=Role.ADMIN,
        )
        db.session.add(user)
        done = f"Created the administrator {username}."
    else:
        user.set_password(password)
        user.role = Role.ADMIN
        user.disabled_at = None
        user.name = user.name if name is None else name
        user.phone = user.phone if phone is None else phone
        if email is not None:
            user.email, user.email_key = email, email.lower()
        end_access(user)
        done = (
            f"The existing account {user.username} is now an administrator's, with the new"
            " password. All its sessions were logged out and its API tokens revoked."
        )
    try:
        db.session.flush()
        record(Act.ADMIN_MADE, user.id)
        db.session.commit()
    except IntegrityError as err:
        raise click.ClickException(
            f"Another account already uses the email address {email}."
        ) from err
    click.echo(done)


@click.command("create-token")
@click.argument("username")
@click.option("--name", default="command line", show_default=True, help="What the token is for.")
@with_appcontext
def create_token(username: str, name: str) -> None:
    """Print a new API token for USERNAME, alone on the last line. Only its hash is stored."""
    user = db.session.scalar(select(User).where(User.username_key == username.lower()))
    if user is None:
        raise click.ClickException(f"User {username!r} does not exist.")
    problem = text_problem(name, MAX_TOKEN_NAME)
    if problem:
        raise click.ClickException(problem)
    lock_person(user.id)
    try:
        token, secret = add_token(user.id, name)
    except TooManyTokens as err:
        raise click.ClickException(str(err)) from err
    record(Act.TOKEN_MADE, token.id)
    db.session.commit()
    click.echo(f"API token for {user.username} (it will not be shown again):")
    click.echo(secret)


@click.command("reset-second-factor")
@click.argument("username")
@with_appcontext
def reset_second_factor(username: str) -> None:
    """Take away the second factor of USERNAME, who lost it, and end their logins.

    The password alone logs in until a new one is set up.
    """
    user = db.session.scalar(select(User).where(User.username_key == username.lower()))
    if user is None:
        raise click.ClickException(f"User {username!r} does not exist.")
    if not remove(user.id):
        raise click.ClickException(f"{user.username} has no second factor.")
    end_logins(user)
    record(Act.SECOND_FACTOR_REMOVED, user.id)
    db.session.commit()
    click.echo(f"The second factor of {user.username} is removed; all sessions are logged out.")


@click.command("set-role")
@click.argument("username")
@click.argument("role", type=click.Choice([Role.USER.value, Role.REVIEWER.value]))
@with_appcontext
def set_role(username: str, role: str) -> None:
    """Make USERNAME a user or a reviewer, who sees the scans that are shared with the reviewers.

    Of administrators, all but the last can be made one of these; create-admin makes administrators.
    """
    user = db.session.scalar(select(User).where(User.username_key == username.lower()))
    if user is None:
        raise click.ClickException(f"User {username!r} does not exist.")
    if active_admins() == [user.id]:
        raise click.ClickException(
            f"{user.username} is the only administrator. Create another one first."
        )
    if user.role == role:
        raise click.ClickException(f"{user.username} is a {role} already.")
    record(Act.ROLE_CHANGED, user.id, detail=f"{user.role} → {role}")
    user.role = Role(role)
    db.session.commit()
    click.echo(f"{user.username} is now a {role}.")


@click.command("import-dataset")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--name",
    default=None,
    help="Name of the data set; defaults to the name of the file or folder.",
)
@click.option(
    "--wait",
    is_flag=True,
    help="Wait for a train worker to finish the import; exit with an error if it fails.",
)
@with_appcontext
def import_dataset(path: Path, name: str | None, wait: bool) -> None:
    """Import the labeled images in PATH, a folder or a ZIP archive."""
    from webapp.intake import UploadRejected, accept_dataset

    try:
        with archive_of(path.resolve()) as archive:
            dataset = accept_dataset(name or path.resolve().stem, archive, None)
    except (UploadRejected, StorageError) as err:
        raise click.ClickException(str(err)) from err
    click.echo(f"The data set {dataset.name!r} is queued for import.")
    if wait:
        wait_for_dataset(dataset.id)


@contextmanager
def archive_of(path: Path) -> Iterator[Path]:
    """Yield `path` if it is a file, or a ZIP archive of the folder `path`."""
    if not path.is_dir():
        yield path
        return
    incoming: Path = current_app.config["HEMOSCAN_HOME"] / "incoming"
    incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=incoming) as folder:
        archive = Path(folder) / "dataset.zip"
        # Images are already compressed.
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
            for file in sorted(path.rglob("*")):
                if file.is_file() and not any(
                    part.startswith(".") for part in file.relative_to(path).parts
                ):
                    packed.write(file, file.relative_to(path))
        yield archive


def wait_for_dataset(dataset_id: str) -> None:
    """Return when the data set is ready; exit with the reason if the import failed."""
    while True:
        dataset = db.session.get_one(Dataset, dataset_id, populate_existing=True)
        # An open transaction would keep the worker from writing to SQLite; after a rollback, the
        # next use of the row would open another one.
        db.session.commit()
        if dataset.status.is_final:
            break
        time.sleep(0.5)
    if dataset.status != JobStatus.DONE:
        raise click.ClickException(
            dataset.error or f"The import was {display_term(dataset.status)}."
        )
    click.echo(f"The data set {dataset.name!r} is ready.")


def init_cli(app: Flask) -> None:
    """Register the commands with `app`."""
    for command in (
        setup,
        create_admin,
        create_token,
        reset_second_factor,
        set_role,
        import_dataset,
    ):
        app.cli.add_command(command)
