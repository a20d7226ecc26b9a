"""The files of a scan: reads the submitted file, stores the images made from it, and formulates
errors for its owner.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Collection, Sequence
from io import BytesIO
from pathlib import Path

from flask import current_app
from PIL import Image
from sqlalchemy import select

from ml.errors import ArtifactError, ImageError
from ml.scans.slices import BoolArray, Series, render
from ml.scans.volume import has_volume, write_masks, write_volume
from webapp import logs
from webapp.extensions import db
from webapp.intake import PACKED
from webapp.models import ORIGINAL_REMOVED, Heatmap, Replay, Report, Scan
from webapp.storage import MissingFile, StorageError, StorageUnavailable, storage
from worker.decoder import decode
from worker.heartbeat import heartbeat
from worker.retries import in_transaction, retry_disk, retry_storage

log = logging.getLogger(__name__)

IMAGE_PX = 768
THUMBNAIL_PX = 128


def read_original(scan: Scan, *, redact: bool | None = None) -> Series:
    """Return the submitted series; `redact` blacks out everything outside the head, None applies
    the setting MASK_OUTSIDE_HEAD.

    Raises:
        StorageError: it cannot be downloaded, is no longer stored, or the local disk is full.
        ImageError: it cannot be decoded.
    """
    with heartbeat().work_folder() as folder:
        paths = fetch_original(scan, folder)
        config = current_app.config
        limits = {
            "max_bytes": config["MAX_UPLOAD_MB"] * 2**20,
            "max_pixels": config["MAX_PIXELS"],
            "max_slices": config["MAX_SLICES"],
            "cuts": not scan.uncut,
        }
        if redact is None:
            redact = config["MASK_OUTSIDE_HEAD"]
        return retry_disk(lambda: decode(paths, redact=redact, **limits))


def fetch_original(scan: Scan, folder: Path) -> list[Path]:
    """Copy the submitted files to `folder`; return them in the order in which they were uploaded.

    Raises:
        StorageError: they cannot be downloaded, are no longer stored, or the local disk is full.
    """
    if scan.original_removed_at is not None:
        raise MissingFile(ORIGINAL_REMOVED)
    original = folder / "original"
    retry_storage(lambda: storage.fetch(scan.original_key, original))
    if scan.original_key.endswith(PACKED):
        return retry_disk(lambda: _unpack(original))
    return [original]


def _unpack(original: Path) -> list[Path]:
    """Unpack the archive made by `webapp.intake`; return the files of the series in the order in
    which they were uploaded.
    """
    with zipfile.ZipFile(original) as packed:
        packed.extractall(original.parent)
        return [original.parent / name for name in packed.namelist()]


def store_pictures(scan_id: str, series: Series, index: int) -> None:
    """Store one slice as image and thumbnail, and all slices as a volume for the viewer."""
    shown = series.slices[index]
    for key, max_px in (
        (f"images/{scan_id}.png", IMAGE_PX),
        (f"thumbnails/{scan_id}.png", THUMBNAIL_PX),
    ):
        content = png(render(shown, max_px))
        retry_storage(lambda key=key, content=content: storage.put(key, content))  # type: ignore[misc]
    if has_volume(series):
        with heartbeat().work_folder() as folder:
            retry_disk(lambda: write_volume(series, folder / "volume"))
            retry_storage(lambda: storage.put(f"volumes/{scan_id}.nii.gz", folder / "volume"))


def store_outlines(scan_id: str, series: Series, masks: Sequence[BoolArray | None]) -> None:
    """Store the outlines in the slices of a scan, if there are any."""
    if all(mask is None for mask in masks):
        return
    with heartbeat().work_folder() as folder:
        retry_disk(lambda: write_masks(series, masks, folder / "outlines"))
        retry_storage(lambda: storage.put(f"outlines/{scan_id}.nii.gz", folder / "outlines"))


def shown_slice(first_slices: Sequence[int] | None) -> int:
    """Return the index of the slice that represents the scan: the first one to look at."""
    return first_slices[0] if first_slices else 0


def png(picture: Image.Image) -> bytes:
    """Return an image as the content of a PNG file, compressed fast: a sixth larger, in a third to
    half of the time.
    """
    content = BytesIO()
    picture.save(content, "PNG", compress_level=1)
    return content.getvalue()


def sentence_for(err: Exception, row: Scan | Heatmap | Report | Replay | str) -> str:
    """Return the error message for the user; unexpected errors are logged with the row's id.

    Raises:
        StorageUnavailable: `err` is one, which is not a failure of this row.
    """
    if isinstance(err, StorageUnavailable):
        raise err
    if isinstance(err, ImageError | ArtifactError | StorageError):
        return str(err)
    table, row_id = (Scan, row) if isinstance(row, str) else (type(row), row.id)
    log.error(
        "row=%s failed unexpectedly", row_id, exc_info=err, extra={logs.ids_field(table): [row_id]}
    )
    return "An unexpected error occurred; administrators can find the details in the log."


def is_passing(err: Exception) -> bool:
    """True for an error of the storage, or of this machine's disk, that may be temporary: the row
    is worth another try (`worker.leases.retry_after_storage_error`).
    """
    return isinstance(err, StorageError) and not isinstance(err, MissingFile)


def discard_pictures_of_deleted(lost: Collection[str]) -> None:
    """Delete the images of those scans in `lost` that no longer exist; the others may have images
    made by another worker.
    """
    if not lost:
        return
    there = in_transaction(
        lambda: set(db.session.scalars(select(Scan.id).where(Scan.id.in_(lost))))
    )
    for scan_id in sorted(set(lost) - there):
        storage.discard(f"images/{scan_id}.png")
        storage.discard(f"thumbnails/{scan_id}.png")
        storage.discard(f"volumes/{scan_id}.nii.gz")
        storage.discard(f"outlines/{scan_id}.nii.gz")
