"""The inputs that other people's users reported elsewhere, with their own runners, where they lie
beside the checkout: uploaded to the application and answered by a worker, both in this process.
"""

from __future__ import annotations

import io
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.datastructures import MultiDict
from werkzeug.test import TestResponse

import ml.datasets
from ml.catalogue import STARTER_DIR, STARTER_SERIES_DIR
from ml.datasets.archive import unpack
from ml.datasets.read import read_dataset
from ml.errors import DatasetError
from ml.exploration.summary import explore
from tests.conftest import app_on
from tests.worker.conftest import as_worker
from webapp.config import PROJECT_ROOT
from webapp.extensions import db
from webapp.models import User
from webapp.models.accounts import add_token
from webapp.setup import install_starter
from worker.prediction import answer_next_scans

CASES = PROJECT_ROOT.parent / "shared" / "cases"
pytestmark = [
    pytest.mark.skipif(not CASES.is_dir(), reason="The shared cases are not beside the checkout."),
    pytest.mark.timeout(600),
]
HOST = "http://hemoscan.example"


class Answer:
    """What `requests` would have returned."""

    def __init__(self, response: TestResponse) -> None:
        self.status_code, self.content = response.status_code, response.data
        self._response = response

    def json(self) -> Any:
        """Return the body of the answer."""
        return self._response.get_json()


class Session:
    """A stand-in for `requests.Session` that asks the application in this process; before each
    answer about a scan the worker does what is queued.
    """

    client: FlaskClient

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}

    def post(self, url: str, files: list[tuple[str, tuple[str, bytes]]], data: Any) -> Answer:
        """Send files as a form does."""
        form = MultiDict(data)
        for field, (name, content) in files:
            form.add(field, (io.BytesIO(content), name))
        return Answer(
            self.client.post(
                url.removeprefix(HOST),
                data=form,
                headers=self.headers,
                content_type="multipart/form-data",
            )
        )

    def get(self, url: str) -> Answer:
        """Ask for a page."""
        while answer_next_scans():
            pass
        db.session.remove()  # the request must see what the worker wrote
        return Answer(self.client.get(url.removeprefix(HOST), headers=self.headers))


def failures(printed: str) -> list[str]:
    """Return the lines of a runner that say that a case failed."""
    return [line for line in printed.splitlines() if line.startswith(("FAIL", "ERR"))]


def test_uploads_come_out_as_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app: Flask = app_on(
        f"sqlite:///{tmp_path / 'test.db'}", tmp_path, CHECK_HEAD_CT="1", QUOTA_MB=0
    )
    with pytest.MonkeyPatch.context() as patched:
        for _ in as_worker(app):
            install_starter(STARTER_DIR)
            install_starter(STARTER_SERIES_DIR)
            ann = db.session.query(User).one()
            _, secret = add_token(ann.id, "cases")
            db.session.commit()
            Session.client = app.test_client()
            patched.setattr("requests.Session", Session)
            patched.setattr(sys, "argv", ["run_inputs.py", HOST, secret])
            runpy.run_path(str(CASES / "run_inputs.py"))
    printed = capsys.readouterr().out
    assert "tried" in printed and not failures(printed), printed


def test_data_sets_come_out_as_expected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for known in (DatasetError, explore, read_dataset, unpack):
        monkeypatch.setattr(ml.datasets, known.__name__, known, raising=False)
    monkeypatch.chdir(PROJECT_ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path(str(CASES / "run_datasets.py"))
    printed = capsys.readouterr().out
    assert "tried" in printed and not failures(printed), printed
