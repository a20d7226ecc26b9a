"""Versions that do not load, or answer otherwise than they did: no scan fails for them, and none is
promoted.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask, current_app
from sqlalchemy import select, update

from tests.worker.conftest import install_model, picture, submit
from tests.worker.test_series import pictures, submit_zip
from webapp.extensions import database_now, db
from webapp.models import Heatmap, ModelVersion, Scan, Worker
from webapp.storage import storage
from worker import prediction, predictors, tasks
from worker.canary import answer_of
from worker.heartbeat import heartbeat
from worker.predictors import model_folder, predictor_for


@pytest.fixture(autouse=True)
def no_known_results() -> Iterator[None]:
    """No version was found broken before."""
    predictors._broken.clear()
    yield
    predictors._broken.clear()


def scan(scan_id: str) -> Scan:
    """Return a scan as the database has it."""
    return db.session.get_one(Scan, scan_id, populate_existing=True)


def make_all_due() -> None:
    """Let the time pass that scans are put off for."""
    db.session.execute(update(Scan).values(retry_at=database_now(-1)))
    db.session.commit()


def spoil(version: ModelVersion) -> bytes:
    """Damage a file of a stored version; return what it was."""
    key = f"{version.storage_prefix}/head.onnx"
    before: bytes = storage.get(key)
    storage.put(key, b"not the head")
    return before


def model_folder_of(version: ModelVersion) -> Path:
    """Return where this machine keeps the files of that version."""
    return Path(current_app.config["HEMOSCAN_HOME"]) / "cache" / "models" / version.card_id


def alarm() -> str | None:
    """Return what the worker's row says."""
    db.session.commit()  # The beat has a transaction of its own.
    heartbeat().beat()
    return db.session.scalar(select(Worker.alarm), execution_options={"populate_existing": True})


def test_scans_wait_for_a_version_that_does_not_load_here(
    any_worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = install_model()
    head = spoil(version)
    scan_ids = submit(picture(255), picture(0))
    tasks.predict_scans()
    assert {scan(scan_id).status for scan_id in scan_ids} == {"queued"}
    sentence = alarm()
    assert sentence is not None
    assert sentence.startswith(f"Model version {version.card_id} cannot be loaded: ")
    make_all_due()
    tasks.predict_scans()  # Nothing is claimed while no live version loads.
    assert {scan(scan_id).lease_owner for scan_id in scan_ids} == {None}
    assert {scan(scan_id).attempts for scan_id in scan_ids} == {0}

    storage.put(f"{version.storage_prefix}/head.onnx", head)
    monkeypatch.setattr(predictors, "LOAD_AGAIN_S", 0)
    tasks.predict_scans()
    assert {scan(scan_id).status for scan_id in scan_ids} == {"done"}
    assert alarm() is None


def test_a_series_version_that_does_not_load_holds_no_slice_up(worker_app: Flask) -> None:
    install_model()
    spoil(install_model(reads="series", gain=3.0))
    series, slice_ = submit_zip(pictures(0, 255, 0)).id, submit(picture(255))[0]
    tasks.predict_scans()
    make_all_due()
    tasks.predict_scans()
    assert (scan(series).status, scan(slice_).status) == ("queued", "done")
    assert alarm() is not None


def test_a_version_that_answers_otherwise_than_it_did_is_not_used(worker_app: Flask) -> None:
    version = install_model()
    recorded = answer_of(predictor_for(version))
    db.session.refresh(version)
    assert version.canary == pytest.approx(recorded)  # The first answer counts where none did.
    version.canary = recorded + 0.01
    db.session.commit()
    predictors._loaded.clear()
    (scan_id,) = submit(picture(255))
    tasks.predict_scans()
    assert scan(scan_id).status == "queued"
    assert "probability for the test phantom" in str(alarm())


def test_a_heat_map_waits_for_a_version_that_does_not_load_here(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = install_model()
    (scan_id,) = submit(picture(255))
    assert prediction.answer_next_scans()
    head = spoil(version)
    predictors._loaded.clear()
    shutil.rmtree(model_folder_of(version))
    tasks.predict_scans()
    heatmap = db.session.scalars(select(Heatmap)).one()
    assert (heatmap.status, heatmap.error) == ("queued", None)
    assert heatmap.retry_at is not None

    storage.put(f"{version.storage_prefix}/head.onnx", head)
    monkeypatch.setattr(predictors, "LOAD_AGAIN_S", 0)
    heatmap.retry_at = None
    db.session.commit()
    tasks.predict_scans()
    db.session.refresh(heatmap)
    assert (heatmap.status, scan(scan_id).status) == ("done", "done")


def test_a_version_is_checked_as_it_is_stored_before_it_is_promoted(
    any_worker_app: Flask,
) -> None:
    version = install_model(live=False)
    model_folder(version)  # This machine has its files already.
    head = spoil(version)

    def outcome() -> tuple[bool, str | None]:
        db.session.execute(update(ModelVersion).values(check_requested_at=database_now()))
        db.session.commit()
        tasks.predict_scans()
        db.session.refresh(version)
        return version.checked_at >= version.check_requested_at, version.check_error

    checked, error = outcome()
    assert checked and error is not None and "head.onnx" in error
    storage.put(f"{version.storage_prefix}/head.onnx", head)
    assert outcome() == (True, None)
    assert version.canary is not None
    storage.delete(version.storage_prefix)
    checked, error = outcome()
    assert checked and error is not None and "no files" in error


def test_a_storage_that_is_away_leaves_a_check_to_later(worker_app: Flask) -> None:
    version = install_model(live=False)
    version.check_requested_at = database_now()
    db.session.commit()
    folder = storage.folder
    away = folder.with_name("away")
    folder.rename(away)
    tasks.predict_scans()
    db.session.refresh(version)
    assert version.checked_at is None
    away.rename(folder)
    tasks.predict_scans()
    db.session.refresh(version)
    assert (version.checked_at is not None, version.check_error) == (True, None)
