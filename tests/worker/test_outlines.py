"""Outlines come with the verdict, are stored with it, and take the place of heat maps."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from flask import Flask
from sqlalchemy import update

from ml.inference.outlines import NO_OUTLINES, NOT_FOUND, ONE_SLICE
from ml.scans.phantoms import phantom, write_dicom, write_png
from tests.ml.conftest import OUTLINING_PX, outlining_graph
from tests.worker.conftest import install_model, picture, submit
from tests.worker.test_series import read, submit_zip
from webapp.deletion import delete_scan
from webapp.extensions import db
from webapp.models import ModelVersion, Scan, draw_heatmap
from webapp.storage import StorageError, storage
from worker import orphaned_files, tasks
from worker.reports.making import outline_of

POSITIVE = {"threshold": 0.0, "uncertain_low": 0.0, "uncertain_high": 0.0}
NEGATIVE = {"threshold": 1.0, "uncertain_low": 1.0, "uncertain_high": 1.0}
BLEEDING = (2, 3)
SIDE = 128


def install_outlining(**card: object) -> ModelVersion:
    """Make a model live that outlines what is as bright as blood; every scan is positive."""
    given = {"reads": "series", "preprocessing": {"size": OUTLINING_PX}, **POSITIVE, **card}
    return install_model(features=outlining_graph(), **given)  # type: ignore[arg-type]


def submit_bleeding(folder: Path) -> Scan:
    """Submit a phantom of six slices, two of which bleed; nothing else between brain and bone is
    brighter than brain.
    """
    folder.mkdir(parents=True)
    files = {}
    for index in range(6):
        path = folder / f"{index}.dcm"
        hu = phantom(70, index in BLEEDING, size=SIDE)
        if index not in BLEEDING:
            hu[(hu > 42) & (hu < 300)] = 42
        write_dicom(hu, path, number=index + 1, position_mm=5.0 * index)
        files[path.name] = path.read_bytes()
    return submit_zip(files)


def test_a_series_is_answered_with_outline_area_and_volume(
    any_worker_app: Flask, tmp_path: Path
) -> None:
    install_outlining()
    scan = submit_bleeding(tmp_path / "series")
    tasks.predict_scans()
    done = read(scan)
    verdict = done.prediction
    assert verdict is not None, done.error
    assert (done.outline_key, verdict.heatmap) == (f"outlines/{scan.id}.nii.gz", None)
    assert verdict.outlined_slices == list(BLEEDING) and verdict.areas_mm2 is not None
    masks = outline_of(done)
    assert masks.shape == (6, SIDE, SIDE)
    assert np.flatnonzero(masks.any(axis=(1, 2))).tolist() == list(BLEEDING)
    areas = masks.sum(axis=(1, 2)) * (230 / SIDE) ** 2
    np.testing.assert_allclose(verdict.areas_mm2, areas, rtol=1e-3)
    assert verdict.volume_ml == pytest.approx(areas.sum() * 5 / 1000, abs=0.02)
    assert verdict.volume_ml > 1 and verdict.no_volume_because is None


def test_a_single_slice_has_an_outline_and_no_volume(worker_app: Flask, tmp_path: Path) -> None:
    install_outlining(reads="slice")
    write_png(phantom(70, True, size=SIDE), tmp_path / "head.png")
    (scan_id,) = submit((tmp_path / "head.png").read_bytes())
    tasks.predict_scans()
    scan = db.session.get_one(Scan, scan_id)
    verdict = scan.prediction
    assert verdict is not None and verdict.outlined_slices == [0]
    assert (verdict.volume_ml, verdict.areas_mm2) == (None, None)
    assert verdict.no_volume_because == ONE_SLICE
    masks = outline_of(scan)
    assert masks.shape == (1, SIDE, SIDE) and masks.any()


def test_a_scan_in_which_nothing_is_found_has_neither_outline_nor_heat_map(
    worker_app: Flask, tmp_path: Path
) -> None:
    install_outlining(**NEGATIVE)
    scan = submit_bleeding(tmp_path / "series")
    tasks.predict_scans()
    done = read(scan)
    assert done.prediction is not None and done.verdict_state == "not found"
    assert (done.outline_key, done.prediction.outlined_slices) == (None, None)
    assert done.prediction.no_volume_because == NOT_FOUND
    assert not storage.keys("outlines") and not storage.keys("heatmaps")


def test_heat_maps_are_drawn_when_somebody_asks(worker_app: Flask, tmp_path: Path) -> None:
    install_outlining()
    scan = submit_bleeding(tmp_path / "series")
    tasks.predict_scans()
    assert not storage.keys("heatmaps")
    assert draw_heatmap(scan.id, scan.user_id)
    db.session.commit()
    tasks.predict_scans()
    drawn = read(scan).prediction.heatmap  # type: ignore[union-attr]
    assert drawn is not None and drawn.status == "done" and storage.keys("heatmaps")


def test_a_model_without_outlines_gives_heat_maps_as_before(any_worker_app: Flask) -> None:
    install_model()
    submit(picture(200))
    tasks.predict_scans()
    (scan,) = db.session.query(Scan)
    assert scan.prediction is not None and scan.prediction.heatmap is not None
    assert (scan.outline_key, scan.prediction.outlined_slices) == (None, None)
    assert scan.prediction.no_volume_because == NO_OUTLINES


def test_outlines_that_no_row_names_are_removed(worker_app: Flask, tmp_path: Path) -> None:
    install_outlining()
    kept, left = (submit_bleeding(tmp_path / name) for name in ("kept", "left"))
    tasks.predict_scans()
    assert len(storage.keys("outlines")) == 2
    db.session.execute(update(Scan).where(Scan.id == left.id).values(outline_key=None))
    db.session.commit()
    for path in (tmp_path / "files" / "outlines").iterdir():
        os.utime(path, (time.time() - 7200,) * 2)
    orphaned_files.remove_orphans()
    assert storage.keys("outlines") == [f"outlines/{kept.id}.nii.gz"]
    assert delete_scan(kept.id)
    assert not storage.keys("outlines")


def test_a_damaged_outline_is_a_sentence(worker_app: Flask, tmp_path: Path) -> None:
    install_outlining()
    scan = submit_bleeding(tmp_path / "series")
    tasks.predict_scans()
    storage.put(f"outlines/{scan.id}.nii.gz", b"nothing")
    with pytest.raises(StorageError, match=r"^A stored outline is damaged\.$"):
        outline_of(read(scan))
