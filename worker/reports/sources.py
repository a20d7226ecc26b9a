"""The headers of a scan's DICOM files, to which the objects made from the scan refer. They belong
to Hemoscan's own de-identified copies, so the UIDs here are those of the copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import UID

from ml.scans.dicom_frames import frame_headers

EMPTY_WHERE_ABSENT = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""Attributes that the standard requires in every object (type 2) and that de-identification
removed.
"""


@dataclass(frozen=True)
class Source:
    """A slice in one of the files.

    Attributes:
        file: the header of the file.
        frame: the number of its frame, counted from 1; None if the file is a single slice.
        header: the tags of this slice: those of the file, merged with those of its frame.
    """

    file: pydicom.Dataset
    frame: int | None
    header: pydicom.Dataset


def read_headers(paths: Sequence[Path], study_uid: str | None = None) -> list[pydicom.Dataset]:
    """Return the headers of DICOM files, with an empty value for each patient or study tag that
    de-identification removed. All of them belong to one study and have UIDs.

    Args:
        study_uid: the study's UID, in case the files have none.
    """
    headers: list[pydicom.Dataset] = [
        pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in paths
    ]
    study = next(
        (header.StudyInstanceUID for header in headers if header.get("StudyInstanceUID")),
        UID(study_uid) if study_uid else new_uid(),
    )
    series = next(
        (header.SeriesInstanceUID for header in headers if header.get("SeriesInstanceUID")),
        new_uid(),
    )
    for header in headers:
        for name in EMPTY_WHERE_ABSENT:
            if name not in header:
                setattr(header, name, None)
        header.StudyInstanceUID = study
        if not header.get("SeriesInstanceUID"):
            header.SeriesInstanceUID = series
        if not header.get("SOPInstanceUID"):
            header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID
        if not header.get("SOPClassUID"):
            header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID
    return headers


def new_uid() -> UID:
    """Return a new, globally unique UID."""
    return pydicom.uid.generate_uid(prefix=None)


def in_order(headers: Sequence[pydicom.Dataset], slices: int) -> list[Source] | None:
    """Return the slices from inferior to superior, one for each slice of the scan; None if the
    files do not state their positions, or the scan was read from only some of them.

    Args:
        slices: the number of slices of the scan.
    """
    sources = [source for header in headers for source in _slices_of(header)]
    if len(sources) != slices:
        return None
    if slices == 1:
        return sources
    normals = [_normal(source.header) for source in sources]
    positions = [_numbers(source.header, "ImagePositionPatient", 3) for source in sources]
    if any(each is None for each in (*normals, *positions)):
        return None
    normal = np.mean(np.asarray(normals), axis=0)
    places = [float(np.dot(normal, np.asarray(position))) for position in positions]
    if len(set(places)) < len(places):
        return None
    return [sources[at] for at in np.argsort(places)]


def located(headers: Sequence[pydicom.Dataset], slices: int) -> list[Source] | None:
    """Return the slices like `in_order`, if their files also state each slice's frame of reference,
    position, orientation and pixel size, which objects with spatial references need; None
    otherwise. A single slice must also state its thickness.
    """
    ordered = in_order(headers, slices)
    if ordered is None or not all(_is_located(source) for source in ordered):
        return None
    thickness = _numbers(ordered[0].header, "SliceThickness", 1)
    if slices == 1 and (thickness is None or thickness[0] <= 0):
        return None
    return ordered


def _is_located(source: Source) -> bool:
    return (
        bool(source.file.get("FrameOfReferenceUID"))
        and _numbers(source.header, "ImagePositionPatient", 3) is not None
        and _normal(source.header) is not None
        and _numbers(source.header, "PixelSpacing", 2) is not None
    )


def _slices_of(header: pydicom.Dataset) -> list[Source]:
    frames = int(header.get("NumberOfFrames") or 1)
    is_multi_frame = "NumberOfFrames" in header
    return [
        Source(header, index + 1 if is_multi_frame else None, header_of_frame)
        for index, header_of_frame in enumerate(frame_headers(header, frames))
    ]


def directions_of(header: pydicom.Dataset) -> NDArray[np.float64] | None:
    """Return the unit vectors along a row and a column (2, 3) of a slice in patient coordinates;
    None if its file does not state them.
    """
    orientation = _numbers(header, "ImageOrientationPatient", 6)
    return None if orientation is None else orientation.reshape(2, 3)


def _normal(header: pydicom.Dataset) -> NDArray[np.float64] | None:
    """Return the unit vector normal to a slice, toward the head."""
    directions = directions_of(header)
    if directions is None:
        return None
    normal = np.cross(*directions)
    length = float(np.linalg.norm(normal))
    if length == 0:
        return None
    return np.asarray(normal / length * (1 if normal[2] >= 0 else -1))


def _numbers(header: pydicom.Dataset, name: str, count: int) -> NDArray[np.float64] | None:
    """Return the finite numbers of an element; None if their number is different."""
    try:
        numbers = np.atleast_1d(np.asarray(header.get(name), float))
    except (TypeError, ValueError):
        return None
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None
