"""The page that shows an operator what is live, what is stuck, what waits, and who is at work."""

from __future__ import annotations

import re
from datetime import timedelta

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from tests.conftest import PASSWORD, make_user
from tests.webapp.admin.conftest import add_run, add_version
from webapp.extensions import database_now, db
from webapp.jobs import PREDICT, TRAIN
from webapp.models import (
    Act,
    AuditEvent,
    Dataset,
    JobStatus,
    ModelVersion,
    ReceivedScan,
    ReceivedStudy,
    ResultDelivery,
    Role,
    Scan,
    User,
    Worker,
    promote,
)


def table(page: str, name: str) -> str:
    """Return the text of the table with that id."""
    return page.split(f'id="{name}"')[1].split("</table>")[0]


def test_stuck_and_running_jobs_are_distinguished(any_database_app: Flask) -> None:
    make_user(any_database_app, "root", Role.ADMIN)
    browser = any_database_app.test_client()
    browser.post("/login", data={"username": "root", "password": PASSWORD})
    empty = browser.get("/admin").text
    assert "Nothing is stuck." in empty
    assert "Nothing is running." in empty
    with any_database_app.app_context():
        now = db.session.scalar(select(database_now()))
        assert now is not None

        def add(letter: str, status: JobStatus, made_s: float, **columns: object) -> None:
            made = now - timedelta(seconds=made_s)
            db.session.add(
                Dataset(
                    id=letter * 32,
                    name=letter,
                    archive_key=letter,
                    status=status,
                    queued_at=made,
                    **columns,
                )
            )

        add("a", JobStatus.QUEUED, 400)
        add("b", JobStatus.QUEUED, 10)
        add(
            "c",
            JobStatus.RUNNING,
            900,
            lease_owner="train-dead",
            lease_expires_at=now - timedelta(seconds=30),
        )
        alive = {
            "lease_owner": "train-alive",
            "lease_expires_at": now + timedelta(seconds=600),
            "stage": "Reading",
            "progress": 0.25,
        }
        add("d", JobStatus.RUNNING, 900, **alive)
        add("e", JobStatus.DONE, 900)
        db.session.add(
            Worker(id="w", queue="train", host="hosty", pid=1, started_at=now, seen_at=now)
        )
        db.session.commit()
    page = browser.get("/admin/progress").text
    stuck, running = table(page, "stuck"), table(page, "running")
    assert [letter for letter in "abcde" if letter * 32 in stuck] == ["a", "c"]
    assert [letter for letter in "abcde" if letter * 32 in running] == ["d"]
    assert all(text in running for text in ("train-alive", "Reading", "25%"))
    row = table(page, "queues").split("Data sets")[1].split("</tr>")[0]
    assert re.findall(">([^<>]+)<", row) == ["train", "2", "7 min", "2", "0"]
    assert "hosty" in table(page, "workers")


def test_a_worker_is_alive_while_the_database_clock_is_within_its_lease(
    app: Flask, admin: FlaskClient
) -> None:
    with app.app_context():
        now = db.session.scalar(select(database_now()))
        assert now is not None
        for id, queue, age_s in (("a", PREDICT, 1), ("b", TRAIN, 600)):
            seen = now - timedelta(seconds=age_s)
            db.session.add(
                Worker(id=id, queue=queue, host=f"host-{id}", pid=1, started_at=seen, seen_at=seen)
            )
        db.session.commit()
    page = admin.get("/admin").text
    alive, silent = page.split("host-b")
    assert "host-a" in alive and ">alive<" in alive
    assert ">not responding<" in silent and "10 min ago" in silent


def test_queues_are_counted_by_state(app: Flask, admin: FlaskClient) -> None:
    with app.app_context():
        for _ in range(3):
            add_run(JobStatus.QUEUED)
        add_run(JobStatus.FAILED)
        add_run(JobStatus.DONE)
    row = admin.get("/admin/progress").text.split("Training runs")[1].split("</tr>")[0]
    assert [cell.split("<")[0] for cell in row.split('class="number">')[1:]] == ["3", "0", "1"]


def test_the_live_version_is_named(app: Flask, admin: FlaskClient) -> None:
    assert "No model is live" in admin.get("/admin").text
    with app.app_context():
        promote(db.session.get_one(ModelVersion, add_version("card-one")), None, "First.")
        db.session.commit()
    page = admin.get("/admin").text
    assert "card-one" in page and "No model is live" not in page


def test_what_came_by_dicom_and_what_did_not_go_back_is_listed_and_can_be_acted_on(
    app: Flask, admin: FlaskClient
) -> None:
    assert "DICOM" not in admin.get("/admin").text
    with app.app_context():
        user_id = db.session.scalar(select(User.id))
        scan = Scan(user_id=user_id, kind="dicom", original_key="x", status=JobStatus.DONE)
        db.session.add(scan)
        db.session.flush()
        db.session.add_all(
            [
                ReceivedStudy(
                    sent_by="CT1", user_id=user_id, files=3, scans=0, sentence="A bad one."
                ),
                ReceivedStudy(sent_by="CT2", user_id=user_id, files=4, scans=0),
                ReceivedScan(scan_id=scan.id, study_hash="x", instances=[], sealed_link="sealed"),
            ]
        )
        delivery = ResultDelivery(
            user_id=user_id,
            scan_id=scan.id,
            destination="pacs",
            error="It is down.",
            tries=2,
            retry_at=database_now(1800),
            queued_at=database_now(-3600),
        )
        db.session.add(delivery)
        db.session.commit()
        address = f"/admin/results/{delivery.id}"
    page = admin.get("/admin").text
    assert "Nothing is stuck." in page  # It waits for its next try.
    assert "It is down." in table(page, "unsent-results") and address in page
    assert "A bad one." in table(page, "received")
    assert "Resent without changes" in table(page, "received").split("CT2")[1]

    assert admin.post(f"{address}/retry").status_code == 302
    with app.app_context():
        (row,) = db.session.scalars(select(ResultDelivery))
        assert (row.status, row.retry_at) == (JobStatus.QUEUED, None)
    assert admin.post(f"{address}/cancel").status_code == 302
    assert (
        "sent or canceled in the meantime"
        in admin.post(f"{address}/cancel", follow_redirects=True).text
    )
    assert "It is down." not in admin.get("/admin").text
    with app.app_context():
        assert db.session.scalars(select(ReceivedScan.sealed_link)).all() == [None]
        acts = db.session.scalars(select(AuditEvent.act).where(AuditEvent.object_id == row.id))
        assert list(acts) == [Act.RESULT_SENT_AGAIN, Act.RESULT_CANCELLED]
