"""What pages and scrapes read of a database with 100,000 finished and 10,000 queued scans: rows,
not milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from flask import Flask
from sqlalchemy import JSON, Text, case, cast, false, func, insert, literal, select, text
from sqlalchemy.dialects.postgresql import array

from tests.conftest import (
    PASSWORD,
    POSTGRES,
    answers,
    app_on,
    empty_postgres_database,
    make_user,
    unreachable,
)
from tests.plans import rows_touched, statements
from webapp.extensions import database_now, db
from webapp.models import (
    ApiToken,
    JobStatus,
    ModelVersion,
    Prediction,
    Role,
    Scan,
    Scope,
    User,
    urgent_room,
)
from webapp.models.accounts import secret_hash
from webapp.scans.worklist_query import count_of, has_pending
from webapp.space import cap_is_reached, quota_problem

PEOPLE, FINISHED, QUEUED = 100, 100_000, 10_000
TOKEN = "sesame"
OWN = (FINISHED + QUEUED) // PEOPLE


@pytest.fixture(scope="module")
def full_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """An application on PostgreSQL in which a hundred people have a thousand verdicts each, and a
    hundred scans that wait.
    """
    if not answers(POSTGRES):
        unreachable("PostgreSQL")
    with empty_postgres_database() as url:
        app = app_on(url, tmp_path_factory.mktemp("home"), METRICS_TOKEN=TOKEN)
        people = [
            make_user(app, f"person-{number}", Role.USER if number else Role.ADMIN)
            for number in range(PEOPLE)
        ]
        with app.app_context():
            db.session.add(
                ApiToken(
                    user_id=people[0],
                    name="test",
                    secret_hash=secret_hash(TOKEN),
                    scopes=" ".join(Scope),
                )
            )
            fill(people)
            yield app
            db.session.remove()
            db.engine.dispose()


def fill(people: list[str]) -> None:
    """Insert the rows, oldest first, in a few statements; the planner's statistics are those of a
    database in use.
    """
    version = ModelVersion(
        card_id="a card", architecture="alexnet", reads="slice", storage_prefix="models/x", card={}
    )
    db.session.add(version)
    db.session.flush()
    number = func.generate_series(1, FINISHED + QUEUED).column_valued("number")
    scan = {
        "id": func.md5(cast(number, Text)),
        "user_id": array(people)[1 + number % PEOPLE],
        "study_id": func.md5(cast(number, Text)),
        "kind": literal("png"),
        "original_key": literal("originals/x.png"),
        "status": case((number <= FINISHED, JobStatus.DONE.value), else_=JobStatus.QUEUED.value),
        "created_at": database_now(-7200) + number * timedelta(milliseconds=10),
        "queued_at": database_now(-7200) + number * timedelta(milliseconds=10),
    }
    db.session.execute(insert(Scan).from_select([*scan], select(*scan.values())))
    prediction = {
        "id": func.md5(Scan.id),
        "scan_id": Scan.id,
        "model_version_id": literal(version.id),
        "probability": literal(0.1),
        "threshold": literal(0.5),
        "positive": false(),
        "uncertain": false(),
        "warnings": literal([], JSON),
        "slices": literal([0.1], JSON),
        "seconds": literal(0.1),
    }
    db.session.execute(
        insert(Prediction).from_select(
            [*prediction], select(*prediction.values()).where(Scan.status == JobStatus.DONE)
        )
    )
    db.session.commit()
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE scan, prediction"))


def rows_for(app: Flask, path: str) -> int:
    """Return how many rows PostgreSQL touches to answer a request of the first person, who is an
    admin and has a token.
    """
    client = app.test_client()
    client.post("/login", data={"username": "person-0", "password": PASSWORD})
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {TOKEN}"
    with statements() as sent:
        assert client.get(path).status_code == 200
    return sum(rows_touched(statement) for statement in sent)


@pytest.mark.parametrize(
    "path",
    [
        "/scans",
        "/scans?page=20",
        "/scans?page=20&order=risk",
        "/scans?page=20&order=-title&title=e&status=done",
        "/scans?verdict=suspected&priority=routine&since=2020-01-01&order=-probability",
        "/api/v1/scans",
        "/api/v1/scans?limit=100&status=done&order=risk",
    ],
)
def test_a_persons_history_reads_no_scan_of_anybody_else(full_app: Flask, path: str) -> None:
    assert rows_for(full_app, path) < 10 * OWN


def test_an_upload_and_the_last_page_read_as_many_rows_as_of_a_person_with_few(
    full_app: Flask,
) -> None:
    owner = db.session.scalars(select(User.id).filter_by(username="person-0")).one()
    with statements() as sent:
        assert urgent_room(owner) == full_app.config["MAX_STAT"]
        assert quota_problem(owner) is None
        assert not cap_is_reached()
        assert has_pending(owner)
        assert count_of(owner, {}) == (OWN, OWN)
    db.session.rollback()
    assert sum(map(rows_touched, sent)) < 3 * PEOPLE
    # A page of 50 is read by several queries.
    assert rows_for(full_app, f"/scans?page={OWN // 50}") < 20 * 50


def test_a_scans_page_reads_a_handful_of_rows(full_app: Flask) -> None:
    (waiting,) = db.session.scalars(
        select(Scan.id)
        .where(Scan.status == JobStatus.QUEUED)
        .join(Scan.user)
        .filter_by(username="person-0")
        .limit(1)
    )
    for path in (f"/scans/{waiting}", f"/scans/{waiting}/progress"):
        assert rows_for(full_app, path) < 20


def test_the_operations_page_reads_the_queue_once_and_nothing_that_has_ended(
    full_app: Flask,
) -> None:
    assert rows_for(full_app, "/admin") < 3 * QUEUED


@pytest.mark.parametrize(
    "path", ["/admin/users", "/admin/runs", "/admin/datasets", "/admin/models"]
)
def test_the_lists_of_the_administration_read_no_scan(full_app: Flask, path: str) -> None:
    assert rows_for(full_app, path) < 10 * PEOPLE


def test_a_scrape_reads_each_row_once(full_app: Flask) -> None:
    assert rows_for(full_app, "/metrics") < 3 * (FINISHED + QUEUED)
