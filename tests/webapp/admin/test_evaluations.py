"""The pages of evaluations."""

from __future__ import annotations

from threading import Thread
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError

from ml.evaluation.metrics import RESAMPLES
from tests.webapp.admin.conftest import NOBODY, add, add_dataset, add_version, figure
from webapp.extensions import db
from webapp.models import (
    Act,
    AuditEvent,
    Comparison,
    Evaluation,
    JobStatus,
    ModelVersion,
    promote,
    request_comparison,
)
from webapp.storage import storage

LEVEL = {
    "positive": 2,
    "negative": 2,
    "thresholds": [
        {"threshold": 0.0, "sensitivity": 1.0, "specificity": 0.0},
        {"threshold": 1.0, "sensitivity": 0.0, "specificity": 1.0},
    ],
    "calibration": [{"probability": 0.3, "observed": figure(0.5, low=0.2, high=0.8)}],
}


A_MISTAKE = {
    "filename": "a.png",
    "patient": "ann",
    "label": 1,
    "probability": 0.02,
    "heat": True,
}


def evaluated(version_id: str, dataset_id: str, patients: int = 200) -> str:
    """Commit an evaluation of 200 slices that is done, with its files; return its id."""
    metrics = {"auroc": figure(0.875, low=0.7, high=0.95), "sensitivity": figure(0.9)}
    by_patient = {name: {**one, "n": patients} for name, one in metrics.items()}
    zone = {"value": 0.9, "n": 10}
    band = {"npv": zone, "ppv": zone, "uncertain": zone}
    result: dict[str, Any] = {
        "dataset": "heads",
        "images": 4,
        "scans": 4,
        "left_out": 1,
        "patient": by_patient,
        "slice": metrics,
        "threshold": 0.4,
        "patient_threshold": 0.5,
        "band": {"slice": band, "patient": band},
        "notes": ["A <b>note</b>."],
        "problems": [],
    }
    row: Evaluation = add(
        Evaluation(
            version_id=version_id,
            dataset_id=dataset_id,
            status=JobStatus.DONE,
            result=result,
            curves={"slice": LEVEL, "patient": LEVEL},
            mistakes=[A_MISTAKE],
        )
    )
    storage.put(row.mistake_key(0), b"a picture")
    storage.put(row.mistake_key(0, "-heat"), b"a layer")
    storage.put(f"{row.storage_prefix}/answers.csv", b"level\n")
    return row.id


def test_an_evaluation_is_asked_for_once(app: Flask, admin: FlaskClient) -> None:
    with app.app_context():
        version, dataset = add_version("one"), add_dataset("heads")
    response = admin.post(f"/admin/models/{version}/evaluate", data={"dataset": dataset})
    again = admin.post(f"/admin/models/{version}/evaluate", data={"dataset": dataset})
    assert response.status_code == 302 and response.location == again.location
    with app.app_context():
        row = db.session.scalars(select(Evaluation)).one()
        assert (row.version_id, row.dataset_id, row.status) == (version, dataset, "queued")
    page = admin.get(response.location)
    assert "Waiting for a train worker" in page.text and "Cancel the evaluation" in page.text
    assert "heads" in admin.get(f"/admin/models/{version}?show=evaluations").text
    for wrong in ("", NOBODY):
        refused = admin.post(f"/admin/models/{version}/evaluate", data={"dataset": wrong})
        assert "Choose a data set" in admin.get(refused.location).text


def test_it_is_canceled_and_started_again(app: Flask, admin: FlaskClient) -> None:
    with app.app_context():
        version, dataset = add_version("one"), add_dataset("heads")
        id = add(Evaluation(version_id=version, dataset_id=dataset)).id
    for act, status in (("cancel", "cancelled"), ("retry", "queued")):
        assert admin.post(f"/admin/evaluations/{id}/{act}").status_code == 302
        with app.app_context():
            assert db.session.get_one(Evaluation, id).status == status
    admin.post(f"/admin/evaluations/{id}/retry")
    assert "Only failed or canceled evaluations" in admin.get(f"/admin/evaluations/{id}").text
    with app.app_context():
        acts = db.session.scalars(select(AuditEvent.act).where(AuditEvent.object_id == id)).all()
        assert acts == [Act.EVALUATION_CANCELLED, Act.EVALUATION_REQUESTED]


def test_its_page_shows_figures_curves_and_mistakes(app: Flask, admin: FlaskClient) -> None:
    with app.app_context():
        version, dataset = add_version("one"), add_dataset("heads")
        id = evaluated(version, dataset, patients=50)
    page = admin.get(f"/admin/evaluations/{id}").text
    assert (
        page.count("0.875") == 2
        and "Curves by patient" in page
        and "A &lt;b&gt;note&lt;/b&gt;." in page
    )
    assert page.count('class="chart overlay"') == 4
    assert page.count('class="chart calibration"') == 2
    assert "Missed hemorrhages" in page and "a.png, ann" in page
    assert admin.get(f"/admin/evaluations/{id}/mistakes/0.png").data == b"a picture"
    assert admin.get(f"/admin/evaluations/{id}/mistakes/0-heat.png").data == b"a layer"
    assert admin.get(f"/admin/evaluations/{id}/mistakes/1.png").status_code == 404
    assert admin.get(f"/admin/evaluations/{id}/answers.csv").data == b"level\n"
    assert "0.875" in admin.get(f"/admin/models/{version}?show=evaluations").text


def test_where_each_slice_is_a_patient_its_page_shows_everything_once(
    app: Flask, admin: FlaskClient
) -> None:
    with app.app_context():
        version = add_version("one")
        id = evaluated(version, add_dataset("heads"))
    page = admin.get(f"/admin/evaluations/{id}").text
    intervals = f"95% intervals: percentiles of {RESAMPLES:,} bootstrap samples of patients"
    for other in ("/admin/models", f"/admin/models/{version}"):
        assert admin.get(other).text.count(intervals) == 1
    assert page.count(intervals) == 1
    assert page.count("0.875") == 1 and "by patient" in page  # In the sentence that says why.
    assert page.count("<h2>Curves</h2>") == 1 and page.count('class="chart overlay"') == 2
    assert page.count('class="chart calibration"') == 1
    assert '<th scope="row">Slice</th>' in page and '<th scope="row">Patient</th>' not in page


def test_a_comparison_that_two_ask_for_at_once_is_one_row(any_database_app: Flask) -> None:
    app, failed = any_database_app, []
    with app.app_context():
        pair = add_version("one"), add_version("two")

    def ask() -> None:
        with app.app_context():
            try:
                request_comparison(*pair)
                db.session.commit()
            except SQLAlchemyError as err:
                failed.append(err)

    with app.app_context():
        request_comparison(*pair)
        other = Thread(target=ask)
        other.start()
        other.join(0.3)  # It waits for this transaction.
        assert other.is_alive()
        db.session.commit()
        other.join(20)
        assert failed == []
        db.session.execute(update(Comparison).values(status=JobStatus.DONE, error="An error."))
        request_comparison(*pair)
        db.session.commit()
        row = db.session.scalars(select(Comparison)).one()
        assert (row.status, row.error) == (JobStatus.QUEUED, None)


def test_a_deleted_data_set_takes_its_evaluations_along(app: Flask, admin: FlaskClient) -> None:
    with app.app_context():
        version, dataset = add_version("one"), add_dataset("heads")
        id = evaluated(version, dataset)
        other = add_version("two")
        row = add(Evaluation(version_id=other, dataset_id=dataset)).id
    answer = admin.post(f"/admin/datasets/{dataset}/delete", follow_redirects=True)
    assert "An evaluation on this data set is still queued or running." in answer.text
    admin.post(f"/admin/evaluations/{row}/cancel")
    assert (
        "has been deleted"
        in admin.post(f"/admin/datasets/{dataset}/delete", follow_redirects=True).text
    )
    assert admin.get(f"/admin/evaluations/{id}").status_code == 404
    with app.app_context():
        assert storage.keys("evaluations") == []


def test_a_comparison_with_the_live_version_is_asked_for(app: Flask, admin: FlaskClient) -> None:
    with app.app_context():
        live, candidate = add_version("live-card"), add_version("new-card")
    answer = admin.post(f"/admin/models/{candidate}/compare", follow_redirects=True)
    assert "There is no other live version" in answer.text
    with app.app_context():
        promote(db.session.get_one(ModelVersion, live), None, "It ships.")
        db.session.commit()
    for _ in range(2):
        answer = admin.post(f"/admin/models/{candidate}/compare", follow_redirects=True)
        assert "A comparison with the live version is in progress" in answer.text
    with app.app_context():
        row = db.session.scalars(select(Comparison)).one()
        assert (row.version_id, row.other_id, row.status) == (candidate, live, "queued")
