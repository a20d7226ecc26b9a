"""Whole scans of a phantom as hospitals send them: DICOM series, Enhanced CT, NIfTI. Each slice can
be told from the others.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from ml.scans.phantoms import phantom, write_dicom

SIDE = 64
PIXEL_MM = 3.59375  # 230 mm on 64 pixels


@cache
def head() -> np.ndarray:
    return phantom(1, hemorrhage=False, size=SIDE)


def slice_hu(number: int) -> np.ndarray:
    """The head, its corners no longer alike and marked with the number: foremost, at the patient's
    right.
    """
    hu = head().copy()
    hu[0, 0] = number
    hu[0, -1] = 500
    hu[-1, 0] = 900
    return hu


def marks(series: object) -> list[int]:
    """The numbers of the slices in the order of a series, read where an upright slice has them."""
    return [int(slice.pixels[0, 0]) for slice in series.slices]  # type: ignore[attr-defined]


def write_series(
    folder: Path,
    count: int,
    *,
    step_mm: float = 5.0,
    places_mm: Sequence[float] | None = None,
    **tags: object,
) -> list[Path]:
    """Write slices 1..count from foot to head as DICOM files NN.dcm; `tags` are set in each, or
    left out where None.
    """
    folder.mkdir(exist_ok=True)
    paths = []
    for number in range(1, count + 1):
        paths.append(folder / f"{number:02}.dcm")
        place = (number - 1) * step_mm if places_mm is None else places_mm[number - 1]
        write_dicom(slice_hu(number), paths[-1], number=number, position_mm=place)
        if tags:
            change(paths[-1], **tags)
    return paths


def change(path: Path, **tags: object) -> Path:
    """Set tags of a DICOM file, or remove those that are None."""
    file = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is None:
            delattr(file, name)
        else:
            setattr(file, name, value)
    file.save_as(path)
    return path


def one_file_of(paths: Sequence[Path], path: Path, *, functional_groups: bool) -> Path:
    """Write the slices of several DICOM files as the frames of one, in the order given."""
    files = [pydicom.dcmread(one) for one in paths]
    whole = files[0]
    whole.NumberOfFrames = len(files)
    whole.PixelData = b"".join(file.PixelData for file in files)
    if functional_groups:
        whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
        moved = {
            "PlaneOrientationSequence": ("ImageOrientationPatient",),
            "PixelMeasuresSequence": ("PixelSpacing",),
            "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope", "RescaleType"),
        }
        shared = Dataset()
        for sequence, names in moved.items():
            setattr(shared, sequence, [_part(whole, names)])
        whole.SharedFunctionalGroupsSequence = [shared]
        whole.PerFrameFunctionalGroupsSequence = []
        for file in [pydicom.dcmread(one) for one in paths]:
            frame = Dataset()
            frame.PlanePositionSequence = [_part(file, ("ImagePositionPatient",))]
            whole.PerFrameFunctionalGroupsSequence.append(frame)
        for name in ("ImagePositionPatient", *(name for names in moved.values() for name in names)):
            delattr(whole, name)
    whole.save_as(path)
    return path


def _part(dataset: Dataset, names: Sequence[str]) -> Dataset:
    part = Dataset()
    for name in names:
        part[name] = dataset[name]
    return part


def nifti(
    voxels: np.ndarray,
    affine: np.ndarray | None,
    *,
    version: int = 1,
    order: str = "<",
    quaternion: Sequence[float] | None = None,
    slope: float = 0.0,
    intercept: float = 0.0,
) -> bytes:
    """Return the NIfTI file of voxels (i, j, k), written field by field; `affine` is the sform,
    `quaternion` b, c, d of the qform.
    """
    code, bits = {"u1": (2, 8), "i2": (4, 16), "f4": (16, 32), "f8": (64, 64), "u2": (512, 16)}[
        voxels.dtype.str[1:]
    ]
    dims = [voxels.ndim, *voxels.shape, *([1] * (7 - voxels.ndim))]
    sizes = [
        1.0,
        *(np.linalg.norm(affine[:3, :3], axis=0) if affine is not None else [1.0, 1.0, 1.0]),
        0,
        0,
        0,
        0,
    ]
    rows = (affine if affine is not None else np.zeros((4, 4)))[:3]
    forms = (int(quaternion is not None), int(affine is not None and quaternion is None))
    turn = [*(quaternion or (0, 0, 0)), *rows[:, 3]]
    if version == 1:
        header = bytearray(352)
        fields = [
            (0, "i", [348]), (40, "8h", dims), (70, "2h", [code, bits]), (76, "8f", sizes), (108,
            "f", [352.0]),
            (112, "2f", [slope, intercept]), (123, "B", [2]), (252, "2h", forms), (256, "6f",
            turn), (280, "12f", rows.ravel()),
        ]  # fmt: skip
        header[344:348] = b"n+1\0"
    else:
        header = bytearray(544)
        fields = [
            (0, "i", [540]), (12, "2h", [code, bits]), (16, "8q", dims), (104, "8d", sizes), (168,
            "q", [544]),
            (176, "2d", [slope, intercept]), (500, "i", [2]), (344, "2i", forms), (352, "6d",
            turn), (400, "12d", rows.ravel()),
        ]  # fmt: skip
        header[4:12] = b"n+2\0\r\n\x1a\n"
    for at, layout, values in fields:
        struct.pack_into(order + layout, header, at, *values)
    return bytes(header) + voxels.astype(voxels.dtype.newbyteorder(order)).tobytes(order="F")


BEGINNINGS = {
    "right behind the header, which the header says": (348, b""),
    "behind the extender, but the end of the header is given": (348, bytes(4)),
    "behind the extender, but a place within it is given": (350, bytes(4)),
    "behind the extender, but no place is given": (0, bytes(4)),
    "right behind the header, but no place is given": (0, b""),
    "behind an extension": (352 + 32, b"\1\0\0\0"),
    "behind an extension, but no place is given": (0, b"\1\0\0\0"),
    "behind an extension, but the end of the extender is given": (352, b"\1\0\0\0"),
    "behind an extension, but the end of the header is given": (348, b"\1\0\0\0"),
    "behind the extender, which announces an extension that is missing": (352, b"\2\0\0\0"),
    "behind the extender with other bytes, and no place is given": (0, b"abcd"),
}
"""Where the voxels of a NIfTI-1 file may begin: the place in its header, and the extender."""


def begins_otherwise(content: bytes, begins: str) -> bytes:
    """Return a NIfTI-1 file without extensions whose voxels begin as `BEGINNINGS` describes."""
    place, extender = BEGINNINGS[begins]
    header = bytearray(content[:348])
    struct.pack_into("<f", header, 108, place)
    extension = struct.pack("<2i", 32, 6).ljust(32, b"x") if extender[:1] == b"\1" else b""
    return bytes(header) + extender + extension + content[352:]


def packed(content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)
