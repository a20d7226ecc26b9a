"""Synthetic head CT in Hounsfield units, with and without hemorrhage: for tests and for users who
have no CT scan.

Ellipses, ripples and noise, without patient data. Phantoms never count in a reported result.

    python -m ml.scans.phantoms OUT_DIR       writes the demonstration files and their index.json;
    the same bytes each time
"""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from ml.scans.slices import FloatArray, Slice, render

Kind = Literal["intraparenchymal", "subdural", "epidural", "intraventricular"]

FIELD_MM = 230.0  # side of the image
AIR_HU, SCALP_HU, FAT_HU, TABLE_HU, DIPLOE_HU = -1000.0, 45.0, -90.0, 1400.0, 700.0
CSF_HU, GRAY_HU, WHITE_HU, FALX_HU, CALCIFIED_HU = 6.0, 35.0, 31.0, 45.0, 130.0
BLOOD_HU, EDEMA_HU = 68.0, 20.0
NOISE_HU = 6.0
# separate from the head's seed, so that one seed is one head, with or without blood
SEED_OF_BLOOD = 7919


def phantom(
    seed: int, hemorrhage: bool, kind: Kind = "intraparenchymal", size: int = 512
) -> NDArray[np.int16]:
    """Return an axial slice at the level of the lateral ventricles, int16 (size, size) HU, 230 mm
    wide, forehead at the top.

    One function, because all parts draw from the same sequence of random numbers: in another order,
    the same seed would give another head.

    Args:
        seed: determines the head, and the location of its hemorrhage.
        hemorrhage: whether there is a hemorrhage; otherwise, the head is the same.
        kind: type of the hemorrhage; ignored without hemorrhage.
        size: number of pixels per side, at least 64.

    Raises:
        ValueError: the kind is unknown, or the size too small.
    """
    if kind not in get_args(Kind):
        raise ValueError(
            f"There is no phantom with {kind!r} hemorrhage; choose {', '.join(get_args(Kind))}."
        )
    if size < 64:
        raise ValueError(f"A phantom has at least 64 pixels on a side, not {size}.")
    rng = np.random.default_rng(seed)
    pixel_mm = FIELD_MM / size
    down, across = (np.indices((size, size), dtype=np.float32) + 0.5) * pixel_mm - FIELD_MM / 2
    tilt = np.deg2rad(rng.uniform(-6, 6))
    x = (across - rng.uniform(-4, 4)) * np.cos(tilt) - (down - rng.uniform(-4, 4)) * np.sin(tilt)
    y = across * np.sin(tilt) + down * np.cos(tilt)
    half_x, half_y = rng.uniform(62, 68), rng.uniform(78, 86)
    angle, ripple = np.arctan2(y / half_y, x / half_x), rng.uniform(-1, 1, 4)
    depth = _depth(x, y, half_x, half_y, angle, ripple)

    hu = np.full((size, size), AIR_HU, np.float32)
    hu[depth > -6.5] = SCALP_HU
    hu[depth > -4.5] = FAT_HU
    bone_mm = (
        6.5 + 1.2 * np.sin(2 * angle + ripple[0]) + 1.5 * np.clip(np.abs(np.sin(angle)) - 0.8, 0, 1)
    )
    hu[depth > 0] = TABLE_HU
    hu[(depth > 1.8) & (depth < bone_mm - 1.8)] = DIPLOE_HU
    inside = depth - bone_mm  # mm below the inner table
    hu[inside > 0] = CSF_HU
    brain = inside > 1.2
    hu[brain] = _brain(rng, x, y, inside, angle)[brain]
    ventricles = _ventricles(rng, x, y)
    hu[ventricles & brain] = CSF_HU
    falx = (np.abs(x) < 0.7) & (inside > 0) & (np.abs(y) > half_y * 0.42)
    hu[falx] = FALX_HU
    for side in (-1, 1):  # plexus and pineal calcifications are bright and benign
        if rng.random() < 0.5:
            hu[np.hypot(x - side * rng.uniform(16, 20), y - 25) < rng.uniform(1.2, 2.2)] = (
                CALCIFIED_HU
            )
    if hemorrhage:
        _bleed(
            np.random.default_rng([seed, SEED_OF_BLOOD]), hu, kind, x, y, inside, angle, ventricles
        )
    # beam hardening brightens the brain below the bone
    hu[inside > 0] += (3 * np.exp(-inside / 6))[inside > 0]
    # the scanner's point spread, about 1.4 mm wide
    hu = np.asarray(cv2.GaussianBlur(hu, (0, 0), 0.6 / pixel_mm), np.float32)
    grain = cv2.GaussianBlur(rng.standard_normal((size, size)).astype(np.float32), (0, 0), 0.9)
    hu += np.where(depth > -6.5, grain * np.float32(NOISE_HU / grain.std()), np.float32(0))
    return np.round(np.clip(hu, -1000, 3000)).astype(np.int16)


def write_png(hu: NDArray[np.int16], path: Path) -> None:
    """Write HU (height, width) as an 8-bit PNG in the brain window 40/80."""
    render(Slice(hu.astype(np.float32), "hu"), max(hu.shape)).save(
        path, format="PNG", optimize=True
    )


def write_dicom(
    hu: NDArray[np.int16],
    path: Path,
    *,
    series: str = "phantom",
    number: int = 1,
    position_mm: float = 0.0,
) -> None:
    """Write HU (rows, columns) as a CT image without personal data.

    Args:
        hu: the slice, 230 mm wide.
        path: the file.
        series: slices with the same name belong together; UIDs are derived from it, so that the
            same call writes the same bytes.
        number: the instance number in the series.
        position_mm: position of the slice toward the vertex.
    """
    rows, columns = hu.shape
    pixel_mm = round(FIELD_MM / columns, 6)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(series, "instance", str(number))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    tags: dict[str, object] = {
        "SOPClassUID": CTImageStorage, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": _uid(series, "study"), "SeriesInstanceUID": _uid(series, "series"),
        "FrameOfReferenceUID": _uid(series, "frame"),
        "PatientName": "Phantom^Synthetic", "PatientID": "PHANTOM", "PatientBirthDate": "",
        "PatientSex": "",
        "PatientIdentityRemoved": "YES", "DeidentificationMethod": "Synthetic image, no patient",
        "StudyDate": "", "StudyTime": "", "StudyID": "", "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "Modality": "CT", "Manufacturer": "Hemoscan phantom", "PositionReferenceIndicator": "",
        "BodyPartExamined": "HEAD",
        "SeriesNumber": 1, "AcquisitionNumber": 1, "InstanceNumber": number,
        "ImageType": ["DERIVED", "SECONDARY", "AXIAL"],
        "PatientPosition": "HFS", "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [-FIELD_MM / 2, -FIELD_MM / 2, position_mm], "SliceThickness": 5,
        "KVP": "",
        "PixelSpacing": [pixel_mm, pixel_mm], "Rows": rows, "Columns": columns,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 16,
        "HighBit": 15, "PixelRepresentation": 1,
        "RescaleIntercept": 0, "RescaleSlope": 1, "RescaleType": "HU", "WindowCenter": 40,
        "WindowWidth": 80,
    }  # fmt: skip
    for name, value in tags.items():
        setattr(file, name, value)
    file.PixelData = hu.astype("<i2").tobytes()
    pydicom.dcmwrite(path, file, enforce_file_format=True)


def write_demonstration(out_dir: Path) -> list[Path]:
    """Write the phantoms that the web application offers, and index.json: [{"file", "title"}, ...].
    Returns the files written.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    index = []
    for file, title, seed, kind in DEMONSTRATION:
        hu = phantom(seed, kind is not None, kind or "intraparenchymal")
        if file.endswith(".zip"):
            _write_zip(seed, kind or "intraparenchymal", out_dir / file)
        elif file.endswith(".dcm"):
            write_dicom(hu, out_dir / file, series=file)
        else:
            write_png(hu, out_dir / file)
        index.append({"file": file, "title": title})
    (out_dir / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return [*(out_dir / file for file, *_ in DEMONSTRATION), out_dir / "index.json"]


# Seeds whose heads the shipped model classifies clearly: these demonstrate the pages and prove
# nothing about the model.
DEMONSTRATION: tuple[tuple[str, str, int, Kind | None], ...] = (
    ("phantom-1.png", "Phantom 1: intraparenchymal hemorrhage (PNG)", 17, "intraparenchymal"),
    ("phantom-2.png", "Phantom 2: no hemorrhage (PNG)", 32, None),
    ("phantom-3.png", "Phantom 3: intraventricular hemorrhage (PNG)", 22, "intraventricular"),
    ("phantom-4.png", "Phantom 4: no hemorrhage (PNG)", 91, None),
    ("phantom-5.dcm", "Phantom 5: intraparenchymal hemorrhage (DICOM)", 29, "intraparenchymal"),
    ("phantom-6.dcm", "Phantom 6: no hemorrhage (DICOM)", 44, None),
    (
        "phantom-7.zip",
        "Phantom 7: series with hemorrhage in some slices (ZIP of DICOM)",
        3,
        "intraparenchymal",
    ),
)
SERIES_SLICES, SERIES_BLEEDS, SERIES_SIZE_PX = 20, range(8, 12), 128


def _write_zip(seed: int, kind: Kind, path: Path) -> None:
    """Write a head as a series of slices 5 mm apart, of which a few show blood; otherwise they are
    alike.
    """
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        tempfile.TemporaryDirectory() as folder,
    ):
        for index in range(SERIES_SLICES):
            slice_path = Path(folder) / f"{index + 1:02}.dcm"
            hu = phantom(seed, index in SERIES_BLEEDS, kind, SERIES_SIZE_PX)
            write_dicom(hu, slice_path, series=path.name, number=index + 1, position_mm=5.0 * index)
            archive.writestr(
                zipfile.ZipInfo(slice_path.name), slice_path.read_bytes(), zipfile.ZIP_DEFLATED
            )


def _depth(
    x: FloatArray,
    y: FloatArray,
    half_x: float,
    half_y: float,
    angle: FloatArray,
    ripple: NDArray[np.float64],
) -> FloatArray:
    """Return the approximate depth in mm of a point below the outer table of an irregular oval;
    negative outside.
    """
    uneven = (
        1
        + 0.012 * ripple[1] * np.cos(3 * angle)
        + 0.01 * ripple[2] * np.sin(2 * angle)
        + 0.03 * np.sin(angle)
    )
    radius = np.hypot(x / half_x, y / half_y) / uneven
    # Dividing by the slope of the radius converts it to mm (first order), so that bone is as thick
    # at the side as at the back.
    slope = np.hypot(x / half_x**2, y / half_y**2) / np.maximum(
        np.hypot(x / half_x, y / half_y), 1e-3
    )
    return np.asarray((1 - radius) / np.maximum(slope, 1e-3), np.float32)


def _brain(
    rng: np.random.Generator, x: FloatArray, y: FloatArray, inside: FloatArray, angle: FloatArray
) -> FloatArray:
    """Return gray and white matter and the sulci, HU."""
    folds = 0.5 + 0.5 * np.sin(
        rng.integers(20, 26) * angle + 2.5 * np.sin(5 * angle + rng.uniform(0, 6))
    )
    cortex = 4.5 + 7 * folds
    hu = np.where(inside < cortex, GRAY_HU, WHITE_HU)
    for side in (-1, 1):  # thalamus with the lentiform nucleus, and the head of the caudate
        hu = np.where(np.hypot((x - side * 13) / 9, (y - 8) / 13) < 1, GRAY_HU, hu)
        hu = np.where(np.hypot((x - side * 26) / 5, (y + 2) / 14) < 1, GRAY_HU, hu)
        hu = np.where(np.hypot((x - side * 13) / 4, (y + 18) / 8) < 1, GRAY_HU, hu)
    sulci = (folds < 0.06) & (inside < rng.uniform(7, 13))
    hu = np.where(sulci, (CSF_HU + GRAY_HU) / 2, hu)
    return np.asarray(cv2.GaussianBlur(hu.astype(np.float32), (0, 0), 2), np.float32)


def _ventricles(rng: np.random.Generator, x: FloatArray, y: FloatArray) -> NDArray[np.bool_]:
    """Return the frontal horns, the third ventricle and the atria."""
    wide = rng.uniform(0.8, 1.4)
    filled = np.hypot(x / (1.6 * wide), (y - 8) / 9) < 1
    for side in (-1, 1):
        horn_x = side * (6 + 0.25 * np.abs(y + 18))
        filled |= np.hypot((x - horn_x) / (3.2 * wide), (y + 20) / 13) < 1
        filled |= np.hypot((x - side * (20 + 0.2 * (y - 26))) / (4 * wide), (y - 27) / 12) < 1
    return np.asarray(filled, np.bool_)


def _bleed(
    rng: np.random.Generator, hu: FloatArray, kind: Kind, x: FloatArray, y: FloatArray,
    inside: FloatArray, angle: FloatArray, ventricles: NDArray[np.bool_],
) -> None:  # fmt: skip
    """Add blood to `hu`, in place.

    Many parameters, because the geometry of a head is computed once and used for each `kind`.
    """
    side = rng.choice([-1, 1])
    if kind == "intraventricular":
        hu[ventricles & (inside > 1.2) & (y > rng.uniform(-20, -5))] = BLOOD_HU
        return
    if kind == "intraparenchymal":
        middle_x, middle_y = side * rng.uniform(24, 32), rng.uniform(-12, 18)
        around = np.arctan2(y - middle_y, x - middle_x)
        edge_mm = rng.uniform(13, 18) * (
            1
            + 0.14 * np.sin(3 * around + rng.uniform(0, 6))
            + 0.08 * np.sin(7 * around + rng.uniform(0, 6))
        )
        distance_mm = np.hypot(x - middle_x, (y - middle_y) / 1.35)
        hu[(distance_mm < edge_mm + rng.uniform(4, 7)) & (inside > 3)] = EDEMA_HU
        hu[(distance_mm < edge_mm) & (inside > 3)] = BLOOD_HU
        return
    # Along the inner table: a subdural hematoma is a long crescent, an epidural one a short lens
    # (it ends at the sutures).
    toward = 0 if side > 0 else np.pi
    angular_offset = np.abs(np.angle(np.exp(1j * (angle - toward - side * rng.uniform(-0.3, 0.3)))))
    reach, thick_mm = (
        (1.25, rng.uniform(9, 12)) if kind == "subdural" else (0.55, rng.uniform(18, 24))
    )
    profile = np.clip(1 - (angular_offset / reach) ** 2, 0, 1) ** (
        0.5 if kind == "subdural" else 1.0
    )
    hu[(inside > 0) & (inside < thick_mm * profile)] = BLOOD_HU


def _uid(*words: str) -> UID:
    return generate_uid(entropy_srcs=["hemoscan phantom", *words])


def _main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m ml.scans.phantoms OUT_DIR\n")
        return 2
    for path in write_demonstration(Path(arguments[0])):
        sys.stdout.write(f"{path} {path.stat().st_size / 1000:.0f} kB\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
