"""The page that shows an operator what is stuck."""

from __future__ import annotations

from datetime import timedelta

from flask import Flask
from sqlalchemy import select

from tests.conftest import PASSWORD, make_user
from webapp.extensions import database_now, db
from webapp.models import Dataset, JobStatus, Role, Worker


def table(page: str, name: str) -> str:
    """Return the text of the table with that id."""
    return page.split(f'id="{name}"')[1].split("</table>")[0]


def test_stuck_and_running_jobs_are_told_apart(any_database_app: Flask) -> None:
    make_user(any_database_app, "root", Role.ADMIN)
    browser = any_database_app.test_client()
    browser.post("/login", data={"username": "root", "password": PASSWORD})
    empty = browser.get("/admin/operations").text
    assert "Nothing is stuck." in empty
    assert "Nothing runs." in empty
    with any_database_app.app_context():
        now = db.session.scalar(select(database_now()))
        assert now is not None

        def add(letter: str, status: JobStatus, made_s: float, **columns: object) -> None:
            made = now - timedelta(seconds=made_s)
            db.session.add(Dataset(id=letter * 32, name=letter, archive_key=letter, status=status, created_at=made, **columns))

        add("a", JobStatus.QUEUED, 400)
        add("b", JobStatus.QUEUED, 10)
        add("c", JobStatus.RUNNING, 900, lease_owner="train-dead", lease_expires_at=now - timedelta(seconds=30))
        alive = {"lease_owner": "train-alive", "lease_expires_at": now + timedelta(seconds=600), "stage": "Reading", "progress": 0.25}
        add("d", JobStatus.RUNNING, 900, **alive)
        add("e", JobStatus.DONE, 900)
        db.session.add(Worker(id="w", queue="train", host="hosty", pid=1, started_at=now, seen_at=now))
        db.session.commit()
    page = browser.get("/admin/operations/progress").text
    stuck, running = table(page, "stuck"), table(page, "running")
    assert [letter for letter in "abcde" if letter * 32 in stuck] == ["a", "c"]
    assert [letter for letter in "abcde" if letter * 32 in running] == ["d"]
    assert all(text in running for text in ("train-alive", "Reading", "25 %"))
    assert '<th scope="row">Data sets</th><td>train</td><td class="number">2</td><td>7 min</td>' in table(page, "queues")
    assert "hosty" in table(page, "workers")
