"""/healthz and /readyz."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import event

from webapp import create_app
from webapp.extensions import database_now, db, utc_now
from webapp.models import Worker


def add_worker(
    app: Flask,
    queue: str,
    *,
    seen_s_ago: float = 0,
    delivered_s_ago: float | None = None,
    alarm: str | None = None,
) -> None:
    """Add the row of a worker, its times on the database's clock."""
    with app.app_context():
        now = db.session.scalar(db.select(database_now(-seen_s_ago)))
        delivered = (
            None
            if delivered_s_ago is None
            else db.session.scalar(db.select(database_now(-delivered_s_ago)))
        )
        row = Worker(
            id=f"{queue}@host:{delivered_s_ago}",
            queue=queue,
            host="host",
            pid=1,
            started_at=utc_now(),
            seen_at=now,
            delivered_at=delivered,
            alarm=alarm,
        )
        db.session.add(row)
        db.session.commit()


def test_a_process_that_answers_is_healthy_without_any_worker(app: Flask) -> None:
    answer = app.test_client().get("/healthz")
    assert (answer.status_code, answer.json) == (200, {"status": "up"})


def test_ready_when_a_predict_worker_lives_and_a_message_arrived(any_database_app: Flask) -> None:
    add_worker(any_database_app, "predict")
    add_worker(any_database_app, "maintenance", delivered_s_ago=1)
    answer = any_database_app.test_client().get("/readyz")
    assert answer.json == {
        "status": "ready",
        "checks": {
            "database": True,
            "broker": True,
            "predict_worker": True,
            "free_space": True,
            "storage": True,
        },
    }
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("queue", "seen_s_ago", "delivered_s_ago", "missing"),
    [
        ("predict", 60, 1, "predict_worker"),
        ("train", 0, 1, "predict_worker"),
        ("predict", 0, 60, "broker"),
        ("predict", 0, None, "broker"),
    ],
)
def test_not_ready_names_what_is_missing(
    any_database_app: Flask,
    queue: str,
    seen_s_ago: float,
    delivered_s_ago: float | None,
    missing: str,
) -> None:
    add_worker(any_database_app, queue, seen_s_ago=seen_s_ago, delivered_s_ago=delivered_s_ago)
    answer = any_database_app.test_client().get("/readyz")
    assert answer.status_code == 503
    assert [name for name, holds in answer.json["checks"].items() if not holds] == [missing]


def test_a_predict_worker_with_an_alarm_is_missing(any_database_app: Flask) -> None:
    add_worker(any_database_app, "predict", alarm="Model version 1 cannot be loaded: it is cut.")
    add_worker(any_database_app, "maintenance", delivered_s_ago=1)
    answer = any_database_app.test_client().get("/readyz")
    assert (answer.status_code, answer.json["checks"]["predict_worker"]) == (503, False)


def test_readiness_is_one_statement(app: Flask) -> None:
    statements: list[str] = []
    with app.app_context():
        event.listen(db.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    app.test_client().get("/readyz")
    assert [text.split()[0] for text in statements if not text.startswith("BEGIN")] == ["SELECT"]


@pytest.mark.parametrize("database", ["a closed port", "a folder"])
def test_a_dead_database_is_reported_at_once_and_without_a_traceback(
    database: str, tmp_path: Path
) -> None:
    url = (
        "postgresql://nobody@127.0.0.1:9/none"
        if database == "a closed port"
        else f"sqlite:///{tmp_path}"
    )
    broken = app_without_tables(url, tmp_path)
    began = time.monotonic()
    answer = broken.test_client().get("/readyz")
    assert answer.status_code == 503
    assert answer.json == {
        "status": "not ready",
        "checks": {
            "database": False,
            "broker": None,
            "predict_worker": None,
            "free_space": None,
            "storage": False,
        },
    }
    assert time.monotonic() - began < 5
    assert broken.test_client().get("/healthz").status_code == 200


def app_without_tables(database_url: str, home: Path) -> Flask:
    """Return an application whose database was never reached."""
    return create_app(
        {
            "SECRET_KEY": "not a secret",
            "HEMOSCAN_HOME": home,
            "DATABASE_URL": database_url,
            "BROKER_URL": "redis://127.0.0.1:9",
        }
    )


def test_health_is_exempt_from_the_rate_limit_and_sets_no_cookie(app: Flask) -> None:
    answer = app.test_client().get("/healthz")
    assert "X-RateLimit-Limit" not in answer.headers
    assert "Set-Cookie" not in answer.headers
