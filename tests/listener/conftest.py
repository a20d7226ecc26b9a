"""What the tests of the listener share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import app_on, make_user
from tests.listener.running import Running
from webapp.extensions import db


@pytest.fixture
def listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Running]]:
    """`listen(DICOM_…=…)` runs a listener whose peer CT1 sends for ann."""
    running: list[Running] = []

    def run(tls: Any = None, **settings: object) -> Running:
        app = app_on(
            f"sqlite:///{tmp_path / 'test.db'}",
            tmp_path,
            **{"DICOM_PEERS": "CT1@127.0.0.1 account=ann", "MIN_FREE_MB": 0, **settings},
        )
        if not running:
            make_user(app, "ann")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "received" / "arriving"))
        running.append(Running(app, tmp_path / "received", tls))
        return running[-1]

    yield run
    for one in running:
        one.stop()
        with one.app.app_context():
            db.session.remove()
            db.engine.dispose()
