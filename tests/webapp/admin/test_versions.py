"""Model versions: what their pages show, promotion and rollback."""

from __future__ import annotations

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from tests.webapp.admin.conftest import add_version, promote_by_form
from webapp.admin import versions
from webapp.extensions import db, utc_now
from webapp.jobs import PREDICT_SCANS
from webapp.models import (
    ModelVersion,
    Promotion,
    PromotionRefused,
    live_version,
    promote,
    waits_for_check,
)


@pytest.mark.usefixtures("worker_that_checks")
class TestPromotion:
    def test_promoting_and_rolling_back_append_to_the_history(
        self, app: Flask, admin: FlaskClient
    ) -> None:
        with app.app_context():
            old, new = add_version("old-card"), add_version("new-card")
            promote(db.session.get_one(ModelVersion, old), None, "It ships.")
            db.session.commit()
        assert promote_by_form(admin, new, reason="Better AUROC.").location == "/admin/models"
        with app.app_context():
            live = live_version("slice")
            assert live is not None and live.id == new
        for path in ("/admin/models", f"/admin/models/{new}"):
            page = admin.get(path).text
            assert "Roll back to AlexNet SVM · v1" in page
            assert f'/admin/models/{old}#promotion"' in page
        assert promote_by_form(admin, old, reason="It missed a bleed.").status_code == 302
        with app.app_context():
            live = live_version("slice")
            assert live is not None and live.id == old
            history = db.session.scalars(select(Promotion).order_by(Promotion.id)).all()
            assert [(p.version_id, p.reason, p.by.username if p.by else None) for p in history] == [
                (old, "It ships.", None),
                (new, "Better AUROC.", "root"),
                (old, "It missed a bleed.", "root"),
            ]
        page = admin.get("/admin/models").text.partition('id="timeline"')[2]
        assert (
            page.index("It missed a bleed.") < page.index("Better AUROC.") < page.index("It ships.")
        )
        assert "Roll back to AlexNet SVM · v2" in admin.get("/admin/models").text

    def test_a_blocked_version_is_refused_with_its_sentence(
        self, app: Flask, admin: FlaskClient
    ) -> None:
        sentence = "The export differs by 0.02 from what was trained."
        with app.app_context():
            id = add_version("blocked", blocked_because=sentence)
        assert f'action="/admin/models/{id}/promote"' not in admin.get(f"/admin/models/{id}").text
        answer = admin.post(f"/admin/models/{id}/promote", data={"reason": "I want it."})
        assert answer.status_code == 400
        assert sentence in answer.text
        with app.app_context():
            assert live_version("slice") is None

    @pytest.mark.parametrize("reason", ["", "   ", "r" * 501, "a\x00b"])
    def test_a_promotion_needs_a_reason(self, app: Flask, admin: FlaskClient, reason: str) -> None:
        with app.app_context():
            id = add_version("card-one")
        assert admin.post(f"/admin/models/{id}/promote", data={"reason": reason}).status_code == 400
        with app.app_context():
            assert live_version("slice") is None
            with pytest.raises(PromotionRefused, match="enter a reason"):
                promote(db.session.get_one(ModelVersion, id), None, " ")

    def test_what_is_live_is_not_promoted_twice(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            id = add_version("card-one")
        assert (
            admin.post(f"/admin/models/{id}/promote", data={"reason": "First."}).status_code == 302
        )
        assert "is already live" in promote_by_form(admin, id, reason="Again.").text

    def test_a_version_that_a_worker_cannot_use_is_not_promoted(
        self, app: Flask, admin: FlaskClient, worker_that_checks: dict[str, str | None]
    ) -> None:
        with app.app_context():
            id = add_version("card-one")
        worker_that_checks["error"] = "The file head.onnx is damaged."
        answer = admin.post(f"/admin/models/{id}/promote", data={"reason": "Better."})
        assert answer.status_code == 400
        assert "could not use this version: The file head.onnx is damaged." in answer.text
        with app.app_context():
            assert live_version("slice") is None

        worker_that_checks["error"] = None
        answer = admin.post(f"/admin/models/{id}/promote", data={"reason": "It is repaired."})
        assert answer.status_code == 302

    def test_a_version_that_no_worker_has_checked_is_not_promoted(
        self, app: Flask, admin: FlaskClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(versions, "nudge", lambda task: False)
        monkeypatch.setattr(versions, "CHECK_WAIT_S", 0)
        with app.app_context():
            id = add_version("card-one")
        answer = admin.post(f"/admin/models/{id}/promote", data={"reason": "Better."})
        assert answer.status_code == 400
        assert versions.NOT_CHECKED in answer.text
        with app.app_context():
            assert live_version("slice") is None
            assert db.session.scalars(select(ModelVersion.id).where(waits_for_check())).all() == [
                id
            ]

    def test_a_check_holds_for_a_while(
        self, app: Flask, admin: FlaskClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checks: list[str] = []
        monkeypatch.setattr(versions, "nudge", checks.append)
        with app.app_context():
            id = add_version("card-one", checked_at=utc_now())
        answer = admin.post(f"/admin/models/{id}/promote", data={"reason": "Better."})
        assert answer.status_code == 302 and PREDICT_SCANS not in checks

    def test_each_kind_has_its_own_live_version(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            for card_id, reads in (("slices", "slice"), ("whole", "series")):
                promote(
                    db.session.get_one(ModelVersion, add_version(card_id, reads=reads)),
                    None,
                    "First.",
                )
            db.session.commit()
            live = [live_version("slice"), live_version("series")]
            assert [version.card_id for version in live if version] == ["slices", "whole"]
        assert (
            admin.get("/admin/models").text.count("There is no earlier version to roll back to.")
            == 2
        )
