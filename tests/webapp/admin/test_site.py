"""The page of this site: confirmed scans, figures, data sets of them and calibrations."""

from __future__ import annotations

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select

from tests.conftest import make_user
from tests.webapp.admin.conftest import NOBODY, add, add_dataset, add_version
from tests.webapp.review.test_opinions import add_done, say, share_with_reviewers
from tests.webapp.test_every_route import site_figures_of
from webapp.extensions import db, utc_now
from webapp.models import (
    Dataset,
    Finding,
    JobStatus,
    ModelVersion,
    Role,
    SiteFigures,
    TrainingRun,
    User,
    promote,
)


@pytest.fixture
def confirmed(app: Flask, admin: FlaskClient) -> FlaskClient:
    """An admin's browser, where one scan is confirmed and one is disputed."""
    for name in ("ann", "bob"):
        make_user(app, name, Role.REVIEWER)
    scans = [add_done(app, title="agreed"), add_done(app, title="argued")]
    share_with_reviewers(app, *scans)
    say(app, scans[0], "ann", Finding.PRESENT)
    say(app, scans[1], "ann", Finding.PRESENT)
    say(app, scans[1], "bob", Finding.ABSENT)
    return admin


def test_confirmed_and_disputed_scans_are_shown(confirmed: FlaskClient) -> None:
    page = confirmed.get("/admin/site").text
    assert "Hemorrhage present</dt><dd>1</dd>" in page
    assert "argued" in page and "agreed" not in page


def test_figures_are_asked_for_once_and_shown_when_done(app: Flask, admin: FlaskClient) -> None:
    for _ in range(2):
        assert admin.post("/admin/site/figures").status_code == 302
    assert "waiting for a train worker" in admin.get("/admin/site").text
    with app.app_context():
        (row,) = db.session.scalars(select(SiteFigures))
        version_id = add_version("card-one")
        row.status, row.finished_at = JobStatus.DONE, utc_now()
        row.figures = [site_figures_of(version_id)]
        db.session.commit()
    page = admin.get("/admin/site").text
    assert "2026-11" in page and "Sensitivity, %" in page and "there is none" in page
    assert "90.0<br>" in page
    assert "1,000 bootstrap samples of studies" in page
    assert admin.get("/admin/site/progress").status_code == 286


def test_who_promotes_sees_the_confirmed_scans_of_the_live_version(
    app: Flask, confirmed: FlaskClient
) -> None:
    with app.app_context():
        live, candidate = add_version("live-card"), add_version("new-card")
        promote(db.session.get_one(ModelVersion, live), None, "It ships.")
        db.session.commit()
    page = confirmed.get(f"/admin/models/{candidate}").text
    assert "site figures</a> of the live version" in page
    assert "on the 1 confirmed scan," in page and "create a data set from them" in page
    with app.app_context():
        figures = [site_figures_of(live)]
        add(SiteFigures(status=JobStatus.DONE, finished_at=utc_now(), figures=figures))
        dataset = add_dataset("our heads", made_from={})
    page = confirmed.get(f"/admin/models/{candidate}").text
    assert "The live version</th>" in page and ">This version</th>" not in page
    assert "(80.0–100.0)" in page and "there is none" in page
    assert f"/admin/models/{live}?show=evaluations" in page and f"/datasets/{dataset}" in page
    assert "On this site’s confirmed scans" not in confirmed.get(f"/admin/models/{live}").text


def test_a_data_set_is_asked_for_with_its_filters(app: Flask, confirmed: FlaskClient) -> None:
    form = {"name": "ours", "kind": "slice", "since": "2020-01-01", "opinions": "1"}
    answer = confirmed.post("/admin/site/datasets", data=form)
    with app.app_context():
        dataset = db.session.scalars(select(Dataset)).one()
    assert answer.location == f"/admin/datasets/{dataset.id}"
    assert dataset.made_from == {
        "since": "2020-01-01", "until": None, "kind": "slice", "opinions": 1,
    }  # fmt: skip
    assert "single slices only" in confirmed.get(answer.location).text
    for refused, sentence in (
        ({}, "already exists"),
        ({"name": "x", "opinions": "2"}, "No confirmed scan matches"),
        ({"name": "x", "since": "soon"}, "Not a valid date"),
        ({"name": ""}, "Enter a name"),
    ):
        again = confirmed.post("/admin/site/datasets", data=form | refused)
        assert again.status_code == 400 and sentence in again.text


def test_a_live_version_is_calibrated_to_a_data_set_that_is_ready(
    app: Flask, admin: FlaskClient
) -> None:
    with app.app_context():
        version_id = add_version("card-one")
        by_id = db.session.scalars(select(User.id)).one()
        promote(db.session.get_one(ModelVersion, version_id), by_id, "a reason")
        ready = add_dataset("ours", made_from={})
        waiting = add_dataset("later", JobStatus.QUEUED, made_from={})
        db.session.commit()
    page = admin.get("/admin/site").text
    assert ready in page and f'value="{waiting}"' not in page
    for dataset_id in (waiting, NOBODY, "x"):
        chosen = {"version": version_id, "dataset": dataset_id}
        refused = admin.post("/admin/site/calibrate", data=chosen)
        assert refused.location == "/admin/site#calibrate"
    with app.app_context():
        assert db.session.scalar(select(func.count()).select_from(TrainingRun)) == 0
    answer = admin.post("/admin/site/calibrate", data={"version": version_id, "dataset": ready})
    page = admin.get(answer.location).text
    assert "calibration to this site" in page and f"/admin/models/{version_id}" in page
