"""Write labeled scans as a data set that `ml.datasets.read` reads: a folder for each scan, one file
for each slice, and a manifest.

The same scans give the same bytes, and so the same fingerprint.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from ml.scans.slices import Series, Slice

MANIFEST = "labels.csv"
COLUMNS = (
    *("filename", "label", "patient", "scan", "slice", "subtypes"),
    *("scan_label", "scan_subtypes"),
)
LOWEST_HU, HIGHEST_HU = -32768, 32767


@dataclass(frozen=True)
class LabeledScan:
    """A scan whose label is known.

    Attributes:
        name: name of the scan; letters and digits.
        patient: the scans of a patient are never on both sides of a split; letters and digits.
        series: its slices.
        label: 1 for hemorrhage, 0 for none.
        types: types of hemorrhage in the scan (`ml.catalogue.BLEEDING_TYPES`); empty if unknown.
        slice_labels: labels of slices by index from 0. In a scan without hemorrhage, all slices are
            negative; slices of a scan with hemorrhage that are not listed have unknown labels.
        slice_types: types of hemorrhage in slices with the label 1, by index from 0.
    """

    name: str
    patient: str
    series: Series
    label: int
    types: Sequence[str] = ()
    slice_labels: Mapping[int, int] = field(default_factory=dict)
    slice_types: Mapping[int, Sequence[str]] = field(default_factory=dict)

    def label_of(self, index: int) -> int | None:
        """Return the label of a slice, None if it is unknown."""
        if self.label == 0:
            return 0
        return 1 if len(self.series.slices) == 1 else self.slice_labels.get(index)

    def types_of(self, index: int) -> Sequence[str]:
        """Return the types of hemorrhage in a slice; empty if none or unknown."""
        if self.label_of(index) != 1:
            return ()
        return self.types if len(self.series.slices) == 1 else self.slice_types.get(index, ())


def write_scan(root: Path, scan: LabeledScan) -> list[dict[str, Any]]:
    """Write the slices of a scan below `root` and return their rows of the manifest.

    Hounsfield units are rounded and written as DICOM, with pixel size and position if known and
    without personal data; gray values of images are written as 8-bit PNG.
    """
    folder = root / scan.patient / scan.name
    folder.mkdir(parents=True)
    steps = scan.series.steps_mm or _even_steps(scan.series)
    places_mm = list(accumulate(steps, initial=0.0)) if steps else []
    rows = []
    for index, slice_ in enumerate(scan.series.slices):
        stem = f"{index + 1:04}"
        if slice_.unit == "hu":
            path = folder / f"{stem}.dcm"
            place_mm = places_mm[index] if places_mm else None
            _write_dicom(slice_, path, scan.name, index + 1, place_mm)
        else:
            path = folder / f"{stem}.png"
            gray = np.round(np.clip(slice_.pixels, 0, 1) * 255).astype(np.uint8)
            Image.fromarray(gray).save(path, "PNG")
        label = scan.label_of(index)
        values = (
            path.relative_to(root).as_posix(),
            "" if label is None else label,
            scan.patient,
            scan.name,
            index + 1,
            "|".join(scan.types_of(index)),
            scan.label,
            "|".join(scan.types),
        )
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def write_manifest(root: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the manifest of a data set from the rows of its scans."""
    with (root / MANIFEST).open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(rows)


def _even_steps(series: Series) -> tuple[float, ...]:
    """Return the distances between neighboring slices in mm; empty if unknown."""
    if series.distance_mm is None:
        return ()
    return (series.distance_mm,) * (len(series.slices) - 1)


def _write_dicom(
    slice_: Slice, path: Path, series: str, number: int, place_mm: float | None
) -> None:
    rows, columns = slice_.pixels.shape
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(series, str(number))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    tags: dict[str, object] = {
        "SOPClassUID": CTImageStorage, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "SeriesInstanceUID": _uid(series), "StudyInstanceUID": _uid(series, "study"),
        "PatientID": "", "PatientName": "", "PatientIdentityRemoved": "YES",
        "Modality": "CT", "ImageType": ["DERIVED", "SECONDARY", "AXIAL"], "InstanceNumber": number,
        "Rows": rows, "Columns": columns, "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 16,
        "HighBit": 15, "PixelRepresentation": 1, "RescaleIntercept": 0, "RescaleSlope": 1,
        "RescaleType": "HU",
    }  # fmt: skip
    if slice_.spacing_mm is not None:
        tags["PixelSpacing"] = [round(distance, 6) for distance in slice_.spacing_mm]
    if place_mm is not None:
        tags["ImageOrientationPatient"] = [1, 0, 0, 0, 1, 0]
        tags["ImagePositionPatient"] = [0, 0, round(place_mm, 4)]
    for name, value in tags.items():
        setattr(file, name, value)
    hu = np.clip(np.round(slice_.pixels), LOWEST_HU, HIGHEST_HU)
    file.PixelData = hu.astype("<i2").tobytes()
    pydicom.dcmwrite(path, file, enforce_file_format=True)


def _uid(*names: str) -> UID:
    """Return a UID that depends only on the names (DICOM PS3.5 B.2)."""
    digest = hashlib.sha256("\t".join(("hemoscan data set", *names)).encode()).digest()
    return UID(f"2.25.{int.from_bytes(digest[:16])}")
