"""Every error is a sentence: a page for people, problem+json for programs, and never an
internal.
"""

from __future__ import annotations

import io
import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_smorest import abort as abort_with_message
from sqlalchemy.exc import OperationalError
from werkzeug.exceptions import ServiceUnavailable

from tests.conftest import app_on
from webapp.extensions import db
from webapp.storage import MissingFile, StorageError

SECRET = "/patients/Doe^John.dcm"


def close(app: Flask) -> None:
    """Close the application's connections."""
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[FlaskClient]:
    """A browser of an application with some pages that fail."""
    app = app_on(f"sqlite:///{tmp_path / 'test.db'}", tmp_path, PROPAGATE_EXCEPTIONS=False)

    def surprise() -> None:
        try:
            raise KeyError(SECRET)
        except KeyError as err:
            raise RuntimeError(SECRET) from err

    def database_fails() -> None:
        raise OperationalError("SELECT ?", {"phone": SECRET}, Exception(SECRET))

    def file_is_gone() -> None:
        raise MissingFile("A stored file no longer exists.") from FileNotFoundError(SECRET)

    def storage_fails() -> None:
        raise StorageError(
            "The storage did not accept a file; please try again later."
        ) from OSError(SECRET)

    def unavailable() -> None:
        raise ServiceUnavailable

    def teapot() -> None:
        abort_with_message(418, message="Tea only.", errors={"pot": ["round"]})

    for view in (surprise, database_fails, file_is_gone, storage_fails, unavailable, teapot):
        for prefix in ("", "/api/v1"):
            app.add_url_rule(f"{prefix}/{view.__name__}", f"{prefix}{view.__name__}", view)
    yield app.test_client()
    close(app)


PAGES = [
    ("surprise", 500, "Something went wrong on our side."),
    ("database_fails", 500, "Something went wrong on our side."),
    ("file_is_gone", 404, "A stored file no longer exists."),
    ("storage_fails", 503, "The storage did not accept a file; please try again later."),
    ("unavailable", 503, "Part of the service is unavailable"),
    ("teapot", 418, "Tea only."),
    ("nowhere", 404, "Not found, or you do not have access"),
]


@pytest.mark.parametrize(("path", "status", "sentence"), PAGES)
def test_people_get_a_page(broken: FlaskClient, path: str, status: int, sentence: str) -> None:
    answer = broken.get(f"/{path}")
    assert answer.status_code == status
    assert answer.mimetype == "text/html"
    assert sentence in answer.text
    assert "Research use only, never a diagnosis" in answer.text
    assert SECRET not in answer.text


@pytest.mark.parametrize(("path", "status", "sentence"), PAGES)
def test_programs_get_problem_json(
    broken: FlaskClient, path: str, status: int, sentence: str
) -> None:
    answer = broken.get(f"/api/v1/{path}")
    assert answer.status_code == status
    assert answer.mimetype == "application/problem+json"
    problem = answer.get_json(force=True)
    assert set(problem) >= {"type", "title", "status", "detail"}
    assert problem["status"] == status
    assert sentence in problem["detail"]
    assert SECRET not in answer.text


def test_a_schemas_refusals_are_passed_on(broken: FlaskClient) -> None:
    assert broken.get("/api/v1/teapot").get_json(force=True)["errors"] == {"pot": ["round"]}


def test_the_log_says_where_and_what_but_quotes_nothing(
    broken: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        broken.get(f"/surprise?file={SECRET}")
        broken.get("/database_fails")
        broken.get("/storage_fails")
    assert "surprise failed with RuntimeError from KeyError" in caplog.text
    assert "in surprise" in caplog.text
    assert "OperationalError" in caplog.text
    assert "The storage failed at storage_fails: OSError" in caplog.text
    assert SECRET not in caplog.text


def test_a_failure_is_reported_although_the_database_is_gone(broken: FlaskClient) -> None:
    app = broken.application
    broken.post(
        "/signup",
        data={
            "username": "ann",
            "name": "Ann",
            "email": "ann@example.org",
            "password": "a long enough password",
        },
    )
    with app.app_context():
        db.drop_all()
    for path in ("/scans", "/surprise"):
        answer = broken.get(path)
        assert answer.status_code == 500
        assert "Something went wrong on our side." in answer.text


def test_tests_and_debuggers_see_the_exception(app: Flask) -> None:
    def surprise() -> None:
        raise RuntimeError("seen")

    app.add_url_rule("/surprise", view_func=surprise)
    with pytest.raises(RuntimeError, match="seen"):
        app.test_client().get("/surprise")


def test_a_wrong_method_names_the_right_ones(app: Flask) -> None:
    answer = app.test_client().get("/logout")
    assert answer.status_code == 405
    assert "POST" in answer.headers["Allow"]


def test_an_upload_over_the_limit_is_413_with_the_limit(tmp_path: Path) -> None:
    app = app_on(f"sqlite:///{tmp_path / 'test.db'}", tmp_path, MAX_UPLOAD_MB=1)
    client = app.test_client()
    client.post(
        "/signup",
        data={
            "username": "ann",
            "name": "Ann",
            "email": "ann@example.org",
            "password": "a long enough password",
        },
    )
    answer = client.post(
        "/scans", data=bytes(3 * 2**20), content_type="multipart/form-data; boundary=x"
    )
    assert answer.status_code == 413
    assert "larger than 1 MB" in answer.text
    close(app)


def test_a_refused_upload_is_read_to_its_end_so_that_the_sender_gets_the_answer(
    tmp_path: Path,
) -> None:
    app = app_on(
        f"sqlite:///{tmp_path / 'test.db'}", tmp_path, MAX_UPLOAD_MB=1, WTF_CSRF_ENABLED=True
    )

    class Body(io.BytesIO):
        def close(self) -> None:
            """Stay open when the request closes it, so that the rest can be read."""

    body = Body(bytes(3 * 2**20))
    answer = app.test_client().post(
        "/signup",
        input_stream=body,
        content_type="multipart/form-data; boundary=x",
        content_length=3 * 2**20,
    )
    assert answer.status_code == 413
    assert body.read() == b""
    close(app)


def test_a_field_that_fills_the_memory_is_413(app: Flask) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\n'
        + b"x" * 1_000_000
        + b"\r\n--x--\r\n"
    )
    refused = app.test_client().post(
        "/signup", data=body, content_type="multipart/form-data; boundary=x"
    )
    assert refused.status_code == 413
    assert "too many fields, or too long ones" in refused.text


def test_an_error_page_knows_who_is_logged_in(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    answer = logged_in("ann").get("/nowhere")
    assert answer.status_code == 404
    assert "Log out" in answer.text and "if you have an account" not in answer.text
    assert "if you have an account" in app.test_client().get("/nowhere").text


def test_a_database_that_others_lock_asks_for_another_try(
    app: Flask,
    logged_in: Callable[..., FlaskClient],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = logged_in("ann")
    monkeypatch.setattr("webapp.extensions.REQUEST_BUSY_MS", 100)
    with app.app_context():
        db.session.remove()
        db.engine.dispose()
    with closing(sqlite3.connect(tmp_path / "test.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        page = client.post("/logout")
        header = {"Authorization": "Bearer x"}
        problem = client.post("/api/v1/scans", headers=header)
        assert client.get("/account").status_code == 200  # Reading goes on.
    for answer in (page, problem):
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert "The database is busy" in answer.text
    assert client.post("/logout").status_code == 302
