"""Who is at work, what waits, and what is live."""

from __future__ import annotations

from datetime import timedelta

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from tests.webapp.admin.conftest import add_run, add_version
from webapp.extensions import database_now, db
from webapp.jobs import PREDICT, TRAIN
from webapp.models import JobStatus, ModelVersion, Worker, promote


class TestOverview:
    def test_a_worker_is_alive_while_the_database_clock_is_within_its_lease(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            now = db.session.scalar(select(database_now()))
            assert now is not None
            for id, queue, age_s in (("a", PREDICT, 1), ("b", TRAIN, 600)):
                seen = now - timedelta(seconds=age_s)
                db.session.add(Worker(id=id, queue=queue, host=f"host-{id}", pid=1, started_at=seen, seen_at=seen))
            db.session.commit()
        page = admin.get("/admin").text
        alive, silent = page.split("host-b")
        assert "host-a" in alive and ">alive<" in alive
        assert ">silent<" in silent and "10 min ago" in silent

    def test_queues_are_counted_by_state(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            for _ in range(3):
                add_run(JobStatus.QUEUED)
            add_run(JobStatus.FAILED)
            add_run(JobStatus.DONE)
        row = admin.get("/admin/progress").text.split("Training runs")[1].split("</tr>")[0]
        assert [cell.split("<")[0] for cell in row.split('class="number">')[1:]] == ["3", "0", "1"]

    def test_the_live_version_is_named(self, app: Flask, admin: FlaskClient) -> None:
        assert "No model is live" in admin.get("/admin").text
        with app.app_context():
            promote(db.session.get_one(ModelVersion, add_version("card-one")), None, "First.")
            db.session.commit()
        page = admin.get("/admin").text
        assert "card-one" in page and "No model is live" not in page
