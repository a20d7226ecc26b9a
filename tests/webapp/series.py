"""Series as the worker leaves them: rows and files."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flask import Flask
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy import select

from ml.scans.slices import Series, Slice
from ml.scans.volume import write_masks, write_volume
from webapp.extensions import db, utc_now
from webapp.models import Heatmap, JobStatus, ModelVersion, Prediction, Scan, User
from webapp.storage import storage

Unit = Literal["hu", "display"]


def stored_series(slices: NDArray[Any], unit: Unit = "hu") -> bytes:
    """Return slices (slices, rows, columns), as they are looked at, as the file that the worker
    stores.
    """
    pixels = slices.astype(np.float32)
    series = Series(
        tuple(Slice(each, unit, spacing_mm=(0.5, 0.5)) for each in pixels), distance_mm=5.0
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "series.nii.gz"
        write_volume(series, path)
        return path.read_bytes()


def stored_masks(masks: NDArray[np.bool_]) -> bytes:
    """Return masks (slices, rows, columns), as slices are looked at, as the file that the worker
    stores.
    """
    series = Series(
        tuple(Slice(each.astype(np.float32), "hu", spacing_mm=(0.5, 0.5)) for each in masks),
        distance_mm=5.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outlines.nii.gz"
        write_masks(series, [mask if mask.any() else None for mask in masks], path)
        return path.read_bytes()


def heat(index: int) -> bytes:
    """Return the heat map of a slice: a picture of another color for each, through which one
    sees.
    """
    file = io.BytesIO()
    Image.new("RGBA", (2, 2), (255, index, 0, 1)).save(file, "PNG")
    return file.getvalue()


def add_series(
    app: Flask, slices: NDArray[Any], username: str = "ann", *, unit: Unit = "hu"
) -> str:
    """Add a series of that person with its verdict, and heat maps of its first and last slice;
    return its id.

    Slices become ever more suspicious.
    """
    last = len(slices) - 1
    with app.app_context():
        user_id = db.session.scalars(select(User.id).where(User.username == username)).one()
        version = ModelVersion(
            card_id="0123456789ab",
            architecture="cnn_gru",
            reads="series",
            storage_prefix="models/none",
            card={},
        )
        scan = Scan(
            user_id=user_id,
            kind="dicom",
            original_key="originals/none.dcm",
            status=JobStatus.DONE,
            finished_at=utc_now(),
            verdict_state="suspected",
        )
        values = {
            "probability": 0.9,
            "threshold": 0.4,
            "positive": True,
            "uncertain": False,
            "warnings": [],
            "seconds": 0.5,
        }
        suspicious = [round(index / max(last, 1), 3) for index in range(last + 1)]
        scan.prediction = Prediction(
            model_version=version,
            slices=suspicious,
            first_slices=list(range(last, max(last - 5, -1), -1)),
            **values,
        )
        scan.prediction.heatmap = Heatmap(
            status=JobStatus.DONE, slices=[0, last], finished_at=utc_now()
        )
        db.session.add_all([version, scan])
        db.session.flush()
        scan.volume_key, scan.image_key = f"volumes/{scan.id}.nii.gz", f"images/{scan.id}.png"
        drawn = scan.prediction.heatmap
        drawn.image_key = f"heatmaps/{drawn.id}.{last}.png"
        storage.put(scan.volume_key, stored_series(slices, unit))
        storage.put(scan.image_key, heat(last))
        for index in drawn.slices or ():
            storage.put(f"heatmaps/{drawn.id}.{index}.png", heat(index))
        db.session.commit()
        return scan.id
