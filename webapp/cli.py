"""Commands for operators: `flask --app webapp setup | create-admin | create-token |
reset-second-factor | set-role | import-dataset`.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from flask import Flask, current_app
from flask.cli import with_appcontext
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from webapp.accounts.logins import end_access, end_logins
from webapp.accounts.passwords import password_problem
from webapp.accounts.second_factors import remove
from webapp.audit import record
from webapp.audit_chain import Head, seal, verify
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
from webapp.intake import UploadRejected, accept_dataset
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import (
    Act,
    Dataset,
    JobStatus,
    Replay,
    Role,
    Scope,
    User,
    active_admins,
    sample_answers,
)
from webapp.models.accounts import USUAL_SCOPES, TokenRefused, add_token, lock_person
from webapp.models.replays import MOST_SAMPLED
from webapp.scans.replay_view import replay_view
from webapp.setup import setup
from webapp.storage import StorageError


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
            f"The existing account {user.username} is now an administrator account with the"
            " new password. All its sessions were logged out and its API tokens revoked."
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
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    default=[scope.value for scope in USUAL_SCOPES],
    show_default=True,
    help="What it may be used for; repeat for more.",
)
@click.option(
    "--days",
    type=click.IntRange(0),
    default=None,
    help="Days until it expires (default: TOKEN_DAYS); 0: never, where TOKEN_MAX_DAYS is 0.",
)
@with_appcontext
def create_token(username: str, name: str, scopes: tuple[str, ...], days: int | None) -> None:
    """Print a new API token for USERNAME, on the last line by itself. Only its hash is stored."""
    user = db.session.scalar(select(User).where(User.username_key == username.lower()))
    if user is None:
        raise click.ClickException(f"User {username!r} does not exist.")
    problem = text_problem(name, MAX_TOKEN_NAME)
    if problem:
        raise click.ClickException(problem)
    lock_person(user.id)
    try:
        token, secret = add_token(user.id, name, [Scope(each) for each in scopes], days)
    except TokenRefused as err:
        raise click.ClickException(str(err)) from err
    record(Act.TOKEN_MADE, token.id, detail=token.scopes)
    db.session.commit()
    until = f"until {token.expires_at:%Y-%m-%d}" if token.expires_at else "without expiry"
    click.echo(
        f"API token for {user.username}, valid {until} for {token.scopes} (it will not be shown"
        " again):"
    )
    click.echo(secret)


@click.command("reset-second-factor")
@click.argument("username")
@with_appcontext
def reset_second_factor(username: str) -> None:
    """Remove the second factor of USERNAME, who lost it, and end their sessions.

    Until a new one is set up, the password alone is enough to log in.
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

    Any administrator except the last can be demoted with this command. To make somebody an
    administrator, use the users page or create-admin.
    """
    user = db.session.scalar(select(User).where(User.username_key == username.lower()))
    if user is None:
        raise click.ClickException(f"User {username!r} does not exist.")
    if active_admins() == [user.id]:
        raise click.ClickException(
            f"{user.username} is the only administrator. Create another one first."
        )
    if user.role == role:
        raise click.ClickException(f"{user.username} is already a {role}.")
    record(Act.ROLE_CHANGED, user.id, detail=f"{user.role} → {role}")
    user.role = Role(role)
    db.session.commit()
    click.echo(f"{user.username} is now a {role}.")


@click.command("audit-verify")
@click.option(
    "--head",
    default=None,
    help="A head printed earlier, as POSITION:HASH; fail if the chain no longer contains it.",
)
@with_appcontext
def audit_verify(head: str | None) -> None:
    """Verify the hash chain over the audit log; fail if it is broken.

    Prints its head. If you store it elsewhere, --head can show later that nothing before it was
    changed, not even by somebody who can write to the database.
    """
    noted = None
    if head is not None:
        position, _, hash = head.partition(":")
        if not position.isdecimal() or not re.fullmatch("[0-9a-f]{64}", hash):
            raise click.ClickException("A head is a number, a colon and 64 hexadecimal digits.")
        noted = Head(int(position), hash)
    while seal():
        db.session.commit()
    verification = verify(noted)
    db.session.commit()
    if verification.unsealed:
        click.echo(
            f"{verification.unsealed} events are not sealed. Is a maintenance worker running?"
        )
    if verification.problem:
        raise click.ClickException(f"The audit log does not verify. {verification.problem}")
    click.echo(
        f"{verification.events} events are unchanged. Head of the chain: {verification.head}"
    )


@click.command("replay-sample")
@click.argument("count", type=click.IntRange(1, MOST_SAMPLED), default=100)
@click.option(
    "--wait",
    is_flag=True,
    help="Wait for the outcome; exit with an error unless all results are identical.",
)
@with_appcontext
def replay_sample(count: int, wait: bool) -> None:
    """Have COUNT past predictions, drawn at random, computed again by predict workers."""
    sample, drawn = sample_answers(count, None)
    if not drawn:
        raise click.ClickException("No result has a submitted file that is still stored.")
    record(Act.REPLAY_REQUESTED, sample.id, detail=f"{drawn} answers")
    db.session.commit()
    nudge(PREDICT_SCANS)
    click.echo(f"{drawn} results are queued for replay; see Models, Replays.")
    if wait:
        wait_for_sample(sample.id, drawn)


def wait_for_sample(sample_id: str, drawn: int) -> None:
    """Return once all predictions of a sample were reproduced exactly; otherwise exit with those
    that were not.
    """
    ended = [status for status in JobStatus if status.is_final]
    of_sample = select(Replay).where(Replay.sample_id == sample_id)
    while db.session.scalar(of_sample.where(Replay.status.not_in(ended)).limit(1)) is not None:
        db.session.commit()  # For the same reason as below.
        time.sleep(0.5)
    unlike = db.session.scalars(of_sample.where(Replay.is_same.is_not(True))).all()
    for row in unlike:
        view = replay_view(row)
        click.echo(f"scan {row.scan_id}: {' '.join([view.headline, *view.details])}")
    db.session.commit()
    summary = f"{drawn - len(unlike)} of {drawn} results were reproduced exactly."
    if unlike:
        raise click.ClickException(summary)
    click.echo(summary)


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
    """Return once the data set is ready; exit with the reason if the import failed."""
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
        replay_sample,
        audit_verify,
    ):
        app.cli.add_command(command)
