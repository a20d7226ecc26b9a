"""The fuzzed instance of Hemoscan that reads scans."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flask.testing import FlaskClient
from sqlalchemy import select

from bench.fuzz.tally import Overheard, Tally
from ml.catalogue import STARTER_DIR, STARTER_SERIES_DIR
from webapp import create_app
from webapp.extensions import db
from webapp.models import ApiToken, Scope, User
from webapp.models.accounts import new_secret, secret_hash
from webapp.setup import has_storage, install_starter
from worker import decoder
from worker.heartbeat import Heartbeat

BATCH = 8
"""Uploads between two rounds of the worker: the number that it claims at once."""
USERNAME, PASSWORD = "fuzz", "whoever fuzzes logs in with it"


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
            db.session.add(User(username=USERNAME, password=PASSWORD))
            db.session.commit()
        self.app.extensions["heartbeat"] = Heartbeat(self.app, "predict")
        self.token = self._new_token()

    def _new_token(self) -> str:
        secret = new_secret()
        with self.app.app_context():
            token = ApiToken(
                user_id=db.session.scalars(select(User.id)).one(),
                name="fuzz",
                secret_hash=secret_hash(secret),
                scopes=" ".join(Scope),
            )
            db.session.add(token)
            db.session.commit()
        return secret

    def client(self) -> FlaskClient:
        """Return a client of the API."""
        client = self.app.test_client()
        client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {self.token}"
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
