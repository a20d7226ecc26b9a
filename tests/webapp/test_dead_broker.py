"""A broker that is gone, or hangs: pages answer all the same, what was accepted waits in its row,
and limits are kept in memory.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from tests.conftest import PASSWORD, app_on, make_user
from tests.webapp.scans.test_scans import form, png
from tests.webapp.test_api import make_token
from webapp.extensions import db
from webapp.models import JobStatus, Scan, User

ANSWERED_WITHIN_S = 1.0


@pytest.fixture(params=["gone", "silent"])
def dead_broker_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An address at which nobody listens, then one at which connections are accepted and nothing is
    ever answered.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        if request.param == "gone":
            server.close()
        yield url


@pytest.fixture
def cut_off_app(tmp_path: Path, dead_broker_url: str) -> Iterator[Flask]:
    """An application with that broker, whose limits are on; ann has an account."""
    app = app_on(
        f"sqlite:///{tmp_path / 'test.db'}",
        tmp_path,
        BROKER_URL=dead_broker_url,
        RATELIMIT_ENABLED=True,
    )
    make_user(app, "ann")
    yield app
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


def log_in(app: Flask) -> FlaskClient:
    """Return ann's browser."""
    browser = app.test_client()
    assert browser.post("/login", data={"username": "ann", "password": PASSWORD}).status_code == 302
    return browser


def test_an_upload_is_answered_within_a_second_and_waits_in_its_row(cut_off_app: Flask) -> None:
    browser = log_in(cut_off_app)
    with cut_off_app.app_context():
        ann = db.session.scalars(select(User.id)).one()
    headers = {"Authorization": f"Bearer {make_token(cut_off_app, ann)}"}
    took = {}
    for what in ("page", "api"):
        times = []
        # The fastest counts: what hangs does so each time, and this machine may be busy.
        for _ in range(3):
            began = time.monotonic()
            if what == "page":
                answer = browser.post("/scans", data=form(png()))
                assert answer.status_code == 302
            else:
                answer = cut_off_app.test_client().post(
                    "/api/v1/scans", data=form(png()), headers=headers
                )
                assert answer.status_code == 202
            times.append(time.monotonic() - began)
        took[what] = min(times)
    assert max(took.values()) < ANSWERED_WITHIN_S, took
    assert (
        "The queue is currently unavailable. Your scan has been saved" in browser.get("/scans").text
    )
    with cut_off_app.app_context():
        assert db.session.scalars(select(Scan.status)).all() == [JobStatus.QUEUED] * 6


def test_requests_that_wait_for_the_broker_at_once_are_all_answered(cut_off_app: Flask) -> None:
    at_once = threading.Barrier(6)

    def try_to_log_in() -> int:
        at_once.wait()
        wrong = {"username": "ann", "password": "a wrong password"}
        return cut_off_app.test_client().post("/login", data=wrong).status_code

    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(try_to_log_in) for _ in range(6)]
    assert [answer.result() for answer in answers] == [400] * 6


def test_limits_are_kept_in_memory(cut_off_app: Flask) -> None:
    client = cut_off_app.test_client()
    wrong = {"username": "ann", "password": "a wrong password"}
    assert [client.post("/login", data=wrong).status_code for _ in range(11)] == [400] * 10 + [429]
