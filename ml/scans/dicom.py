"""Read CT slices from DICOM files, single-frame or multi-frame: Hounsfield units, upright, with
their place in the patient.

Tags are from DICOM PS3.3 (C.7.6.2 image plane, C.7.6.3 image pixel, C.8.2.1 CT image). No tag that
names a patient is read.
"""

from __future__ import annotations

import logging
import struct
import warnings
from typing import BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset
from pydicom.pixels.utils import iter_pixels

from ml.errors import ImageError, NoSliceError
from ml.scans.dicom_frames import PER_FRAME, SHARED, frame_headers
from ml.scans.limits import require_a_picture, require_fewer_pixels, require_fewer_slices
from ml.scans.ordering import AXIAL, FURTHEST_MM, Plane
from ml.scans.slices import FloatArray, Slice

# its warnings quote what stands in tags, and a log may not
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

AIR_HU = -1000.0
# what 12 bits of CT can say; beyond lie markers of pixels outside the scanned circle
LOWEST_HU, HIGHEST_HU = -1024.0, 4095.0

NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
COMPRESSED = {
    "1.2.840.10008.1.2.5",  # RLE
    # JPEG, JPEG-LS, JPEG 2000
    *(
        f"1.2.840.10008.1.2.4.{number}"
        for number in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)
    ),
}
"""The transfer syntaxes that are read. The deflated ones are not among them: inflating has no limit
in pydicom.
"""

CT_SOP_CLASSES = {f"1.2.840.10008.5.1.4.1.1.2{kind}" for kind in ("", ".1", ".2")}
"""CT, Enhanced CT, and Enhanced CT converted from single slices."""
# of the unit: directions of rows and columns that are no right angle at all span no plane
SHORTEST_NORMAL = 0.5

# US is "unspecified"; iodine maps, electron densities and the like say what they are (C.11.1.1.2)
HU_TYPES = {"HU", "HU_MOD", "US"}
HEAD_PARTS = (
    "HEAD",
    "BRAIN",
    "SKULL",
    "NECK",
    "FACE",
    "ORBIT",
    "SINUS",
    "IAC",
    "EAR",
    "CEREB",
    "WHOLEBODY",
)

TAGS = [
    "SOPClassUID", "SOPInstanceUID", "ImageType", "Modality", "SeriesInstanceUID",
    "InstanceNumber", "ImagePositionPatient",
    "ImageOrientationPatient",
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns",
    "PixelSpacing", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "PlanarConfiguration", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "RescaleIntercept",
    "RescaleSlope", "RescaleType", "BodyPartExamined", SHARED, PER_FRAME, "PixelData",
]  # fmt: skip


def read_planes(file: BinaryIO, *, max_pixels: int, max_slices: int) -> list[Plane]:
    """Return the slices of one DICOM file with what puts them in order: one, or one for each frame.

    Args:
        file: the open file, at its beginning.
        max_pixels: the largest picture (rows x columns) that is decoded.
        max_slices: the most frames that are decoded.

    Raises:
        NoSliceError: the file holds something else than CT slices.
        ImageError: the file is damaged, or its slices cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of every odd value, and may quote it
            require_known_transfer_syntax(file)
            file.seek(0)
            header = pydicom.dcmread(file, specific_tags=list(TAGS))
            frames = _require_ct_frames(header, max_pixels, max_slices)
            pairs = zip(frame_headers(header, frames), iter_pixels(header), strict=True)
            return [_to_plane(own, stored.astype(np.int64)) for own, stored in pairs]
    except (ImageError, MemoryError):
        raise
    # a damaged file makes pydicom and its decoders raise anything, RecursionError included
    except Exception as err:
        raise ImageError("The DICOM file is damaged or incomplete and cannot be decoded.") from err


def require_known_transfer_syntax(file: BinaryIO) -> None:
    """Refuse a DICOM file whose pixels, or whose header, are coded in a way that is not read.

    Raises:
        ImageError: they are.
    """
    # preamble and "DICM"; `dcmread` would inflate a deflated data set before anybody could refuse
    # it
    file.seek(132)
    meta = read_dataset(
        file,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, vr, length: tag.group != 2,
    )
    syntax = meta.get("TransferSyntaxUID")
    if syntax is None:
        raise ImageError(
            "The DICOM file does not say how its pixels are coded (no transfer syntax)."
        )
    if syntax not in NATIVE | COMPRESSED:
        raise ImageError(
            "The DICOM file is coded in a way that is not read: transfer syntax"
            f" {_printable(pydicom.uid.UID(syntax).name)}."
        )


def _require_ct_frames(header: pydicom.Dataset, max_pixels: int, max_slices: int) -> int:
    """Return how many frames of CT the file holds, 1 or more, before any is decoded."""
    if "PixelData" not in header or not header.PixelData:
        raise NoSliceError("The DICOM file has no picture in it.")
    modality = str(header.get("Modality") or "") or (
        "CT" if header.get("SOPClassUID") in CT_SOP_CLASSES else "unknown"
    )
    if modality != "CT":
        raise NoSliceError(
            f"The DICOM file is not a CT image: its modality is {_printable(modality)}."
        )
    if "LOCALIZER" in [str(word).upper() for word in values_of(header, "ImageType")]:
        raise NoSliceError("The DICOM file is a localizer (scout view), not an axial slice.")
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise NoSliceError("The DICOM file is a color picture, not a CT slice.")
    photometric = str(header.get("PhotometricInterpretation") or "MONOCHROME2")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise NoSliceError(
            f"The DICOM file is a color picture ({_printable(photometric)}), not a CT slice."
        )
    rows, columns, frames = (
        int(header.Rows),
        int(header.Columns),
        int(header.get("NumberOfFrames") or 1),
    )
    require_fewer_pixels(columns, rows, max_pixels)
    require_fewer_slices(frames, rows * columns, max_slices)
    if header.file_meta.TransferSyntaxUID in COMPRESSED:
        for frame in generate_frames(header.PixelData, number_of_frames=frames):
            coded = _coded_size(frame)
            # A decoder believes the compressed stream, so a small header must not hide a huge
            # picture.
            if coded is not None and coded != (rows, columns):
                raise ImageError(
                    f"The DICOM file announces {columns} x {rows} pixels, but {coded[1]} x"
                    f" {coded[0]} are coded."
                )
    return frames


def _coded_size(frame: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) from the head of a JPEG, JPEG-LS or JPEG 2000 stream; None for RLE,
    which has none.
    """
    # JPEG 2000: SOC, then SIZ with the corners of the image area
    if frame.startswith(b"\xff\x4f\xff\x51"):
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
        # a start of frame
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = struct.unpack_from(">2H", frame, at + 5)
            return rows, columns
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    raise ImageError("The DICOM file's compressed picture is damaged.")


def _to_plane(header: pydicom.Dataset, stored: NDArray[np.int64]) -> Plane:
    require_a_picture(stored.astype(np.float32))
    notes: list[str] = []
    unit = "hu" if int(header.BitsStored) > 8 else "display"
    spacing = numbers_of(header, "PixelSpacing", 2)
    spacing_mm = (
        (spacing[0], spacing[1])
        if spacing is not None and min(spacing) > 0 and max(spacing) < FURTHEST_MM
        else None
    )
    if unit == "display":  # eight bits cannot hold a head's HU: somebody has windowed it already
        notes.append(
            "The DICOM file has 8-bit pixels, so it was read as a picture without Hounsfield units."
        )
        pixels = (stored / 255).astype(np.float32)
        if header.get("PhotometricInterpretation") == "MONOCHROME1":
            pixels = 1 - pixels
    else:
        pixels = _to_hu(header, stored, notes)
    orientation = numbers_of(header, "ImageOrientationPatient", 6)
    position = numbers_of(header, "ImagePositionPatient", 3)
    if position is not None and max(map(abs, position)) >= FURTHEST_MM:
        position = None
    normal = None
    if orientation is not None:
        across, down = np.array(orientation[:3]), np.array(orientation[3:])
        normal = np.cross(across, down)
        length = float(np.linalg.norm(normal))
        normal = (
            normal / length * (1 if normal[2] >= 0 else -1) if length > SHORTEST_NORMAL else None
        )
    if normal is None:
        notes.append(
            "The DICOM file does not say how the patient lies; the forehead is assumed at the top."
        )
    elif normal[2] >= AXIAL:
        pixels, spacing_mm = _turn_upright(pixels, spacing_mm, across, down)
    part = _printable(str(header.get("BodyPartExamined") or "")).upper()
    if part and not any(known in part for known in HEAD_PARTS):
        notes.append(f"The DICOM file says that it shows {part}, not a head.")
    number = numbers_of(header, "InstanceNumber", 1)
    return Plane(
        Slice(
            np.ascontiguousarray(pixels, np.float32),
            "hu" if unit == "hu" else "display",
            spacing_mm,
        ),
        None if position is None else np.array(position),
        normal,
        None if number is None else int(number[0]),
        str(header.get("SeriesInstanceUID", "")),
        str(header.get("SOPInstanceUID", "")),
        tuple(notes),
    )


def _to_hu(header: pydicom.Dataset, stored: NDArray[np.int64], notes: list[str]) -> FloatArray:
    """Return stored values (rows, columns) as HU, clipped to -1024..4095; padding becomes air."""
    bits, signed = int(header.BitsStored), int(header.PixelRepresentation) == 1
    rescale_type = str(header.get("RescaleType") or "HU")
    if rescale_type not in HU_TYPES:
        raise ImageError(
            f"The DICOM file's values are {_printable(rescale_type)}, not Hounsfield units."
        )
    padding = _padding(header, stored)
    slope, intercept = (
        numbers_of(header, "RescaleSlope", 1),
        numbers_of(header, "RescaleIntercept", 1),
    )
    if header.get("PhotometricInterpretation") == "MONOCHROME1" and _air_is_brightest(stored):
        # MONOCHROME1 speaks of display only (PS3.3 C.7.6.3.1.2), but some exporters turn the values
        # over as well.
        stored = (-1 if signed else 2**bits - 1) - stored
        notes.append("The DICOM file's gray values were upside down; they were turned over.")
    if slope is not None and slope[0] == 0:
        raise ImageError(
            "The DICOM file's rescale slope is 0, so its pixels have no Hounsfield units."
        )
    if intercept is None:
        # CT requires the tag. Values that are never negative are stored from -1024 HU on, by all
        # but universal habit.
        assumed = 0.0 if stored.min() < 0 else -1024.0
        notes.append(
            f"The DICOM file has no rescale values; an intercept of {assumed:g} HU was assumed."
        )
        intercept = (assumed,)
    elif bits == 12 and not signed and intercept[0] == 0 and stored.max() >= 3096:
        # Some scanners' files hold signed HU in unsigned 12 bits and lost the intercept: air shows
        # as 3096 (RSNA 2019 has hundreds).
        stored = np.where(stored >= 3096, stored - 4096, stored)
        notes.append("The DICOM file's negative values were wrapped around; they were put right.")
    values = stored * (1.0 if slope is None else slope[0]) + intercept[0]
    if padding is not None:
        values = np.where(padding, AIR_HU, values)
    clipped: FloatArray = np.clip(values, LOWEST_HU, HIGHEST_HU).astype(np.float32)
    return clipped


def _padding(header: pydicom.Dataset, stored: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """Return where the file says that nothing was scanned; None where it says nothing."""
    value, limit = (
        numbers_of(header, "PixelPaddingValue", 1),
        numbers_of(header, "PixelPaddingRangeLimit", 1),
    )
    if value is None:
        return None
    low, high = sorted((value[0], value[0] if limit is None else limit[0]))
    return (stored >= low) & (stored <= high)


def _air_is_brightest(stored: NDArray[np.int64]) -> bool:
    """True if the rim of the picture, which shows air, is brighter than the picture as a whole."""
    rim = np.concatenate([stored[0], stored[-1], stored[:, 0], stored[:, -1]])
    return bool(np.median(rim) > stored.mean())


def _turn_upright(
    pixels: FloatArray,
    spacing_mm: tuple[float, float] | None,
    across: NDArray[np.float64],
    down: NDArray[np.float64],
) -> tuple[FloatArray, tuple[float, float] | None]:
    """Turn an axial slice as radiologists read it: forehead at the top, the patient's left on the
    right.

    `across` and `down` are the directions of a row and a column in patient coordinates (x to the
    left, y to the back).
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
    return "".join(
        character for character in value if character.isascii() and character.isprintable()
    )[:64]


def values_of(header: pydicom.Dataset, name: str) -> list[object]:
    """Return the values of a tag, none where it is missing or empty."""
    value = header.get(name)
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, pydicom.multival.MultiValue) else [value]


def numbers_of(header: pydicom.Dataset, name: str, count: int) -> tuple[float, ...] | None:
    """Return a tag's numbers; None where it is missing, has another count, or is not all finite
    numbers.
    """
    try:
        numbers = tuple(float(str(value)) for value in values_of(header, name))
    except ValueError:
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None
