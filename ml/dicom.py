"""Read single-frame CT slices from DICOM files: Hounsfield units, patient orientation, anatomical order.

Tags are from DICOM PS3.3 (C.7.6.2 image plane, C.7.6.3 image pixel, C.8.2.1 CT image). No tag that names a patient is read.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset

from ml.images import FloatArray, ImageError, Series, Slice, errors_naming, require_a_picture, require_fewer_pixels

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings quote what stands in tags, and a log may not

AIR_HU = -1000.0
LOWEST_HU, HIGHEST_HU = -1024.0, 4095.0  # what 12 bits of CT can say; beyond lie markers of pixels outside the scanned circle

NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
COMPRESSED = {
    "1.2.840.10008.1.2.5",  # RLE
    *(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)),  # JPEG, JPEG-LS, JPEG 2000
}
"""The transfer syntaxes that are read. The deflated ones are not among them: inflating has no limit in pydicom."""

CT_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.2"

HU_TYPES = {"HU", "HU_MOD", "US"}  # US is "unspecified"; iodine maps, electron densities and the like say what they are (C.11.1.1.2)
HEAD_PARTS = ("HEAD", "BRAIN", "SKULL", "NECK", "FACE", "ORBIT", "SINUS", "IAC", "EAR", "CEREB", "WHOLEBODY")

TAGS = [
    "SOPClassUID", "ImageType", "Modality", "SeriesInstanceUID", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient",
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "PixelSpacing", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "PlanarConfiguration", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleIntercept",
    "RescaleSlope", "RescaleType", "BodyPartExamined", "PixelData",
]  # fmt: skip


@dataclass(frozen=True)
class _Plane:
    """A slice with what puts it in order. `position_mm` is its place along the normal, None where the file does not say."""

    slice: Slice
    position_mm: float | None
    number: int | None
    series_uid: str
    notes: tuple[str, ...]


def read_dicom_series(contents: Sequence[bytes], names: Sequence[str | None], *, max_pixels: int) -> Series:
    """Return the slices of one DICOM series from foot to head.

    Args:
        contents: the bytes of the files.
        names: what each file is called in an error; None leaves it unnamed.
        max_pixels: the largest picture (rows x columns) that is decoded.

    Raises:
        ImageError: a file is no readable single-frame CT slice, or the files belong to different series.
    """
    planes = []
    for content, name in zip(contents, names, strict=True):
        with errors_naming(name):
            planes.append(_read_plane(content, max_pixels))
    uids = {plane.series_uid for plane in planes}
    if len(uids) > 1:
        raise ImageError(f"The files belong to {len(uids)} different series; one scan is one series.")
    notes = [note for plane in planes for note in plane.notes]
    positions = [plane.position_mm for plane in planes if plane.position_mm is not None]
    numbers = [plane.number for plane in planes if plane.number is not None]
    if len(positions) == len(planes):
        planes = [planes[i] for i in np.argsort(positions, kind="stable")]
    elif len(numbers) == len(planes):
        planes = [planes[i] for i in np.argsort(numbers, kind="stable")]
        notes.append("The files do not say where their slices lie; they were ordered by instance number.")
    else:
        notes.append("The files do not say where their slices lie; they were read in the order given.")
    if len(planes) == 1:  # one slice needs no order
        notes = list(planes[0].notes)
    return Series(tuple(plane.slice for plane in planes), tuple(dict.fromkeys(notes)))


def _read_plane(content: bytes, max_pixels: int) -> _Plane:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of every odd value, and may quote it
            _require_known_transfer_syntax(content)
            header = pydicom.dcmread(io.BytesIO(content), specific_tags=list(TAGS))
            _require_single_ct_frame(header, max_pixels)
            return _to_plane(header, header.pixel_array.astype(np.int64))
    except ImageError:
        raise
    except Exception as err:  # a damaged file makes pydicom and its decoders raise anything, RecursionError included
        raise ImageError("The DICOM file is damaged or incomplete and cannot be decoded.") from err


def _require_known_transfer_syntax(content: bytes) -> None:
    file = io.BytesIO(content)
    file.seek(132)  # preamble and "DICM"; `dcmread` would inflate a deflated data set before anybody could refuse it
    meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, vr, length: tag.group != 2)
    syntax = meta.get("TransferSyntaxUID")
    if syntax is None:
        raise ImageError("The DICOM file does not say how its pixels are coded (no transfer syntax).")
    if syntax not in NATIVE | COMPRESSED:
        raise ImageError(f"The DICOM file is coded in a way that is not read: transfer syntax {_printable(pydicom.uid.UID(syntax).name)}.")


def _require_single_ct_frame(header: pydicom.Dataset, max_pixels: int) -> None:
    if "PixelData" not in header or not header.PixelData:
        raise ImageError("The DICOM file has no picture in it.")
    modality = str(header.get("Modality") or "") or ("CT" if header.get("SOPClassUID") == CT_SOP_CLASS else "unknown")
    if modality != "CT":
        raise ImageError(f"The DICOM file is not a CT image: its modality is {_printable(modality)}.")
    if "LOCALIZER" in [str(word).upper() for word in _values(header, "ImageType")]:
        raise ImageError("The DICOM file is a localizer (scout view), not an axial slice.")
    frames = int(header.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError(f"The DICOM file has {frames} frames; only files with a single slice are read.")
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise ImageError("The DICOM file is a colour picture, not a CT slice.")
    photometric = str(header.get("PhotometricInterpretation") or "MONOCHROME2")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError(f"The DICOM file is a colour picture ({_printable(photometric)}), not a CT slice.")
    rescale_type = str(header.get("RescaleType") or "HU")
    if rescale_type not in HU_TYPES:
        raise ImageError(f"The DICOM file's values are {_printable(rescale_type)}, not Hounsfield units.")
    rows, columns = int(header.Rows), int(header.Columns)
    require_fewer_pixels(columns, rows, max_pixels)
    if header.file_meta.TransferSyntaxUID in COMPRESSED:
        frame = get_frame(header.PixelData, 0, number_of_frames=1)
        coded = _coded_size(frame)
        # A decoder believes the compressed stream, so a small header must not hide a huge picture.
        if coded is not None and coded != (rows, columns):
            raise ImageError(f"The DICOM file announces {columns} x {rows} pixels, but {coded[1]} x {coded[0]} are coded.")


def _coded_size(frame: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) from the head of a JPEG, JPEG-LS or JPEG 2000 stream; None for RLE, which has none."""
    if frame.startswith(b"\xff\x4f\xff\x51"):  # JPEG 2000: SOC, then SIZ with the corners of the image area
        right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
        return bottom - top, right - left
    if not frame.startswith(b"\xff\xd8"):
        return None
    at = 2
    while frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):  # a start of frame
            rows, columns = struct.unpack_from(">2H", frame, at + 5)
            return rows, columns
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    raise ImageError("The DICOM file's compressed picture is damaged.")


def _to_plane(header: pydicom.Dataset, stored: NDArray[np.int64]) -> _Plane:
    require_a_picture(stored.astype(np.float32))
    notes: list[str] = []
    unit = "hu" if int(header.BitsStored) > 8 else "display"
    spacing = _numbers(header, "PixelSpacing", 2)
    spacing_mm = (spacing[0], spacing[1]) if spacing is not None and min(spacing) > 0 else None
    if unit == "display":  # eight bits cannot hold a head's HU: somebody has windowed it already
        notes.append("The DICOM file has 8-bit pixels, so it was read as a picture without Hounsfield units.")
        pixels = (stored / 255).astype(np.float32)
        if header.get("PhotometricInterpretation") == "MONOCHROME1":
            pixels = 1 - pixels
    else:
        pixels = _to_hu(header, stored, notes)
    orientation = _numbers(header, "ImageOrientationPatient", 6)
    position = _numbers(header, "ImagePositionPatient", 3)
    position_mm = None
    if orientation is None:
        notes.append("The DICOM file does not say how the patient lies; the forehead is assumed at the top.")
    else:
        across, down = np.array(orientation[:3]), np.array(orientation[3:])
        normal = np.cross(across, down)
        if abs(normal[2]) < 0.7:
            notes.append("The slice is not axial; the models know axial slices only.")
        else:
            pixels, spacing_mm = _turn_upright(pixels, spacing_mm, across, down)
            normal = normal * np.sign(normal[2])  # towards the head
        position_mm = None if position is None else float(np.dot(normal, position))
    part = _printable(str(header.get("BodyPartExamined") or "")).upper()
    if part and not any(known in part for known in HEAD_PARTS):
        notes.append(f"The DICOM file says that it shows {part}, not a head.")
    number = _numbers(header, "InstanceNumber", 1)
    return _Plane(
        Slice(np.ascontiguousarray(pixels, np.float32), "hu" if unit == "hu" else "display", spacing_mm),
        position_mm,
        None if number is None else int(number[0]),
        str(header.get("SeriesInstanceUID", "")),
        tuple(notes),
    )


def _to_hu(header: pydicom.Dataset, stored: NDArray[np.int64], notes: list[str]) -> FloatArray:
    """Return stored values (rows, columns) as HU, clipped to -1024..4095; padding becomes air."""
    bits, signed = int(header.BitsStored), int(header.PixelRepresentation) == 1
    padding = _padding(header, stored)
    slope, intercept = _numbers(header, "RescaleSlope", 1), _numbers(header, "RescaleIntercept", 1)
    if header.get("PhotometricInterpretation") == "MONOCHROME1" and _air_is_brightest(stored):
        # MONOCHROME1 speaks of display only (PS3.3 C.7.6.3.1.2), but some exporters turn the values over as well.
        stored = (-1 if signed else 2**bits - 1) - stored
        notes.append("The DICOM file's grey values were upside down; they were turned over.")
    if slope is not None and slope[0] == 0:
        raise ImageError("The DICOM file's rescale slope is 0, so its pixels have no Hounsfield units.")
    if intercept is None:
        # CT requires the tag. Values that are never negative are stored from -1024 HU on, by all but universal habit.
        assumed = 0.0 if stored.min() < 0 else -1024.0
        notes.append(f"The DICOM file has no rescale values; an intercept of {assumed:g} HU was assumed.")
        intercept = (assumed,)
    elif bits == 12 and not signed and intercept[0] == 0 and stored.max() >= 3096:
        # Some scanners' files hold signed HU in unsigned 12 bits and lost the intercept: air shows as 3096 (RSNA 2019 has hundreds).
        stored = np.where(stored >= 3096, stored - 4096, stored)
        notes.append("The DICOM file's negative values were wrapped around; they were put right.")
    values = stored * (1.0 if slope is None else slope[0]) + intercept[0]
    if padding is not None:
        values = np.where(padding, AIR_HU, values)
    clipped: FloatArray = np.clip(values, LOWEST_HU, HIGHEST_HU).astype(np.float32)
    return clipped


def _padding(header: pydicom.Dataset, stored: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """Return where the file says that nothing was scanned; None where it says nothing."""
    value, limit = _numbers(header, "PixelPaddingValue", 1), _numbers(header, "PixelPaddingRangeLimit", 1)
    if value is None:
        return None
    low, high = sorted((value[0], value[0] if limit is None else limit[0]))
    return (stored >= low) & (stored <= high)


def _air_is_brightest(stored: NDArray[np.int64]) -> bool:
    """True if the rim of the picture, which shows air, is brighter than the picture as a whole."""
    rim = np.concatenate([stored[0], stored[-1], stored[:, 0], stored[:, -1]])
    return bool(np.median(rim) > stored.mean())


def _turn_upright(
    pixels: FloatArray, spacing_mm: tuple[float, float] | None, across: NDArray[np.float64], down: NDArray[np.float64]
) -> tuple[FloatArray, tuple[float, float] | None]:
    """Turn an axial slice as radiologists read it: forehead at the top, the patient's left on the right.

    `across` and `down` are the directions of a row and a column in patient coordinates (x to the left, y to the back).
    """
    if abs(across[1]) > abs(across[0]):
        pixels, across, down = pixels.T, down, across
        spacing_mm = None if spacing_mm is None else (spacing_mm[1], spacing_mm[0])
    if across[0] < 0:
        pixels = pixels[:, ::-1]
    if down[1] < 0:
        pixels = pixels[::-1]
    return pixels, spacing_mm


def _printable(value: str) -> str:
    """Return a file's own word, safe to quote in a sentence."""
    return "".join(character for character in value if character.isascii() and character.isprintable())[:64]


def _values(header: pydicom.Dataset, name: str) -> list[object]:
    value = header.get(name)
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, pydicom.multival.MultiValue) else [value]


def _numbers(header: pydicom.Dataset, name: str, count: int) -> tuple[float, ...] | None:
    """Return a tag's numbers; None where it is missing, has another count, or is not all finite numbers."""
    try:
        numbers = tuple(float(str(value)) for value in _values(header, name))
    except ValueError:
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None
