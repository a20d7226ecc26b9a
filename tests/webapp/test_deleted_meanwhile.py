"""What somebody deletes between another person's read and write: a sentence with 409, as a page and
in the API, on both databases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import delete, event, func, select
from sqlalchemy.orm import Session

from tests.conftest import PASSWORD, make_user
from tests.webapp.admin.conftest import add_dataset, add_run, add_version
from tests.webapp.review.test_opinions import add_done
from tests.webapp.test_api import make_token
from webapp.errors import DELETED
from webapp.extensions import db
from webapp.models import (
    Dataset,
    Evaluation,
    IdempotentRequest,
    JobStatus,
    Opinion,
    Report,
    Role,
    Scan,
    Share,
    TrainingRun,
    User,
)

RUN = {"architecture": "alexnet_svm", "initial_weights": "random"}
LAUNCH = {**RUN, "seed": "0", "setting-controls": "none"}


@pytest.fixture
def deleted_before() -> Iterator[Callable[[type[Any], type[Any]], None]]:
    """`deleted_before(Opinion, Scan)` has all scans deleted just before an opinion is written."""
    listeners: list[Any] = []

    def arrange(written: type[Any], deleted: type[Any]) -> None:
        def delete_first(session: Session, *_: object) -> None:
            if any(isinstance(row, written) for row in session.new):
                session.connection().execute(delete(deleted.__table__))

        event.listen(Session, "before_flush", delete_first)
        listeners.append(delete_first)

    yield arrange
    for listener in listeners:
        event.remove(Session, "before_flush", listener)


@pytest.fixture
def browser(any_database_app: Flask) -> FlaskClient:
    """A browser in which the administrator Ann is logged in."""
    make_user(any_database_app, "ann", Role.ADMIN)
    client = any_database_app.test_client()
    assert client.post("/login", data={"username": "ann", "password": PASSWORD}).status_code == 302
    return client


@pytest.fixture
def program(any_database_app: Flask, browser: FlaskClient) -> FlaskClient:
    """An API client of hers."""
    with any_database_app.app_context():
        ann = db.session.scalars(select(User.id)).one()
    client = any_database_app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {make_token(any_database_app, ann)}"
    return client


def rows(app: Flask, table: type[Any]) -> int:
    """Return how many rows a table has."""
    with app.app_context():
        return db.session.scalar(select(func.count()).select_from(table)) or 0


@pytest.mark.parametrize(
    ("path", "sent", "written"),
    [
        ("/scans/{}/opinions", {"finding": "present"}, Opinion),
        ("/scans/{}/shares", {"username": "bob"}, Share),
        ("/scans/{}/reports/pdf", {}, Report),
    ],
)
@pytest.mark.parametrize("is_program", [False, True])
def test_what_is_written_about_a_deleted_scan_is_refused(
    any_database_app: Flask,
    browser: FlaskClient,
    program: FlaskClient,
    deleted_before: Callable[[type[Any], type[Any]], None],
    path: str,
    sent: dict[str, str],
    written: type[Any],
    is_program: bool,
) -> None:
    make_user(any_database_app, "bob")
    scan_id = add_done(any_database_app)
    deleted_before(written, Scan)
    address = path.format(scan_id)
    if is_program:
        send = program.put if written is Opinion else program.post
        answer = send(f"/api/v1{address}", json=sent or None)
        assert answer.mimetype == "application/problem+json"
        assert answer.get_json(force=True)["detail"] == DELETED
    else:
        answer = browser.post(address, data=sent)
        assert DELETED in answer.text
    assert answer.status_code == 409
    assert rows(any_database_app, written) == 0


@pytest.mark.parametrize("is_program", [False, True])
def test_a_run_on_a_data_set_that_is_deleted_meanwhile_is_refused(
    any_database_app: Flask,
    browser: FlaskClient,
    program: FlaskClient,
    deleted_before: Callable[[type[Any], type[Any]], None],
    is_program: bool,
) -> None:
    with any_database_app.app_context():
        dataset_id = add_dataset("heads")
    deleted_before(TrainingRun, Dataset)
    if is_program:
        answer = program.post("/api/v1/runs", json={**RUN, "dataset_ids": [dataset_id]})
    else:
        answer = browser.post("/admin/runs/new", data={**LAUNCH, "datasets": [dataset_id]})
    assert answer.status_code == 409 and "has just been deleted" in answer.text
    assert rows(any_database_app, TrainingRun) == 0


def test_an_evaluation_on_a_data_set_that_is_deleted_meanwhile_is_refused(
    any_database_app: Flask,
    browser: FlaskClient,
    program: FlaskClient,
    deleted_before: Callable[[type[Any], type[Any]], None],
) -> None:
    with any_database_app.app_context():
        dataset_id, version_id = add_dataset("heads"), add_version("a")
    deleted_before(Evaluation, Dataset)
    body = {"version_id": version_id, "dataset_id": dataset_id}
    answer = program.post("/api/v1/evaluations", json=body)
    assert answer.status_code == 409 and "deleted" in answer.get_json(force=True)["detail"]
    page = browser.post(
        f"/admin/models/{version_id}/evaluate", data={"dataset": dataset_id}, follow_redirects=True
    )
    assert page.status_code == 200 and "were deleted" in page.text
    assert rows(any_database_app, Evaluation) == 0


def test_a_repeatable_request_of_an_account_that_is_deleted_meanwhile_ends(
    any_database_app: Flask,
    program: FlaskClient,
    deleted_before: Callable[[type[Any], type[Any]], None],
) -> None:
    with any_database_app.app_context():
        version_id, dataset_id = add_version("a"), add_dataset("heads")
    deleted_before(IdempotentRequest, User)
    answer = program.post(
        "/api/v1/evaluations",
        json={"version_id": version_id, "dataset_id": dataset_id},
        headers={"Idempotency-Key": "one"},
    )
    assert answer.status_code == 409 and answer.get_json(force=True)["detail"] == DELETED


def test_a_run_does_not_start_with_fewer_data_sets_than_were_chosen(
    any_database_app: Flask, program: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with any_database_app.app_context():
        one, other = add_dataset("one"), add_dataset("other")

    def delete_one(*_: object) -> list[str]:
        db.session.execute(delete(Dataset).where(Dataset.id == other))
        return []

    monkeypatch.setattr("webapp.api.runs.versions_of_one", delete_one)
    answer = program.post("/api/v1/runs", json={**RUN, "dataset_ids": [one, other]})
    assert answer.status_code == 409 and "has just been deleted" in answer.text
    assert rows(any_database_app, TrainingRun) == 0


def test_another_broken_constraint_is_not_reported_as_a_deletion(
    any_database_app: Flask, browser: FlaskClient
) -> None:
    def twice() -> None:
        add_run(JobStatus.QUEUED, id="1" * 32)
        db.session.expunge_all()
        add_run(JobStatus.QUEUED, id="1" * 32)

    any_database_app.config["PROPAGATE_EXCEPTIONS"] = False
    any_database_app.view_functions["worklist.show"] = twice
    assert browser.get("/scans").status_code == 500
