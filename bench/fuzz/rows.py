"""The instance that is asked by requests and forms: it has rows of every kind and in every state,
and is put back after each change, so that no request takes away what the next one needs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update
from werkzeug.test import TestResponse

from bench.fuzz.tally import Tally
from tests.conftest import PASSWORD
from tests.webapp.intake.made import picture, zip_of
from tests.webapp.test_api_document import Service as Documented
from tests.webapp.test_every_route import World, world_in
from webapp.accounts.second_factors import begin
from webapp.admin import versions
from webapp.extensions import db, utc_now
from webapp.models import ModelVersion, SecondFactor, User, waits_for_check
from worker.orphaned_files import OWNERS

ANONYMOUS, USER, ADMIN, WITH_FACTOR = "anonymous", "owner", "admin", "reviewer"
"""Roles of the tests' `World`: the user owns a scan; the reviewer gets a second factor here."""
HALF_LOGGED_IN = "half logged in"
"""Somebody who gave the password of an account with a second factor, and is asked for the code."""
CALLERS = (ANONYMOUS, USER, ADMIN)
SAFE = ("GET", "HEAD", "OPTIONS")
UNREADY = "/readyz"
"""Without a broker it answers 503, and should."""


class Rows:
    """The instance and its callers.

    Attributes:
        ids: for each caller the values of parameters and properties by their names: ids of rows
            that the caller may see, and valid files.
    """

    def __init__(self, world: World, tally: Tally) -> None:
        self.app: Flask = world.app
        self.world, self.tally = world, tally
        with self.app.app_context():
            self.user_ids: dict[str, str] = dict(
                db.session.execute(select(User.username, User.id)).tuples().all()
            )
        self.ids = {role: self._add_rows(role) for role in (ADMIN, USER)}
        for other in (ANONYMOUS, WITH_FACTOR, HALF_LOGGED_IN):
            self.ids[other] = self.ids[USER]
        self._add_second_factor()
        world.save()
        self._orphans = self._find_orphans()

    def _add_rows(self, role: str) -> dict[str, list[Any]]:
        """Add rows in every state; return all ids, and valid files, by the names of parameters."""
        more = Documented(self.app, "", self.user_ids[role], None, {})  # type: ignore[arg-type]
        ids: dict[str, list[Any]] = {name: [value] for name, value in self.world.addresses.items()}
        for name, added in {**more.add_rows(), "scan_id": more.add_scans()}.items():
            ids[name] = ids.get(name, []) + added
        ids["user_id"] += self.user_ids.values()
        return ids | {
            "index": ["0", "1"],
            "username": list(self.user_ids),
            "other_id": ids["dataset_id"],
            "file": [picture()],
            "archive": [zip_of({"labels.csv": b"file,label\n1.png,1\n", "1.png": picture()})],
        }

    def _add_second_factor(self) -> None:
        with self.app.app_context():
            begin(self.user_ids[WITH_FACTOR])
            db.session.flush()
            db.session.execute(update(SecondFactor).values(confirmed_at=utc_now()))
            db.session.commit()

    def client(self, caller: str) -> FlaskClient:
        """Return a client with that caller's login and token, if any."""
        client = self.world.client(caller)
        if caller == HALF_LOGGED_IN:
            client.post("/login", data={"username": WITH_FACTOR, "password": PASSWORD})
        return client

    def ask(
        self, caller: str, method: str, address: str, label: str, **arguments: Any
    ) -> TestResponse:
        """Send a request, record the response under this label, and put everything back if it
        changed something.
        """
        client = self.client(caller)
        began = time.monotonic()
        response = client.open(address, method=method, **arguments)
        text = response.text if response.mimetype == "text/html" else ""
        took_s = time.monotonic() - began
        detail = f"\n{caller}: {address[:500]}\n{str(arguments)[:1000]}"
        self.answered(caller, method, label, response.status_code, took_s, detail)
        self.tally.check_page(label, text)
        response.close()
        return response

    def answered(
        self, caller: str, method: str, label: str, status: int, took_s: float, detail: str = ""
    ) -> None:
        """Record a response, and put everything back if it changed something."""
        self.tally.answered(label, status, took_s, caller, detail)
        if (method not in SAFE and status < 400) or status == 202 or status >= 500:
            new = self._find_orphans() - self._orphans
            kinds = sorted({key.split("/")[0] for key in new})
            self.tally.check(not new, f"{label} left files that no row needs, in {kinds}")
            self.tally.check_incoming(self.app.config["HEMOSCAN_HOME"], label)
            self.world.restore()

    def _find_orphans(self) -> set[str]:
        """Return the keys of the files that no row needs."""
        root = self.app.config["HEMOSCAN_HOME"] / "files"
        orphans: set[str] = set()
        with self.app.app_context():
            for kind, (column, name_in, needs) in OWNERS.items():
                files = (path for path in (root / kind).rglob("*") if path.is_file())
                keys = {str(path.relative_to(root)) for path in files}
                names = {name_in(key) for key in keys}
                needed = set(db.session.scalars(select(column).where(column.in_(names), needs)))
                orphans |= {key for key in keys if name_in(key) not in needed}
            db.session.rollback()
        return orphans


@contextmanager
def rows(home: Path, tally: Tally) -> Iterator[Rows]:
    """Yield the instance, in the folder `home`."""
    (home / "rows").mkdir()
    world = world_in(home / "rows", home / "saved")
    # An unexpected exception becomes status 500 and a line in the log, as in service.
    world.app.config["PROPAGATE_EXCEPTIONS"] = False

    def check_versions(_: str) -> bool:
        """Do what a predict worker does when a version is to be promoted, which waits for it."""
        with world.app.app_context():
            checked = {"checked_at": ModelVersion.check_requested_at}
            db.session.execute(update(ModelVersion).where(waits_for_check()).values(checked))
            db.session.commit()
        return True

    try:
        with patch.object(versions, "nudge", check_versions):
            yield Rows(world, tally)
    finally:
        with world.app.app_context():
            db.session.remove()
            db.engine.dispose()
