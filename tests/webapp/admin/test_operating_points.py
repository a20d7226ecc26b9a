"""Operating points: the table on a model's page, the choice of one, and where it is kept."""

from __future__ import annotations

import html
import re

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from tests.ml.conftest import points_judged
from tests.webapp.admin.conftest import a_card, add_version, promote_by_form
from webapp.extensions import db, utc_now
from webapp.models import (
    Act,
    AuditEvent,
    ModelVersion,
    OperatingPoint,
    Promotion,
    PromotionRefused,
    promote,
)

BALANCED = "Of 100 scans, 10 of them with hemorrhage: finds 9, misses 1, flags 6 of the 90 without."


def text_of(page: str) -> str:
    """Return a page as a person reads it."""
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", page)).split())


def add_with_points(card_id: str = "with-points") -> str:
    """Commit a version whose card has named points; it was trained for .222 by scan."""
    return add_version(
        card_id,
        checked_at=utc_now(),
        card=a_card(
            id=card_id,
            points=points_judged(),
            scan_threshold=0.222,
            scan_uncertain_low=0.111,
            scan_uncertain_high=0.333,
        ),
    )


def point_of(app: Flask, version_id: str) -> OperatingPoint:
    """Return what the registry holds."""
    with app.app_context():
        return db.session.get_one(ModelVersion, version_id).operating_point


def test_the_page_shows_what_each_point_means(app: Flask, admin: FlaskClient) -> None:
    with app.app_context():
        id = add_with_points()
    page = admin.get(f"/admin/models/{id}").text
    text = text_of(page)
    assert page.count('<table class="data points">') == 2
    assert "Balanced 0.300 90.0 (85–95) 93.0 (88–98) 30.0 (25–35) 50.0" in text
    assert f"Balanced : series from 0.300, single slices from 0.250 {BALANCED}" in text
    assert "Chosen: as trained , series from 0.222, single slices from 0.410." in text
    assert "Between sensitive and balanced. Of 100 scans" in text
    assert re.search(r'value="as trained" checked', page)


def test_a_version_without_points_is_used_as_trained_or_at_own_thresholds(
    app: Flask, admin: FlaskClient
) -> None:
    with app.app_context():
        id = add_version("old-card", checked_at=utc_now())
    page = admin.get(f"/admin/models/{id}").text
    assert 'value="balanced"' not in page and "no named operating points" in page
    assert "Of 100 slices, 10 of them with hemorrhage: finds 9, misses 1, flags 9" in page
    answer = admin.post(f"/admin/models/{id}/promote", data={"reason": "r", "point": "balanced"})
    assert answer.status_code == 400 and "has no named operating points." in answer.text
    own = {"reason": "r", "point": "own thresholds", "slice_threshold": "0.25"}
    assert admin.post(f"/admin/models/{id}/promote", data=own).status_code == 302
    assert point_of(app, id) == OperatingPoint("own thresholds", 0.25, None)


def test_who_promotes_chooses_a_point_which_stands_wherever_versions_do(
    app: Flask, admin: FlaskClient
) -> None:
    with app.app_context():
        id = add_with_points()
    data = {"reason": "Fewer false alarms.", "point": "balanced", "scan_threshold": "7"}
    assert admin.post(f"/admin/models/{id}/promote", data=data).status_code == 302
    assert point_of(app, id) == OperatingPoint("balanced", 0.25, 0.3)
    with app.app_context():
        event = db.session.scalars(select(AuditEvent).order_by(AuditEvent.id.desc())).first()
        assert event is not None and (event.act, event.object_id) == (Act.VERSION_PROMOTED, id)
        assert event.detail == "balanced: series from 0.3, single slices from 0.25"
    for path in ("/admin/models", "/admin/audit", f"/admin/models/{id}"):
        assert "balanced: series from 0.3, single slices from 0.25" in admin.get(path).text, path
    assert BALANCED in admin.get("/admin/models").text
    assert f"In use: balanced , series from 0.300, single slices from 0.250. {BALANCED}" in text_of(
        admin.get(f"/admin/models/{id}").text
    )


def test_the_point_of_the_live_version_is_changed_for_a_reason(
    app: Flask, admin: FlaskClient
) -> None:
    with app.app_context():
        id = add_with_points()
        promote(db.session.get_one(ModelVersion, id), None, "It ships.")
        db.session.commit()
    assert "Change the operating point" in admin.get(f"/admin/models/{id}").text
    own = {"point": "own thresholds", "scan_threshold": "0.4", "slice_threshold": ""}
    assert promote_by_form(admin, id, **own).status_code == 400, "no reason"
    assert point_of(app, id) == OperatingPoint()
    assert promote_by_form(admin, id, **own, reason="Nights are busy.").status_code == 302
    assert point_of(app, id) == OperatingPoint("own thresholds", None, 0.4)
    again = promote_by_form(admin, id, **own, reason="Once more.")
    assert again.status_code == 400 and "already live at this operating point." in again.text
    page = admin.get(f"/admin/models/{id}").text
    assert "Between balanced and specific. Of 100 scans, 10 of them with hemorrhage: finds" in page
    assert 'value="0.4"' in page and 'value="own thresholds" checked' in page
    trained = promote_by_form(admin, id, reason="Back.", point="as trained")
    assert trained.status_code == 302 and point_of(app, id) == OperatingPoint()
    with app.app_context():
        history = db.session.scalars(select(Promotion).order_by(Promotion.id)).all()
        assert [(one.reason, str(one.operating_point)) for one in history] == [
            ("It ships.", "as trained"),
            ("Nights are busy.", "own thresholds: series from 0.4"),
            ("Back.", "as trained"),
        ]
        acts = select(AuditEvent.act, AuditEvent.detail).where(AuditEvent.object_id == id)
        assert [tuple(row) for row in db.session.execute(acts.order_by(AuditEvent.id))] == [
            (Act.POINT_CHANGED, "own thresholds: series from 0.4"),
            (Act.POINT_CHANGED, "as trained"),
        ]


def test_a_rollback_keeps_the_point_that_the_version_had(app: Flask, admin: FlaskClient) -> None:
    with app.app_context():
        old, new = add_with_points("old-card"), add_with_points("new-card")
        for id, name in ((old, "own thresholds"), (new, None)):
            version = db.session.get_one(ModelVersion, id)
            promote(version, None, "A reason.", OperatingPoint(name, 0.2 if name else None))
        db.session.commit()
    promote_by_form(admin, old, reason="It missed a bleed.")
    assert point_of(app, old) == OperatingPoint("own thresholds", 0.2, None)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"scan_threshold": "1.2"}, "A threshold must be a number from 0 to 1, such as 0.25."),
        ({"slice_threshold": "-0.1"}, "A threshold must be a number from 0 to 1, such as 0.25."),
        ({"slice_threshold": "nan"}, "A threshold must be a number from 0 to 1, such as 0.25."),
        ({"scan_threshold": "low"}, "A threshold must be a number from 0 to 1, such as 0.25."),
        ({}, "Enter a threshold for series, for single slices, or for both."),
        ({"point": "best"}, "Choose one of the operating points listed."),
    ],
)
def test_a_threshold_that_is_none_gets_a_sentence(
    app: Flask, admin: FlaskClient, fields: dict[str, str], sentence: str
) -> None:
    with app.app_context():
        id = add_with_points()
    data = {"reason": "A reason.", "point": "own thresholds", **fields}
    answer = admin.post(f"/admin/models/{id}/promote", data=data)
    assert answer.status_code == 400 and sentence in answer.text
    assert 'value="A reason."' in answer.text
    assert point_of(app, id) == OperatingPoint()
    with app.app_context():
        assert db.session.scalars(select(Promotion)).all() == []


def test_a_blocked_version_gets_no_point(app: Flask) -> None:
    with app.app_context():
        version = db.session.get_one(ModelVersion, add_version("no", blocked_because="It leaks."))
        with pytest.raises(PromotionRefused, match="It leaks"):
            promote(version, None, "A reason.", OperatingPoint("own thresholds", 0.5))
        assert version.operating_point == OperatingPoint()


def test_the_slider_says_what_any_threshold_would_have_found(
    app: Flask, admin: FlaskClient
) -> None:
    curve = [
        {"threshold": threshold, "sensitivity": 1 - threshold, "specificity": threshold}
        for threshold in (0.0, 0.2, 0.4, 1.0)
    ]
    with app.app_context():
        band = {"scan_uncertain_low": 0.1, "scan_uncertain_high": 0.3}
        card = a_card(points=points_judged(), scan_threshold=0.2, **band)
        id = add_version(
            "curved", checked_at=utc_now(), card={**card, "curves": {"patient": curve}}
        )
        plain = add_with_points()
    page = admin.get(f"/admin/models/{id}").text
    assert 'type="range"' in page and "slightly optimistic" in page
    part = admin.get(f"/admin/models/{id}/threshold?at=0.35").text
    assert text_of(part).startswith(
        "At 0.350: Of 100 scans, 10 of them with hemorrhage: finds 6, misses 4, flags 54 of the 90"
        " without."
    )
    assert "<circle" in part
    for nonsense in ("2", "nan", "x"):
        answer = admin.get(f"/admin/models/{id}/threshold?at={nonsense}")
        assert answer.status_code == 200 and "from 0 to 1" in answer.text
    assert 'type="range"' not in admin.get(f"/admin/models/{plain}").text
