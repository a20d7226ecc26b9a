"""What the headers of the DICOM files of a public data set say: whose they are, of which series,
and where they lie.

The pixels are not read, so that a folder of many thousands is sorted in minutes. Here, unlike in
`ml.scans.dicom`, the number of a patient is
read: folds must not divide one, and the publisher of a data set has replaced the real one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom

from ml.errors import ImageError
from ml.scans.dicom import numbers_of, read_tags, values_of
from ml.scans.files import place_in_series
from ml.scans.limits import MAX_BYTES
from ml.scans.ordering import AXIAL

TAGS = [
    "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "ImageType",
    "SeriesDescription", "ConvolutionKernel",
    "ContrastBolusAgent", "SliceThickness", "InstanceNumber", "ImagePositionPatient",
    "ImageOrientationPatient",
]  # fmt: skip

LONGEST_TEXT = 1000
"""Of a value: DICOM allows 64 letters, and what is kept of 50,000 files must not fill the memory.
"""


@dataclass(frozen=True)
class Header:
    """What one file says; text is empty and numbers are None where it says nothing.

    Attributes:
        path: the file.
        patient, study, series: what tells them from others.
        place_mm: how far along its normal the slice lies, toward the head.
        number: the instance number.
        thickness_mm: of the slice.
        description, kernel, contrast: of the series, what reconstructed it, and the contrast agent
            given.
        is_axial_ct: False for other modalities, localizers, and slices in other directions.
    """

    path: Path
    patient: str
    study: str
    series: str
    place_mm: float | None
    number: int | None
    thickness_mm: float | None
    description: str
    kernel: str
    contrast: str
    is_axial_ct: bool


def read_header(path: Path) -> Header:
    """Return what a file's header says.

    Raises:
        ImageError: it is no DICOM file, or damaged before its pixels.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of every odd value
            if path.stat().st_size > MAX_BYTES:
                raise ImageError("The file is too large.")
            return _header_of(path, read_tags(file, TAGS, with_pixels=False))
    except (ImageError, MemoryError):
        raise
    except Exception as err:  # a damaged file makes pydicom raise anything
        raise ImageError("The header of the DICOM file is damaged.") from err


def from_foot_to_head(headers: Sequence[Header]) -> list[Header]:
    """Return the files of one series in order: by place where all know theirs and these are not the
    same in all, else by instance number, else by name.
    """
    named = sorted(headers, key=lambda one: place_in_series(one.path))
    places = [one.place_mm for one in named if one.place_mm is not None]
    numbers = [one.number for one in named if one.number is not None]
    if len(places) == len(named) and len(set(places)) > 1:
        return [named[at] for at in np.argsort(places, kind="stable")]
    if len(numbers) == len(named):
        return [named[at] for at in np.argsort(numbers, kind="stable")]
    return named


def _header_of(path: Path, header: pydicom.Dataset) -> Header:
    def text(name: str) -> str:
        found = " ".join(str(value).strip() for value in values_of(header, name))
        if len(found) > LONGEST_TEXT:
            raise ImageError("The header of the DICOM file holds a text that is far too long.")
        return found

    def number(name: str) -> float | None:
        found = numbers_of(header, name, 1)
        return found[0] if found else None

    directions, corner = (
        numbers_of(header, "ImageOrientationPatient", 6),
        numbers_of(header, "ImagePositionPatient", 3),
    )
    # without directions a slice is taken to be axial
    place_mm, is_axial = None if corner is None else corner[2], True
    if directions is not None:
        normal = np.cross(directions[:3], directions[3:])
        normal *= 1 if normal[2] >= 0 else -1
        is_axial = bool(normal[2] >= AXIAL)
        place_mm = None if corner is None else float(np.dot(normal, corner))
    instance = number("InstanceNumber")
    return Header(
        path,
        text("PatientID"),
        text("StudyInstanceUID"),
        text("SeriesInstanceUID"),
        place_mm,
        None if instance is None else int(instance),
        number("SliceThickness"),
        text("SeriesDescription"),
        text("ConvolutionKernel"),
        text("ContrastBolusAgent"),
        is_axial
        and text("Modality") in ("CT", "")
        and "LOCALIZER" not in text("ImageType").upper(),
    )
