"""What brings work back."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import delete, insert, select, text, update

from tests.worker.conftest import picture, submit
from webapp import jobs
from webapp.extensions import UtcDateTime, database_now, db, utc_now
from webapp.models import Dataset, JobStatus, Leased, Scan, TrainingRun, Worker
from worker import leases, sweep
from worker.heartbeat import Heartbeat, heartbeat


@pytest.fixture
def nudges(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The nudges that were sent; the broker's queues are empty."""
    sent: list[str] = []

    def note(task: str) -> bool:
        sent.append(task)
        return True

    monkeypatch.setattr(jobs, "nudge", note)
    monkeypatch.setattr(sweep, "nudges_in", lambda queue: 0)
    return sent


def add_workers(app: Flask, queue: str, count: int) -> None:
    """Let live workers of a queue show up."""
    for _ in range(count):
        Heartbeat(app, queue).beat()


def test_rows_of_a_dead_worker_are_queued_again_and_nudged(
    any_worker_app: Flask, nudges: list[str]
) -> None:
    (scan_id,) = submit(picture())
    leases.claim(Scan, "dead", 8)
    db.session.execute(update(Scan).values(lease_expires_at=database_now(-1)))
    db.session.commit()
    sweep.sweep()
    scan = db.session.get_one(Scan, scan_id, populate_existing=True)
    assert (scan.status, scan.attempts, scan.lease_owner) == ("queued", 1, None)
    assert nudges == [jobs.PREDICT_SCANS]


def test_an_idle_system_is_not_nudged(any_worker_app: Flask, nudges: list[str]) -> None:
    add_workers(any_worker_app, jobs.PREDICT, 2)
    sweep.sweep()
    assert nudges == []


def test_a_worker_with_an_alarm_is_nudged_without_scans(
    any_worker_app: Flask, nudges: list[str]
) -> None:
    # It loads the live model again only when it is nudged, so its alarm would outlast the repair.
    add_workers(any_worker_app, jobs.PREDICT, 2)
    one = select(Worker.id).limit(1).scalar_subquery()
    db.session.execute(update(Worker).where(Worker.id == one).values(alarm="It cannot be loaded."))
    db.session.commit()
    sweep.sweep()
    assert nudges == [jobs.PREDICT_SCANS]


@pytest.mark.parametrize(("rows", "workers", "expected"), [(1, 2, 1), (9, 2, 4), (9, 0, 1)])
def test_nudges_are_as_many_as_rows_and_at_most_two_a_live_worker(
    worker_app: Flask, nudges: list[str], rows: int, workers: int, expected: int
) -> None:
    submit(*[picture()] * rows)
    add_workers(worker_app, jobs.PREDICT, workers)
    sweep.sweep()
    assert nudges == [jobs.PREDICT_SCANS] * expected


def test_nudges_that_wait_already_are_not_sent_again(
    worker_app: Flask, nudges: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(*[picture()] * 4)
    add_workers(worker_app, jobs.PREDICT, 2)
    monkeypatch.setattr(sweep, "nudges_in", lambda queue: 3)
    sweep.sweep()
    assert nudges == [jobs.PREDICT_SCANS]


def test_runs_and_data_sets_wake_the_train_workers(worker_app: Flask, nudges: list[str]) -> None:
    db.session.add(Dataset(name="phantoms", archive_key="x"))
    db.session.add(
        TrainingRun(architecture="alexnet_svm", settings={}, initial_weights="random", seed=1)
    )
    db.session.commit()
    add_workers(worker_app, jobs.TRAIN, 3)
    sweep.sweep()
    assert nudges == [jobs.TRAIN_MODEL] * 2


def test_a_sweep_notes_that_the_broker_delivers(any_worker_app: Flask, nudges: list[str]) -> None:
    heartbeat().beat()
    sweep.sweep()
    delivered = db.session.scalar(
        select(Worker.delivered_at > database_now(-5)).where(Worker.id == heartbeat().owner)
    )
    assert delivered


def test_workers_that_were_silent_for_a_day_are_forgotten(
    any_worker_app: Flask, nudges: list[str]
) -> None:
    add_workers(any_worker_app, jobs.PREDICT, 1)
    heartbeat().beat()
    db.session.execute(
        update(Worker)
        .where(Worker.id != heartbeat().owner)
        .values(seen_at=database_now(-25 * 3600))
    )
    db.session.commit()
    sweep.sweep()
    assert db.session.scalars(select(Worker.id)).all() == [heartbeat().owner]


def test_a_dead_broker_does_not_stop_the_reaping(worker_app: Flask) -> None:
    (scan_id,) = submit(picture())
    leases.claim(Scan, "dead", 1)
    db.session.execute(update(Scan).values(lease_expires_at=database_now(-1)))
    db.session.commit()
    sweep.sweep()
    assert db.session.get_one(Scan, scan_id, populate_existing=True).status == JobStatus.QUEUED


def test_every_leased_table_is_reaped() -> None:
    assert set(sweep.DOING) == set(Leased.__subclasses__()) == set(jobs.QUEUE_OF_TABLE)


def test_a_worker_killed_in_any_job_costs_it_a_try_and_the_third_ends_it_with_a_sentence(
    worker_app: Flask,
) -> None:
    db.session.commit()
    db.session.execute(text("ROLLBACK"))
    db.session.execute(text("PRAGMA foreign_keys = OFF"))  # Rows without what they refer to.
    db.session.execute(text("BEGIN IMMEDIATE"))
    for table in jobs.QUEUE_OF_TABLE:
        db.session.execute(insert(table).values(filled(table)))
        running = {"status": JobStatus.RUNNING, "lease_owner": "gone", "death_counts": True}
        ends: list[JobStatus] = []
        for _ in range(3):
            db.session.execute(update(table).values(**running, lease_expires_at=database_now(-60)))
            ends += leases.reap(table, sweep.DOING[table]).values()
        assert ends == [JobStatus.QUEUED, JobStatus.QUEUED, JobStatus.FAILED]
        error = db.session.scalars(select(table.error)).one()
        assert error == f"The worker stopped three times while it {sweep.DOING[table]}."


def filled(table: type[Leased]) -> dict[str, object]:
    """Return values for the columns that a row must have, of the right types."""
    of_type = {int: 0, float: 0.0, bool: False, dict: {}}
    return {
        column.name: utc_now()
        if isinstance(column.type, UtcDateTime)
        else of_type.get(column.type.python_type, "x")
        for column in table.__table__.c  # type: ignore[attr-defined]
        if not column.nullable
    } | {"status": JobStatus.QUEUED}


def test_a_sweep_survives_a_database_that_others_hold(
    worker_app: Flask, nudges: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.extensions.BUSY_MS", 100)
    db.session.remove()
    db.engine.dispose()
    file = db.engine.url.database
    assert file
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        sweep.sweep()
    submit(picture())
    sweep.sweep()
    assert nudges == [jobs.PREDICT_SCANS]


def test_a_sweep_forgets_what_was_deleted_while_somebody_read(
    worker_app: Flask, nudges: list[str]
) -> None:
    file = db.engine.url.database
    assert file
    submit(picture())
    with closing(sqlite3.connect(file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM scan").fetchall()
        db.session.execute(delete(Scan))
        db.session.commit()
        sweep.sweep()
    sweep.sweep()
    assert Path(f"{file}-wal").stat().st_size == 0
