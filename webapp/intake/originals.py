"""The stored original of a scan: one file, or the files of a series in one ZIP archive."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

from webapp.intake.series import SeriesFiles
from webapp.space import as_storage_full
from webapp.storage import StorageError, storage

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "dicom": ".dcm", "nifti": ".nii"}
PACKED = ".zip"
HELD_IN_MEMORY = 2**20
"""Originals up to this size are stored from memory, larger ones from a file, so that memory use
stays bounded.
"""


def store_series(key: str, series: SeriesFiles) -> int:
    """Store a file, or the files of a series in an uncompressed ZIP, and return its size in
    bytes.
    """
    path = series.files[0].path
    if len(series.files) > 1:
        path = path.with_suffix(PACKED)
        with zipfile.ZipFile(path, "w") as packed:
            # Named by their positions in the upload, as in the notes for the owner.
            for file in series.files:
                packed.write(file.path, f"file-{file.number:04}{SUFFIXES[file.kind]}")
                file.path.unlink()
    size = path.stat().st_size
    storage.put(key, path.read_bytes() if size <= HELD_IN_MEMORY else path)
    path.unlink()
    return size


@contextmanager
def disk_has_room() -> Iterator[None]:
    """Convert the errors of a full or failing disk to a `StorageError`."""
    try:
        with as_storage_full():
            yield
    except OSError as err:
        raise StorageError(
            "The server could not store your files. Please try again later."
        ) from err
