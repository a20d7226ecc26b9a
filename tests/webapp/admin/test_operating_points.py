"""Operating points: the table on a model's page, the choice of one, and where it is kept."""

from __future__ import annotations

import html
import re

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from tests.ml.conftest import named_points_of_card
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


def add_with_points(card_id: str = "with-points", reads: str = "series") -> str:
    """Commit a version whose card has named points; it was trained for .222 by scan."""
    return add_version(
        card_id,
        reads=reads,
        checked_at=utc_now(),
        card=a_card(
            id=card_id,
            reads=reads,
            points=named_points_of_card(),
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
    assert "Balanced 0.300 90.0 (85.0–95.0) 93.0 (88.0–98.0) 30.0 (25.0–35.0) 50.0" in text
    assert f"Balanced : series from 0.300, single slices from 0.250 {BALANCED}" in text
    assert "Chosen: as trained , series from 0.222, single slices from 0.410." in text
    assert "Between sensitive and balanced. Of 100 scans" in text
    assert re.search(r'value="as trained" checked', page)


def test_a_slice_model_means_slices_and_series_only_while_no_series_model_is_live(
    app: Flask, admin: FlaskClient
) -> None:
    with app.app_context():
        of_slices, of_series = add_with_points("slices", "slice"), add_with_points("series")
        promote(db.session.get_one(ModelVersion, of_slices), None, "It ships.")
        db.session.commit()
    text = text_of(admin.get(f"/admin/models/{of_slices}").text)
    assert "Of 100 slices, 10 of them with hemorrhage" in text.split("By slice")[0]
    assert text.index("By slice") < text.index("Series (used only while no series")
    also = (
        "It also analyzes series because no series model is live. Between sensitive and balanced."
    )
    assert also in text_of(admin.get("/admin/models").text)
    with app.app_context():
        promote(db.session.get_one(ModelVersion, of_series), None, "It ships.")
        db.session.commit()
    text = text_of(admin.get("/admin/models").text)
    assert also not in text and "Of 100 slices" in text and "Of 100 scans" in text


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
        card = a_card(points=named_points_of_card(), scan_threshold=0.2, **band)
        id = add_version(
            "curved", checked_at=utc_now(), card={**card, "curves": {"patient": curve}}
        )
        both_levels = {**card, "curves": {"patient": curve, "slice": curve}}
        slices = add_version("slices", checked_at=utc_now(), card=both_levels)
        plain = add_with_points()
    page = admin.get(f"/admin/models/{id}").text
    of_slices = admin.get(f"/admin/models/{slices}").text
    assert '<option value="slice" selected>' in of_slices, "what a slice model is used for"
    assert "&amp;level=slice" in of_slices and "&amp;level=patient" not in of_slices
    assert 'type="range"' in page and "These figures are optimistic" in page
    query = "at=0.35&prevalence=10&level=patient"
    part = admin.get(f"/admin/models/{id}/threshold?{query}").text
    assert text_of(part).startswith(
        "At 0.350, of 100 scans, 10 of them with hemorrhage: 60.0 alarms , 6.0 of them with"
        " hemorrhage and 54.0 false. 4.0 hemorrhages are missed. Sensitivity 60.0% of 40"
        " Specificity 40.0% of 40 PPV 10.0% of alarms are right NPV 90.0% of negative results"
    )
    assert "<circle" in part
    # Each choice shows what its own threshold found, to the last digit; the slider begins there.
    address = f"/admin/models/{id}/threshold?at=0.3&amp;level=patient"
    assert f'hx-get="{address}"' in page and 'data-at="0.3"' in page
    both = f"/admin/models/{id}/threshold?at=0.35&level=patient&scan_threshold="
    assert "<p>At 0.100, of 100" in admin.get(both + "0.1").text
    assert "<p>At 0.350, of 100" in admin.get(both).text
    whole = text_of(admin.get(f"/admin/models/{id}?{query}").text)
    assert "At 0.350, of 100 scans, 10 of them with hemorrhage: 60.0 alarms" in whole, (
        "without scripts"
    )
    used = admin.get(f"/admin/models/{id}?use=0.35&level=patient").text
    assert 'value="own thresholds" checked' in used and 'value="0.35"' in used
    for nonsense, sentence in (
        *((f"at={text}", "from 0 to 1") for text in ("2", "nan", "x")),
        *((f"prevalence={text}", "from 0.1 to 99") for text in ("0", "100", "many")),
        ("level=head", "patient or slice"),
    ):
        answer = admin.get(f"/admin/models/{id}/threshold?{nonsense}")
        assert answer.status_code == 200 and sentence in answer.text
        assert admin.get(f"/admin/models/{id}?{nonsense}").status_code == 200
    assert 'type="range"' not in admin.get(f"/admin/models/{plain}").text
    assert "no figures for" in admin.get(f"/admin/models/{plain}/threshold").text
