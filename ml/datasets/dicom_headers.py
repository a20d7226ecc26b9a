"""Headers of the DICOM files of a public data set: patient, series and slice position.

Pixels are not read, so many thousands of files take minutes. Unlike `ml.scans.dicom`, this reads
the patient ID, since the slices of a patient must stay in one fold; publishers of data sets have
replaced the real IDs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom

from ml.errors import ImageError
from ml.files.image_types import ImageKind, image_kind
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

NOT_SLICES = (ImageKind.LOCALIZER, ImageKind.PAGE)
LONGEST_TEXT = 1000
"""Maximum length of a value: DICOM allows 64 characters, and the values of 50,000 files must fit in
memory.
"""


@dataclass(frozen=True)
class Header:
    """The header of one file; missing text is empty, missing numbers are None.

    Attributes:
        path: the file.
        patient, study, series: identifiers.
        place_mm: position of the slice along its normal, toward the head.
        number: the instance number.
        thickness_mm: of the slice.
        description, kernel, contrast: series description, convolution kernel, and contrast agent.
        is_axial_ct: False for other modalities, localizers, pages of text, and other
            orientations.
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
    """Read a file's header.

    Raises:
        ImageError: it is not a DICOM file, or is damaged before its pixels.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns about every unusual value
            if path.stat().st_size > MAX_BYTES:
                raise ImageError("The file is too large.")
            return _header_of(path, read_tags(file, TAGS, with_pixels=False))
    except (ImageError, MemoryError):
        raise
    except Exception as err:  # pydicom may raise any exception on a damaged file
        raise ImageError("The header of the DICOM file is damaged.") from err


def from_foot_to_head(headers: Sequence[Header]) -> list[Header]:
    """Sort the files of one series: by position if all have one and they differ, else by instance
    number, else by name.
    """
    named = sorted(headers, key=lambda header: place_in_series(header.path))
    places = [header.place_mm for header in named if header.place_mm is not None]
    numbers = [header.number for header in named if header.number is not None]
    if len(places) == len(named) and len(set(places)) > 1:
        return [named[at] for at in np.argsort(places, kind="stable")]
    if len(numbers) == len(named):
        return [named[at] for at in np.argsort(numbers, kind="stable")]
    return named


def _header_of(path: Path, header: pydicom.Dataset) -> Header:
    def text(name: str) -> str:
        joined = " ".join(str(value).strip() for value in values_of(header, name))
        if len(joined) > LONGEST_TEXT:
            raise ImageError("The header of the DICOM file has a value that is far too long.")
        return joined

    def number(name: str) -> float | None:
        numbers = numbers_of(header, name, 1)
        return numbers[0] if numbers else None

    directions, corner = (
        numbers_of(header, "ImageOrientationPatient", 6),
        numbers_of(header, "ImagePositionPatient", 3),
    )
    # without directions, a slice is assumed to be axial
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
        and image_kind(values_of(header, "ImageType")) not in NOT_SLICES,
    )
