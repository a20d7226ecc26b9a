"""The page of a promotion: why it was made, and what would have been different without it."""

from __future__ import annotations

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from tests.conftest import make_user
from tests.webapp.admin.conftest import add, add_version
from tests.webapp.admin.test_shadows import add_scan
from webapp.extensions import db
from webapp.models import (
    JobStatus,
    ModelVersion,
    OperatingPoint,
    Prediction,
    Promotion,
    Role,
    Shadow,
    ShadowAnswer,
    User,
    promote,
)

POINT = OperatingPoint("own thresholds", 0.8, None)


def answered_scan(user_id: str, version_id: str, probability: float, title: str = "A head") -> str:
    """Commit a scan that a version has answered now at the threshold .41, without a band; return
    its id.
    """
    scan_id = add_scan(user_id, title)
    add(
        Prediction(
            scan_id=scan_id,
            model_version_id=version_id,
            probability=probability,
            threshold=0.41,
            positive=probability >= 0.41,
            uncertain=False,
            warnings=[],
            slices=[probability],
            seconds=0.1,
        )
    )
    return scan_id


def promoted(version_id: str, reason: str, point: OperatingPoint | None = None) -> int:
    """Make a version live, at a point; return the promotion's id."""
    promotion: Promotion = promote(
        db.session.get_one(ModelVersion, version_id), None, reason, point
    )
    db.session.commit()
    return promotion.id


def test_a_promotion_tells_which_results_would_have_been_others(
    app: Flask, admin: FlaskClient
) -> None:
    theirs = make_user(app, "owner")
    with app.app_context():
        old, new = add_version("old"), add_version("new")
        first, second = promoted(old, "the first"), promoted(new, "finds more")
        mine = db.session.scalars(select(User.id).where(User.role == Role.ADMIN)).one()
        scans = [
            answered_scan(mine, new, 0.9, "Mine"),
            answered_scan(theirs, new, 0.8, "Theirs"),
            answered_scan(mine, new, 0.7),
            answered_scan(mine, new, 0.6),
        ]
        answered_scan(mine, old, 0.9, "Of another version")
        shadow = add(Shadow(version_id=old, against_id=new, reads="slice", ended_because="."))
        shadow.ended_at = shadow.started_at
        for scan_id, probability in zip(scans, (0.1, 0.2, 0.6), strict=False):
            add(
                ShadowAnswer(
                    shadow_id=shadow.id,
                    scan_id=scan_id,
                    live_probability=0.9,
                    live_threshold=0.41,
                    live_state="suspected",
                    probability=probability,
                    threshold=0.41,
                    state="not found",
                    status=JobStatus.DONE,
                )
            )
    timeline = admin.get("/admin/models").text
    assert f"/admin/promotions/{second}" in timeline
    page = admin.get(f"/admin/promotions/{second}").text
    assert "Without this promotion, 2 of 3 scans would have a different result" in page
    assert "2 suspected hemorrhages would not have been suspected" in page
    assert "has not analyzed 1 of the 4 scans" in page and "finds more" in page
    assert "Mine" in page and "Theirs" not in page and "not shared with you" in page
    assert "no slice model would have been live" in admin.get(f"/admin/promotions/{first}").text
    assert admin.get("/admin/promotions/999").status_code == 404
    reply = admin.post(f"/admin/promotions/{second}/find-out", follow_redirects=True).text
    assert "is analyzing the scans from that period at the lowest priority: 1 left" in reply
    refused = admin.post(f"/admin/promotions/{second}/find-out", follow_redirects=True).text
    assert "Another slice version is already in shadow mode." in refused


def test_another_operating_point_needs_no_computation(app: Flask, admin: FlaskClient) -> None:
    with app.app_context():
        version = add_version("one")
        promoted(version, "the first")
        changed = promoted(version, "fewer alarms", POINT)
        mine = db.session.scalars(select(User.id).where(User.role == Role.ADMIN)).one()
        # At .8 with its band these are suspected and inconclusive, at .41 both are suspected.
        for probability, uncertain in ((0.9, False), (0.7, True)):
            scan_id = answered_scan(mine, version, probability)
            row = db.session.scalars(select(Prediction).filter_by(scan_id=scan_id)).one()
            row.threshold, row.positive, row.uncertain = 0.8, probability >= 0.8, uncertain
        db.session.commit()
    page = admin.get(f"/admin/promotions/{changed}").text
    assert "Without this promotion, 1 of 2 scans would have a different result" in page
    assert "and 1 other scan would have been" in page
    assert "Analyze them with the previous version" not in page and "needs no comparison" in page
    answer = admin.post(f"/admin/promotions/{changed}/find-out", follow_redirects=True).text
    assert "changed only the operating point" in answer
