"""The fuzzed instance of Hemoscan, and the record of outcomes."""

from __future__ import annotations

import logging
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flask.testing import FlaskClient
from sqlalchemy import select, update

from ml.catalogue import STARTER_DIR, STARTER_SERIES_DIR
from webapp import create_app
from webapp.extensions import db, utc_now
from webapp.models import ApiToken, Role, Scope, SecondFactor, User
from webapp.models.accounts import new_secret, secret_hash
from webapp.second_factors import begin, new_recovery_codes
from webapp.setup import has_storage, install_starter
from worker import decoder
from worker.heartbeat import Heartbeat

BATCH = 8
"""Uploads between two rounds of the worker: the number that it claims at once."""
USERNAME, PASSWORD = "fuzz", "whoever fuzzes logs in with it"
ADMIN, ADMIN_WITH_FACTOR = "fuzz-admin", "fuzz-admin-2"
UNHANDLED = 1
"""Exit status of a decoder process that met an unexpected exception. Resource limits and crashing
decoders end in signals instead.
"""


@dataclass
class Tally:
    """The outcomes of everything that was sent.

    Attributes:
        outcomes: by kind of the seed file: "refused" uploads, and scans by status.
        sentences: error messages by kind, without numbers.
        statuses: status codes of API and pages, by operation.
        deaths: abnormal exits of the decoder process, by exit status.
    """

    broken: list[str] = field(default_factory=list)
    inputs: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    sentences: Counter[tuple[str, str]] = field(default_factory=Counter)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    deaths: Counter[int] = field(default_factory=Counter)
    upload_mb: float = 0.0
    decoder_mb: float = 0.0

    def check(self, holds: bool, complaint: str) -> None:
        """Record `complaint` if the condition is false."""
        if not holds:
            self.broken.append(complaint)


class Overheard(logging.Handler):
    """Reads the log: an error violates the guarantees by itself, and dead child processes are
    counted.
    """

    def __init__(self, tally: Tally) -> None:
        super().__init__(logging.WARNING)
        self.tally = tally

    def emit(self, record: logging.LogRecord) -> None:
        """Take in one line of the log."""
        if record.name == decoder.__name__ and isinstance(record.args, tuple) and record.args:
            self.tally.deaths[int(str(record.args[0]))] += 1
            self.tally.check(
                record.args[0] != UNHANDLED,
                "a file caused an unexpected exception in the decoder",
            )
        if record.levelno >= logging.ERROR:
            self.tally.broken.append(f"the log says: {self.format(record)}")


class Service:
    """Hemoscan in this process, on SQLite in a folder, with the shipped models; its queue is
    processed directly.
    """

    def __init__(self, home: Path) -> None:
        self.app = create_app(
            {
                "SECRET_KEY": "of the fuzzer",
                "HEMOSCAN_HOME": home,
                "DATABASE_URL": f"sqlite:///{home / 'fuzz.db'}",
                "BROKER_URL": f"redis+socket://{home / 'nobody.sock'}",
                "STORAGE_URL": f"file://{home / 'files'}",
                "RATELIMIT_ENABLED": False,
                "QUOTA_MB": 0,
                # Everything readable is predicted, whatever it shows: that exercises more code.
                "CHECK_HEAD_CT": "0",
            }
        )
        self.home = home
        self.app.config["PREDICT_BATCH"] = BATCH
        with self.app.app_context():
            db.create_all()
            has_storage()
            for folder in (STARTER_DIR, STARTER_SERIES_DIR):
                install_starter(folder)
            user = User(username=USERNAME, password=PASSWORD)
            admins = [
                User(username=name, password=PASSWORD, role=Role.ADMIN)
                for name in (ADMIN, ADMIN_WITH_FACTOR)
            ]
            db.session.add_all([user, *admins])
            db.session.flush()
            begin(admins[1].id)
            db.session.flush()
            db.session.execute(update(SecondFactor).values(confirmed_at=utc_now()))
            self.recovery_code = new_recovery_codes(admins[1].id)[0]
            db.session.commit()
        self.app.extensions["heartbeat"] = Heartbeat(self.app, "predict")
        self.renew_token()

    def renew_token(self) -> None:
        """Make a new API token: a posted form may have revoked the last one."""
        self.token = self.new_token(USERNAME)

    def new_token(self, username: str) -> str:
        """Return a new API token of that person."""
        secret = new_secret()
        with self.app.app_context():
            user_id = db.session.scalars(select(User.id).where(User.username == username)).one()
            token = ApiToken(
                user_id=user_id,
                name="fuzz",
                secret_hash=secret_hash(secret),
                scopes=" ".join(Scope),
            )
            db.session.add(token)
            db.session.commit()
        return secret

    def client(self, token: str = "") -> FlaskClient:
        """Return a client of the API, with the current token or another one."""
        client = self.app.test_client()
        client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {token or self.token}"
        return client

    def files(self) -> set[str]:
        """Return the keys of all files in the storage, except those of models."""
        root = self.home / "files"
        keys = (str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
        return {key for key in keys if not key.startswith(("models/", "databases/"))}


@contextmanager
def service(home: Path, tally: Tally) -> Iterator[Service]:
    """Yield the service; errors in its log and the resources used by its child processes are
    recorded in `tally`.
    """
    overheard = Overheard(tally)
    root = logging.getLogger()
    running = Service(home)
    root.addHandler(overheard)
    try:
        yield running
    finally:
        root.removeHandler(overheard)
        if decoder._decoder is not None:
            decoder._decoder.close()
        tally.decoder_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        tally.check(
            tally.decoder_mb <= running.app.config["DECODE_MEMORY_MB"],
            f"the decoder took {tally.decoder_mb:.0f} MB",
        )
        with running.app.app_context():
            db.engine.dispose()
