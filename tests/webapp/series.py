"""Series as the worker leaves them: rows and files."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from flask import Flask
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy import select

from webapp.extensions import db, utc_now
from webapp.models import Heatmap, JobStatus, ModelVersion, Prediction, Scan, User
from webapp.storage import storage


def stored_series(voxels: NDArray[np.int16], across: int = 1, along: int = 1, slope: float = 1.0) -> bytes:
    """Return slices (columns, rows, slices) as the file that the worker stores.

    `across` and `along` are 1 where columns run to the patient's right and rows to the front, -1 where they run the other way.
    """
    plain = bytearray(352)
    struct.pack_into("<i", plain, 0, 348)
    struct.pack_into("<8h", plain, 40, 3, *voxels.shape, 1, 1, 1, 1)
    struct.pack_into("<2h", plain, 70, 4, 16)
    struct.pack_into("<4f", plain, 76, 1, 0.5, 0.5, 5)
    struct.pack_into("<3f", plain, 108, 352, slope, 0)
    struct.pack_into("<2h", plain, 252, 0, 1)
    struct.pack_into("<12f", plain, 280, 0.5 * across, 0, 0, 0, 0, 0.5 * along, 0, 0, 0, 0, 5, 0)
    plain[344:348] = b"n+1\0"
    parts = [bytes(plain), *(voxels[:, :, index].tobytes("F") for index in range(voxels.shape[2]))]
    press = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = [press.compress(part) + press.flush(zlib.Z_FULL_FLUSH) for part in parts]
    extra_bytes = 4 + 4 * voxels.shape[2]
    starts = np.cumsum([12 + extra_bytes, *map(len, packed[:-1])])[1:].astype("<u4")
    head = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + struct.pack("<H2sH", extra_bytes, b"HS", starts.nbytes) + starts.tobytes()
    whole = b"".join(parts)
    return head + b"".join(packed) + press.flush(zlib.Z_FINISH) + struct.pack("<II", zlib.crc32(whole), len(whole))


def heat(index: int) -> bytes:
    """Return the heat map of a slice: a picture of another color for each, through which one sees."""
    file = io.BytesIO()
    Image.new("RGBA", (2, 2), (255, index, 0, 1)).save(file, "PNG")
    return file.getvalue()


def add_series(app: Flask, voxels: NDArray[np.int16], username: str = "ann", *, slope: float = 1.0, **columns: Any) -> str:
    """Add a series of that person with its verdict, and heat maps of its first and last slice; return its id.

    Slices become ever more suspicious; `columns` go before what the prediction has.
    """
    last = voxels.shape[2] - 1
    with app.app_context():
        user_id = db.session.scalars(select(User.id).where(User.username == username)).one()
        version = ModelVersion(card_id="0123456789ab", architecture="cnn_gru", reads="series", storage_prefix="models/none", card={})
        scan = Scan(user_id=user_id, kind="dicom", original_key="originals/none.dcm", status=JobStatus.DONE, finished_at=utc_now())
        told = {"probability": 0.9, "threshold": 0.4, "positive": True, "uncertain": False, "warnings": [], "seconds": 0.5} | columns
        suspicious = [round(index / max(last, 1), 3) for index in range(last + 1)]
        scan.prediction = Prediction(model_version=version, slices=suspicious, first_slices=list(range(last, last - 5, -1)), **told)
        scan.prediction.heatmap = Heatmap(status=JobStatus.DONE, slices=[0, last], finished_at=utc_now())
        db.session.add_all([version, scan])
        db.session.flush()
        scan.volume_key, scan.image_key = f"volumes/{scan.id}.nii.gz", f"images/{scan.id}.png"
        drawn = scan.prediction.heatmap
        drawn.image_key = f"heatmaps/{drawn.id}.{last}.png"
        storage.put(scan.volume_key, stored_series(voxels, slope=slope))
        storage.put(scan.image_key, heat(last))
        for index in drawn.slices or ():
            storage.put(f"heatmaps/{drawn.id}.{index}.png", heat(index))
        db.session.commit()
        return scan.id
