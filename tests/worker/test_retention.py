"""What goes because it was kept for long enough."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import ColumnElement, func, select, text, update

from tests.conftest import app_on, make_user
from tests.worker.conftest import install_model, picture, submit, wait_for
from webapp.extensions import db, utc_now
from webapp.models import (
    ORIGINAL_REMOVED,
    Act,
    ApiToken,
    AuditCheck,
    AuditEvent,
    Heatmap,
    IdempotentRequest,
    JobStatus,
    Prediction,
    Scan,
    retry,
)
from webapp.storage import Storage, StorageError, storage
from worker import heat_maps, leases, orphaned_files, prediction, retention, sweep, tasks

KINDS = ("originals", "images", "thumbnails", "heatmaps")


def keys() -> list[str]:
    """Return what is stored, models aside."""
    return [key for kind in KINDS for key in storage.keys(kind)]


def age(scan_id: str, days: float) -> None:
    """Let a scan have been submitted, and have ended if it has, so many days ago."""
    then = utc_now() - timedelta(days=days)
    db.session.execute(update(Scan).where(Scan.id == scan_id).values(queued_at=then))
    db.session.execute(
        update(Scan)
        .where(Scan.id == scan_id, Scan.finished_at.is_not(None))
        .values(finished_at=then)
    )
    db.session.commit()


def removed_at(scan_id: str) -> datetime | None:
    """Return when the scan's original was removed."""
    return db.session.scalars(select(Scan.original_removed_at).where(Scan.id == scan_id)).one()


def test_scans_go_with_all_their_files_after_so_many_days(any_worker_app: Flask) -> None:
    install_model()
    old, young = submit(picture(1), picture(2))
    tasks.predict_scans()
    for scan_id, days in ((old, 30.1), (young, 29.9)):
        age(scan_id, days)
    retention.remove_expired()
    assert len(keys()) == 8  # Without a setting everything stays.

    any_worker_app.config["KEEP_SCANS_DAYS"] = 30
    retention.remove_expired()
    assert db.session.scalars(select(Scan.id)).all() == [young]
    assert [
        db.session.scalar(select(func.count()).select_from(table))
        for table in (Prediction, Heatmap)
    ] == [1, 1]
    assert len(keys()) == 4 and not [key for key in keys() if old in key]


def test_originals_go_after_so_many_days_and_their_rows_say_so(any_worker_app: Flask) -> None:
    install_model()
    old, young = submit(picture(1), picture(2))
    tasks.predict_scans()
    for scan_id, days in ((old, 7.1), (young, 6.9)):
        age(scan_id, days)
    any_worker_app.config["KEEP_ORIGINALS_DAYS"] = 7
    retention.remove_expired()
    first = removed_at(old)
    assert (first is not None, removed_at(young)) == (True, None)
    assert storage.keys("originals") == [f"originals/{young}.png"]
    assert len(keys()) == 7
    retention.remove_expired()
    assert removed_at(old) == first  # Once is enough.


@pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.RUNNING])
def test_a_scan_that_waits_or_is_read_is_kept_however_old(
    any_worker_app: Flask, status: JobStatus
) -> None:
    (scan_id,) = submit(picture())
    # It had ended long ago, and is tried again.
    db.session.execute(update(Scan).values(status=JobStatus.FAILED, finished_at=utc_now()))
    age(scan_id, 1000)
    assert retry(scan_id)
    if status == JobStatus.RUNNING:
        leases.claim(Scan, "somebody")
    db.session.commit()
    any_worker_app.config.update(KEEP_SCANS_DAYS=1, KEEP_ORIGINALS_DAYS=1)
    retention.remove_expired()
    assert db.session.scalars(select(Scan.status)).one() == status
    assert (removed_at(scan_id), keys()) == (None, [f"originals/{scan_id}.png"])


def test_many_scans_go_in_bounded_batches(
    any_worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = submit(*[picture()] * 5)
    db.session.execute(update(Scan).values(status=JobStatus.CANCELLED, finished_at=utc_now()))
    for scan_id in ids:
        age(scan_id, 2)
    monkeypatch.setattr(retention, "AT_ONCE", 2)
    real, batches = retention.delete_scans, []

    def counted(which: ColumnElement[bool], most: int) -> int:
        batches.append(real(which, most))
        return batches[-1]

    monkeypatch.setattr(retention, "delete_scans", counted)
    any_worker_app.config["KEEP_SCANS_DAYS"] = 1
    retention.remove_expired()
    assert batches == [2, 2, 1, 0]
    assert (db.session.scalars(select(Scan.id)).all(), keys()) == ([], [])


def test_what_another_maintenance_process_removes_is_left_to_it(
    postgres_url: str, tmp_path: Path
) -> None:
    app = app_on(postgres_url, tmp_path, KEEP_SCANS_DAYS=1, KEEP_ORIGINALS_DAYS=1)
    make_user(app, "ann")
    with app.app_context():
        taken, free = submit(picture(1), picture(2))
        db.session.execute(update(Scan).values(status=JobStatus.DONE, finished_at=utc_now()))
        for scan_id in (taken, free):
            age(scan_id, 2)
        with db.engine.connect() as other, other.begin():
            other.execute(select(Scan.id).where(Scan.id == taken).with_for_update())
            retention.remove_expired()  # It would wait for ever otherwise.
        assert (db.session.scalars(select(Scan.id)).all(), removed_at(taken)) == ([taken], None)
        db.session.remove()
        db.engine.dispose()


def test_without_its_original_a_scan_cannot_be_read_again_and_its_heat_map_says_why(
    any_worker_app: Flask,
) -> None:
    install_model()
    failed, done = submit(b"no picture", picture())
    prediction.answer_next_scans()
    for scan_id in (failed, done):
        age(scan_id, 2)
    any_worker_app.config["KEEP_ORIGINALS_DAYS"] = 1
    retention.remove_expired()
    assert not retry(failed)
    db.session.commit()
    assert heat_maps.draw_next_heatmap()
    assert db.session.execute(select(Heatmap.status, Heatmap.error)).one() == (
        JobStatus.FAILED,
        ORIGINAL_REMOVED,
    )


def test_answers_go_after_a_day_and_expired_tokens_after_a_month(any_worker_app: Flask) -> None:
    user_id = make_user(any_worker_app, "bob")
    now = utc_now()
    for hours, days in ((23, 29), (25, 31)):
        values = {"fingerprint": "f", "claimed_until": now, "status": 202, "body": "{}"}
        created_at = now - timedelta(hours=hours)
        db.session.add(
            IdempotentRequest(user_id=user_id, key=f"{hours}", created_at=created_at, **values)
        )
        token = {"user_id": user_id, "name": f"{days}", "scopes": "read"}
        expires_at = now - timedelta(days=days)
        db.session.add(ApiToken(secret_hash=f"{days}", expires_at=expires_at, **token))
    db.session.add(ApiToken(secret_hash="never", **token))
    db.session.commit()

    retention.remove_old_answers()
    retention.remove_expired_tokens()

    assert db.session.scalars(select(IdempotentRequest.key)).all() == ["23"]
    assert set(db.session.scalars(select(ApiToken.secret_hash))) == {"29", "never"}


def test_an_original_that_the_storage_would_not_let_go_is_an_orphan(
    any_worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    (scan_id,) = submit(picture())
    tasks.predict_scans()
    age(scan_id, 2)
    any_worker_app.config["KEEP_ORIGINALS_DAYS"] = 1

    def away(self: Storage, key: str) -> None:
        raise StorageError("A stored file cannot be removed.")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "delete", away)
        retention.remove_expired()
    assert removed_at(scan_id) is not None and len(keys()) == 4
    monkeypatch.setattr(orphaned_files, "ABANDONED_AFTER", timedelta(seconds=-60))
    orphaned_files.remove_orphans()
    assert len(keys()) == 3 and storage.keys("originals") == []


def test_orphans_are_removed_also_where_what_is_too_old_cannot_be(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    fail.__name__ = "remove_expired"
    came: list[str] = []
    monkeypatch.setattr(retention, "remove_expired", fail)
    monkeypatch.setattr(retention, "remove_orphans", lambda: came.append("here"))
    tasks.clean_up()
    wait_for(lambda: came == ["here"] and not retention._cleaning_up.locked())
    assert "remove_expired failed" in caplog.text


def test_the_audit_log_is_sealed_by_sweeps_trimmed_after_so_many_days_and_verified(
    worker_app: Flask,
) -> None:
    for days in (40, 1):
        at = utc_now() - timedelta(days=days)
        db.session.add(AuditEvent(act=Act.LOGGED_IN, address="192.0.2.1", at=at))
    db.session.commit()
    sweep.sweep()
    retention.keep_audit_log()
    check = db.session.scalars(select(AuditCheck)).one()
    assert (check.events, check.problem) == (2, None)
    worker_app.config["KEEP_AUDIT_DAYS"] = 30
    retention.keep_audit_log()
    sweep.sweep()
    retention.keep_audit_log()
    check = db.session.scalars(select(AuditCheck)).one()
    assert (check.events, check.position, check.problem) == (2, 3, None)
    acts = db.session.scalars(select(AuditEvent.act).order_by(AuditEvent.id)).all()
    assert acts == [Act.LOGGED_IN, Act.AUDIT_TRIMMED]


def test_a_broken_audit_log_is_not_trimmed_so_that_the_alarm_stays(worker_app: Flask) -> None:
    for days in (60, 40, 1):
        at = utc_now() - timedelta(days=days)
        db.session.add(AuditEvent(act=Act.LOGGED_IN, address="192.0.2.1", at=at))
    db.session.commit()
    retention.keep_audit_log()
    db.session.execute(text("DROP TRIGGER IF EXISTS audit_event_refuses_update"))
    db.session.execute(text("UPDATE audit_event SET address = 'x' WHERE id = 1"))
    db.session.commit()
    worker_app.config["KEEP_AUDIT_DAYS"] = 30
    for _ in range(2):
        retention.keep_audit_log()
        problem = db.session.scalars(select(AuditCheck.problem)).one()
        assert problem is not None and problem.startswith("Event 1, dated")
    assert db.session.scalar(select(func.count()).select_from(AuditEvent)) == 3
