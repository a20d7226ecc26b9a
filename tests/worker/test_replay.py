"""Answers that are computed again, and what is said where they differ."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from flask import Flask
from sqlalchemy import select, update

from ml.catalogue import STARTER_DIR, STARTER_SERIES_DIR
from ml.inference.predictor import Predictor
from ml.scans.phantoms import phantom
from ml.scans.slices import Series, Slice
from ml.scans.volume import write_masks
from tests.worker.conftest import install_model, picture, submit
from tests.worker.test_outlines import install_outlining, submit_bleeding
from webapp.extensions import db
from webapp.models import (
    EarlierAnswer,
    Environment,
    JobStatus,
    ModelVersion,
    Prediction,
    Replay,
    Scan,
    cancel_sample,
    request_replay,
    sample_answers,
    score_again,
)
from webapp.storage import storage
from worker import background, made_with, predictors, tasks
from worker.scan_files import read_original


@pytest.fixture
def scan(worker_app: Flask) -> Scan:
    """A scan with an answer."""
    install_model()
    submit(picture(200))
    tasks.predict_scans()
    return db.session.scalars(select(Scan)).one()


def replayed(scan: Scan, answer: Prediction | EarlierAnswer | None = None) -> Replay:
    """Ask for an answer again, by default the present one, and return what came of it."""
    answer = answer or scan.prediction
    assert answer is not None and request_replay(scan, answer)
    db.session.commit()
    tasks.predict_scans()
    db.session.expire_all()
    return db.session.scalars(select(Replay).order_by(Replay.queued_at.desc())).all()[0]


def test_what_an_answer_was_made_with_is_kept_and_it_is_the_same_to_the_bit(scan: Scan) -> None:
    made = scan.prediction
    assert made and made.settings == {
        "slice_threshold": None,
        "scan_threshold": None,
        "masks_outside_head": False,
    }
    environment = db.session.scalars(select(Environment)).one()
    assert made.environment_id == environment.id
    assert {"ONNX Runtime", "Hemoscan's code", "Processor", "Its features"} <= set(
        environment.content
    )
    row = replayed(scan)
    assert (row.status, row.is_same, row.urgent) == ("done", True, True)
    assert row.result and (row.result["differs"], row.result["changes"]) == ([], [])
    assert row.result["not_kept"] == []
    # It is asked for once while it waits, and again when it has ended.
    assert request_replay(scan, made) and not request_replay(scan, made)


def test_a_difference_is_reported_slice_by_slice_with_what_has_changed(
    scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scan.prediction
    was = scan.prediction.probability
    scan.prediction.probability = was / 2
    scan.prediction.slices = [was / 2]
    old = {**made_with.environment(1), "ONNX Runtime": "1.0"}
    db.session.add(Environment(id="old", content=old))
    scan.prediction.environment_id = "old"
    db.session.commit()
    row = replayed(scan)
    assert row.result and (row.status, row.is_same) == ("done", False)
    assert row.result["differs"] == ["probability", "slices"]
    assert row.result["probability"] == [was / 2, was]
    assert row.result["slices"] == [{"index": 0, "before": was / 2, "now": was}]
    ((name, before, now),) = row.result["changes"]
    assert (name, before) == ("ONNX Runtime", "1.0") and now != "1.0"


def test_a_threshold_that_was_chosen_then_is_used_again(worker_app: Flask) -> None:
    version = install_model()
    version.slice_threshold = 0.99999
    db.session.commit()
    submit(picture(200))
    tasks.predict_scans()
    scan = db.session.scalars(select(Scan)).one()
    assert scan.prediction and not scan.prediction.positive
    version.slice_threshold = 0.1
    db.session.commit()
    row = replayed(scan)
    assert row.result and (row.is_same, row.result["threshold"]) == (True, [0.99999, 0.99999])


def test_outlines_that_differ_in_a_pixel_are_reported(worker_app: Flask, tmp_path: Path) -> None:
    install_outlining()
    scan = submit_bleeding(tmp_path / "series")
    tasks.predict_scans()
    db.session.expire_all()
    row = replayed(scan)
    assert row.result and (row.is_same, row.result["not_kept"]) == (True, [])
    masks: list[np.ndarray | None] = [np.zeros((128, 128), bool) for _ in range(6)]
    write_masks(read_original(scan), masks, tmp_path / "other")
    storage.put(f"outlines/{scan.id}.nii.gz", tmp_path / "other")
    row = replayed(scan)
    assert row.result and (row.is_same, row.result["differs"]) == (False, ["outlines"])
    storage.discard(f"outlines/{scan.id}.nii.gz")
    row = replayed(scan)
    assert row.result and (row.is_same, row.result["not_kept"]) == (True, ["outlines"])
    # No outlines are kept of an answer that was followed by another.
    assert score_again(scan.id)
    db.session.commit()
    tasks.predict_scans()
    row = replayed(scan, db.session.scalars(select(EarlierAnswer)).one())
    assert row.result and (row.is_same, row.result["not_kept"]) == (True, ["outlines"])


def test_older_answers_say_what_is_not_known(scan: Scan) -> None:
    columns = {"environment_id": None, "settings": None}
    db.session.execute(update(Prediction).values(columns))
    db.session.commit()
    row = replayed(scan)
    assert row.result and (row.is_same, row.result["changes"]) == (True, None)
    assert row.result["settings_known"] is False
    # An answer that was followed by another keeps what is needed, from now on.
    assert score_again(scan.id)
    db.session.commit()
    tasks.predict_scans()
    (earlier,) = db.session.scalars(select(EarlierAnswer))
    row = replayed(scan, earlier)
    assert row.result and (row.is_same, row.result["not_kept"]) == (True, [])  # It has no outlines.
    assert earlier.slices == row.prediction.slices if row.prediction else True


def test_what_cannot_be_computed_again_ends_with_a_sentence(scan: Scan) -> None:
    version = db.session.scalars(select(ModelVersion)).one()
    storage.put(f"{version.storage_prefix}/head.onnx", b"damaged")
    predictors._loaded.clear()
    shutil.rmtree(predictors.model_folder(version))
    row = replayed(scan)
    assert row.status == "failed" and row.error and "cannot be loaded" in row.error
    scan.original_removed_at = scan.created_at
    db.session.commit()
    assert scan.prediction and not request_replay(scan, scan.prediction)


def test_an_answer_that_was_replaced_meanwhile_is_not_asked_for(scan: Scan) -> None:
    before = scan.prediction
    assert before and score_again(scan.id)
    assert not request_replay(scan, before)
    db.session.commit()
    assert db.session.scalars(select(Replay)).all() == []


def test_a_sample_is_drawn_from_all_answers_goes_last_and_can_be_canceled(
    any_worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model()
    submit(*[picture(20 + number) for number in range(5)])
    tasks.predict_scans()
    sample, count = sample_answers(3, None)
    assert count == 3
    scan = db.session.scalars(select(Scan)).first()
    assert scan and scan.prediction and request_replay(scan, scan.prediction)
    db.session.commit()
    monkeypatch.setattr(background, "LOOK_S", 0.0)
    (waiting,) = submit(picture(200))
    tasks.predict_scans()
    db.session.expire_all()
    rows = db.session.scalars(select(Replay).order_by(Replay.started_at)).all()
    assert [row.sample_id for row in rows] == [None, *[sample.id] * 3]
    assert {(row.status, row.is_same) for row in rows} == {("done", True)}
    live = db.session.get_one(Scan, waiting)
    ended = live.finished_at
    assert ended and all(row.started_at and row.started_at > ended for row in rows)
    more, count = sample_answers(100, None)
    cancel_sample(more.id)
    db.session.commit()
    assert count == 6
    statuses = select(Replay.status).where(Replay.sample_id == more.id)
    assert set(db.session.scalars(statuses)) == {JobStatus.CANCELLED}


@pytest.mark.parametrize("folder", [STARTER_DIR, STARTER_SERIES_DIR], ids=["slice", "series"])
def test_an_answer_does_not_depend_on_what_else_is_in_its_batch(folder: object) -> None:
    def series(seed: int, slices: int) -> Series:
        planes = [phantom(seed + n, hemorrhage=True, size=128) for n in range(slices)]
        return Series(tuple(Slice(plane.astype("float32"), "hu") for plane in planes))

    predictor = Predictor(folder, checks_head_ct=False)  # type: ignore[arg-type]
    scan = series(1, 2)
    alone = predictor.predict(scan)
    *_, among = predictor.predict_many([series(7, 1), series(8, 2), scan])
    assert (among.probability, among.slice_probabilities) == (
        alone.probability,
        alone.slice_probabilities,
    )
