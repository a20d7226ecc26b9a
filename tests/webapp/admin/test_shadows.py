"""The pages of shadows, and the figures on them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from tests.conftest import make_user
from tests.webapp.admin.conftest import add, add_version
from tests.webapp.test_api import make_token
from webapp.extensions import db
from webapp.learning.shadow_figures import agreement_of, cost_of, drift_of
from webapp.models import (
    Act,
    AuditEvent,
    JobStatus,
    ModelVersion,
    Scan,
    Shadow,
    ShadowAnswer,
    Share,
    User,
    end_shadow,
    promote,
)

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)  # A Monday.


def shadow_answers(shadow_id: str, scan_ids: list[str]) -> list[ShadowAnswer]:
    """Return answers of a candidate: the first one agrees, the others do not."""
    return [
        ShadowAnswer(
            shadow_id=shadow_id,
            scan_id=scan_id,
            live_probability=0.9,
            live_threshold=0.5,
            live_state="suspected",
            probability=0.1 if number else 0.8,
            threshold=0.5,
            state="not found" if number else "suspected",
            seconds=0.5,
            status=JobStatus.DONE,
            queued_at=NOON + timedelta(days=number),
            finished_at=NOON,
        )
        for number, scan_id in enumerate(scan_ids)
    ]


def add_scan(user_id: str, title: str = "A head") -> str:
    """Commit an answered scan with a thumbnail; return its id."""
    scan: Scan = add(
        Scan(
            user_id=user_id,
            kind="png",
            original_key="originals/1.png",
            title=title,
            status=JobStatus.DONE,
            thumbnail_key="thumbnails/1.png",
        )
    )
    return scan.id


def two_versions() -> tuple[str, str]:
    """Commit a live version and a candidate; return their ids."""
    live, candidate = add_version("live"), add_version("candidate")
    promote(db.session.get_one(ModelVersion, live), None, "a test")
    db.session.commit()
    return live, candidate


@pytest.fixture
def shadow_id(app: Flask) -> str:
    """A shadow that has answered nothing."""
    with app.app_context():
        live, candidate = two_versions()
        return str(add(Shadow(version_id=candidate, against_id=live, reads="slice")).id)


def test_a_shadow_is_started_once_for_each_kind_and_stopped(app: Flask, admin: FlaskClient) -> None:
    with app.app_context():
        live, candidate = two_versions()
        other, blocked = add_version("other"), add_version("bad", blocked_because="It leaks.")
    page = admin.get(f"/admin/models/{candidate}").text
    assert "Start shadow mode" in page and "It has not analyzed any live scan" in page
    started = admin.post(f"/admin/models/{candidate}/shadow")
    assert "Waiting for the first live scan" in admin.get(started.location).text
    for version, sentence in (
        (candidate, "Another slice version is already in shadow mode."),
        (other, "Another slice version is already in shadow mode."),
        (live, "This version is live"),
        (blocked, "It leaks."),
    ):
        answer = admin.post(f"/admin/models/{version}/shadow", follow_redirects=True)
        assert sentence in answer.text
    stopped = admin.post(f"{started.location}/stop", follow_redirects=True)
    assert (
        "An administrator stopped it." in stopped.text and "No scans were analyzed" in stopped.text
    )
    again = admin.post(f"{started.location}/stop", follow_redirects=True)
    assert "Shadow mode has already ended." in again.text
    with app.app_context():
        acts = db.session.scalars(select(AuditEvent.act).order_by(AuditEvent.id)).all()[-2:]
        assert acts == [Act.SHADOW_STARTED, Act.SHADOW_STOPPED]
        assert len(db.session.scalars(select(Shadow)).all()) == 1


def test_pictures_are_of_scans_that_the_administrator_sees_elsewhere_too(
    app: Flask, admin: FlaskClient, shadow_id: str
) -> None:
    with app.app_context():
        ann = make_user(app, "ann")
        root = db.session.scalars(select(User.id).where(User.username == "root")).one()
        agreed, hidden = add_scan(ann, "Agreed"), add_scan(ann, "Hidden")
        own, shared = add_scan(root, "Mine"), add_scan(ann, "Shared")
        db.session.add(Share(scan_id=shared))
        db.session.add_all(shadow_answers(shadow_id, [agreed, hidden, own, shared]))
        db.session.commit()
    page = admin.get(f"/admin/shadows/{shadow_id}").text
    assert "1 of 4 scans with the same result" in page and "25.0% (95% Wilson interval" in page
    assert "by the live version only: 3." in page
    for scan_id, title in ((own, "Mine"), (shared, "Shared")):
        assert title in page and f"/scans/{scan_id}/thumbnail.png" in page
    assert "Hidden" not in page and "Agreed" not in page
    assert f"/scans/{hidden}" not in page and "not shared with you" in page
    some = admin.get(f"/admin/shadows/{shadow_id}?live=not found&candidate=suspected").text
    assert "Disagreements: not found by the live version" in some and "Mine" not in some
    with app.app_context():
        before = db.session.get_one(Shadow, shadow_id)
        candidate, against = before.version_id, before.against_id
        end_shadow(shadow_id, "It was stopped.")
        # One that has answered nothing yet hides nothing.
        db.session.add(Shadow(version_id=candidate, against_id=against, reads="slice"))
        db.session.commit()
    known = admin.get(f"/admin/models/{candidate}").text
    assert (
        "Of 4 live scans, 25.0% have the same result (95% Wilson interval 4.6% to 69.9%)." in known
    )


def test_what_a_candidate_says_is_on_no_page_of_users(
    app: Flask, logged_in: Callable[..., FlaskClient], shadow_id: str
) -> None:
    ann = logged_in("ann")
    with app.app_context():
        ann_id = db.session.scalars(select(User.id).where(User.username == "ann")).one()
        scan_id = add_scan(ann_id)
        (answer,) = shadow_answers(shadow_id, [scan_id])
        answer.probability, answer.threshold = 0.7654, 0.6543
        db.session.add(answer)
        db.session.commit()
        secrets = [shadow_id, answer.shadow.version_id, answer.id, "0.76", "76.5", "0.65", "65.4"]
    token = make_token(app, ann_id)
    for path in (f"/scans/{scan_id}", "/scans", f"/api/v1/scans/{scan_id}", "/api/v1/scans"):
        read = ann.get(path, headers={"Authorization": f"Bearer {token}"})
        assert read.status_code == 200
        assert [each for each in secrets if each in read.text] == [], path
    ann.post(f"/scans/{scan_id}/delete")
    with app.app_context():
        assert db.session.scalars(select(ShadowAnswer)).all() == []


def test_drift_is_by_day_then_by_week_and_costs_are_summed(any_database_app: Flask) -> None:
    app = any_database_app
    ann = make_user(app, "ann")
    with app.app_context():
        live, candidate = two_versions()
        shadow_id = add(Shadow(version_id=candidate, against_id=live, reads="slice")).id
        assert (drift_of(shadow_id), cost_of(shadow_id).seconds_each) == ([], None)
        assert agreement_of(shadow_id).share is None
        answers = shadow_answers(shadow_id, [add_scan(ann) for _ in range(30)])
        db.session.add_all(answers[:3])
        db.session.commit()
        days = drift_of(shadow_id)
        assert [str(day.begins) for day in days] == ["2026-11-02", "2026-11-03", "2026-11-04"]
        assert (days[0].n, days[0].candidate.median, days[1].candidate.median) == (1, 0.8, 0.1)
        db.session.add_all(answers[3:])
        db.session.add(ShadowAnswer(shadow_id=shadow_id, scan_id=add_scan(ann), **QUEUED))
        db.session.commit()
        weeks = drift_of(shadow_id)
        assert [week.n for week in weeks] == [7, 7, 7, 7, 2]
        assert (weeks[0].candidate.low, weeks[0].candidate.high) == (0.1, 0.8)
        assert weeks[0].candidate.suspected == pytest.approx(1 / 7)
        assert (weeks[0].live.low, weeks[0].live.high, weeks[0].live.suspected) == (0.9, 0.9, 1.0)
        cost = cost_of(shadow_id)
        assert (cost.answered, cost.waiting, cost.seconds, cost.seconds_each) == (30, 1, 15, 0.5)


QUEUED = {"live_probability": 0.5, "live_threshold": 0.5, "live_state": "suspected"}
