"""/metrics."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import event, select

from webapp import create_app
from webapp.extensions import database_now, db
from webapp.models import Dataset, JobStatus, Worker

TOKEN = {"Authorization": "Bearer sesame"}


def figures(app: Flask) -> dict[str, float]:
    """Return what a scrape reads, by name and labels."""
    app.config["METRICS_TOKEN"] = "sesame"
    answer = app.test_client().get("/metrics", headers=TOKEN)
    assert answer.status_code == 200
    lines = [line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_a_scrape_reads_exact_figures_in_four_statements(any_database_app: Flask) -> None:
    with any_database_app.app_context():
        now = db.session.scalar(select(database_now()))
        assert now is not None

        def add(name: str, status: JobStatus, made_s: float, **columns: object) -> None:
            db.session.add(
                Dataset(
                    name=name,
                    archive_key=name,
                    status=status,
                    queued_at=now - timedelta(seconds=made_s),
                    **columns,
                )
            )

        add("a", JobStatus.QUEUED, 1000, attempts=2)
        add("b", JobStatus.QUEUED, 10)
        ended = {
            "started_at": now - timedelta(seconds=70),
            "finished_at": now - timedelta(seconds=57.5),
        }
        add("c", JobStatus.DONE, 600, attempts=1, **ended)
        add("d", JobStatus.DONE, 600, **ended)
        add(
            "e",
            JobStatus.DONE,
            9000,
            started_at=now - timedelta(seconds=8000),
            finished_at=now - timedelta(seconds=7000),
        )
        add("f", JobStatus.FAILED, 600, **ended)
        for name, seen_s in (("one", 0), ("two", 1), ("gone", 60)):
            seen = now - timedelta(seconds=seen_s)
            alarm = None if name == "one" else "It cannot load its model."
            times = {"started_at": seen, "seen_at": seen}
            db.session.add(Worker(id=name, queue="train", host="host", pid=1, alarm=alarm, **times))
        db.session.commit()
        statements: list[str] = []
        event.listen(db.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    scraped = figures(any_database_app)
    assert [text.split()[0] for text in statements if not text.startswith("BEGIN")] == [
        "SELECT"
    ] * 4
    assert 1000 <= scraped.pop('hemoscan_queue_oldest_age_seconds{queue="train"}') < 1100
    assert {name: value for name, value in scraped.items() if value} == {
        'hemoscan_jobs{state="queued",table="dataset"}': 2,
        'hemoscan_jobs{state="done",table="dataset"}': 3,
        'hemoscan_jobs{state="failed",table="dataset"}': 1,
        'hemoscan_attempts{table="dataset"}': 3,
        'hemoscan_queue_depth{queue="train"}': 2,
        'hemoscan_finished_last_hour{table="dataset"}': 2,
        'hemoscan_seconds_last_hour{table="dataset"}': 25,
        'hemoscan_workers{queue="train"}': 2,
        'hemoscan_worker_alarms{queue="train"}': 1,
    }
    assert scraped['hemoscan_workers{queue="predict"}'] == 0
    assert scraped['hemoscan_worker_alarms{queue="predict"}'] == 0


def test_without_a_token_set_there_is_nothing(app: Flask) -> None:
    assert (
        app.test_client().get("/metrics", headers={"Authorization": "Bearer "}).status_code == 404
    )


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic sesame"}]
)
def test_a_wrong_token_is_401(app: Flask, headers: dict[str, str]) -> None:
    app.config["METRICS_TOKEN"] = "sesame"
    answer = app.test_client().get("/metrics", headers=headers)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert "X-RateLimit-Limit" not in answer.headers


def test_a_database_that_is_away_is_503(tmp_path: Path) -> None:
    url = "postgresql://nobody@127.0.0.1:9/none"
    settings = {
        "SECRET_KEY": "not a secret",
        "HEMOSCAN_HOME": tmp_path,
        "DATABASE_URL": url,
        "BROKER_URL": "redis://127.0.0.1:9",
    }
    broken = create_app({**settings, "METRICS_TOKEN": "sesame"})
    assert broken.test_client().get("/metrics", headers=TOKEN).status_code == 503
