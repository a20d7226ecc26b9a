"""Read CT slices from DICOM files, single-frame or multi-frame: Hounsfield units, upright, with
their place in the patient.

Tags are from DICOM PS3.3 (C.7.6.2 image plane, C.7.6.3 image pixel, C.8.2.1 CT image). No tag that
names a patient is read.
"""

from __future__ import annotations

import logging
import struct
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset
from pydicom.pixels.utils import iter_pixels

from ml.errors import ImageError, NoSliceError
from ml.scans.dicom_frames import PER_FRAME, SHARED, frame_headers
from ml.scans.hounsfield import DICOM, Claim
from ml.scans.limits import require_a_picture, require_fewer_pixels, require_fewer_slices
from ml.scans.ordering import FURTHEST_MM, Plane

# its warnings quote what stands in tags, and a log may not
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

BIG_ENDIAN = "1.2.840.10008.1.2.2"
NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", BIG_ENDIAN}
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
START_BYTES = 132 + 12
# of the unit: directions of rows and columns that are no right angle at all span no plane
SHORTEST_NORMAL = 0.5

# US is "unspecified"; iodine maps, electron densities and the like say what they are (C.11.1.1.2)
HU_TYPES = {"HU", "HU_MOD", "US", "HOUNSFIELD", "HOUNSFIELD UNITS"}
OTHER_TYPES = {"OD", "MGML", "Z_EFF", "ED", "EDW", "PCT"}
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
    "SOPClassUID", "SOPInstanceUID", "ImageType", "Modality", "StudyInstanceUID",
    "SeriesInstanceUID", "SeriesNumber", "AcquisitionNumber", "AcquisitionTime", "ContentTime",
    "InstanceNumber", "ConcatenationFrameOffsetNumber", "ImagePositionPatient",
    "ImageOrientationPatient", "SliceLocation", "SliceThickness", "SpacingBetweenSlices",
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns",
    "PixelSpacing", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "PlanarConfiguration", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "RescaleIntercept", "ModalityLUTSequence",
    "RescaleSlope", "RescaleType", "BodyPartExamined", SHARED, PER_FRAME, "PixelData",
]  # fmt: skip


def read_planes(file: BinaryIO, *, max_pixels: int, max_slices: int, name: str = "") -> list[Plane]:
    """Return the slices of one DICOM file with what puts them in order: one, or one for each frame.

    Args:
        file: the open file, at its beginning.
        name: what the user calls it.
        max_pixels: the largest picture (rows x columns) that is decoded.
        max_slices: the most frames that are decoded.

    Raises:
        NoSliceError: the file holds something else than CT slices.
        ImageError: the file is damaged, or its slices cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of every odd value, and may quote it
            header = read_tags(file, TAGS)
            frames = _require_ct_frames(header, max_pixels, max_slices)
            # uncorrected: what a padding value is compared with may lie in the bits that are not
            # stored
            words = iter_pixels(header, correct_unused_bits=False)
            pairs = zip(frame_headers(header, frames), words, strict=True)
            order = ">" if header.file_meta.TransferSyntaxUID == BIG_ENDIAN else "<"
            return [_to_plane(own, frame, name, order) for own, frame in pairs]
    except (ImageError, MemoryError):
        raise
    # a damaged file makes pydicom and its decoders raise anything, RecursionError included
    except Exception as err:
        raise ImageError("The DICOM file is damaged or incomplete and cannot be decoded.") from err


def read_tags(file: BinaryIO, tags: Sequence[str], *, with_pixels: bool = True) -> pydicom.Dataset:
    """Return some tags of a DICOM file, which may lack the preamble and the file meta information.

    Raises:
        ImageError: its pixels, or its header, are coded in a way that is not read.
    """
    file.seek(0)
    at = start_of_data(file.read(START_BYTES))
    file.seek(at or 0)
    # `dcmread` would inflate a deflated data set before anybody could refuse it
    meta = read_dataset(
        file,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, vr, length: tag.group != 2,
    )
    syntax = meta.get("TransferSyntaxUID")
    if syntax is not None and syntax not in NATIVE | COMPRESSED:
        raise ImageError(
            "The DICOM file uses an unsupported transfer syntax:"
            f" {_printable(pydicom.uid.UID(syntax).name)}."
        )
    file.seek(0)
    header = pydicom.dcmread(
        file, specific_tags=list(tags), stop_before_pixels=not with_pixels, force=True
    )
    if syntax is None:
        is_implicit, is_little = header.original_encoding
        is_coded = "PixelData" in header and header["PixelData"].is_undefined_length
        if not len(header) or is_coded or not is_little:
            raise ImageError("The DICOM file does not specify a transfer syntax.")
        header.file_meta.TransferSyntaxUID = (
            pydicom.uid.ImplicitVRLittleEndian
            if is_implicit
            else pydicom.uid.ExplicitVRLittleEndian
        )
    return header


def start_of_data(head: bytes) -> int | None:
    """Return where the elements of a DICOM file begin, by its first `START_BYTES`: behind the
    preamble, or at once where it has none; None where this is no DICOM file.
    """
    if head[128:132] == b"DICM":
        return 132
    if len(head) < 12:
        return None
    group, element, vr, _ = struct.unpack("<HH2sH", head[:8])
    (length,) = struct.unpack("<I", head[4:8])
    is_first = (group == 2 and element <= 0x10) or (group == 8 and element <= 0x18)
    is_explicit = vr in (b"UL", b"CS", b"UI", b"OB", b"DA", b"TM", b"SH", b"LO")
    return 0 if is_first and (is_explicit or (group == 8 and length <= 256)) else None


def _require_ct_frames(header: pydicom.Dataset, max_pixels: int, max_slices: int) -> int:
    """Return how many frames of CT the file holds, 1 or more, before any is decoded."""
    if "PixelData" not in header or not header.PixelData:
        raise NoSliceError("The DICOM file contains no image.")
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
        raise NoSliceError("The DICOM file is a color image, not a CT slice.")
    photometric = str(header.get("PhotometricInterpretation") or "MONOCHROME2")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise NoSliceError(
            f"The DICOM file is a color image ({_printable(photometric)}), not a CT slice."
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
    raise ImageError("The DICOM file's compressed image is damaged.")


def _to_plane(header: pydicom.Dataset, words: NDArray[np.generic], name: str, order: str) -> Plane:
    require_a_picture(words.astype(np.float32))
    notes: list[str] = []
    bits = int(header.BitsStored)
    stored = _without_unused_bits(words, bits)
    padding = _padding(header, words, stored)
    claim = _claim_of(header, bits)
    if header.get("ModalityLUTSequence"):
        stored = _looked_up(stored, header.ModalityLUTSequence[0], order)
        claim = replace(claim, slope=1.0, intercept=0.0, bits=16)
    spacing = numbers_of(header, "PixelSpacing", 2)
    orientation = numbers_of(header, "ImageOrientationPatient", 6)
    position = numbers_of(header, "ImagePositionPatient", 3)
    part = _printable(str(header.get("BodyPartExamined") or "")).upper()
    if part and not any(known in part for known in HEAD_PARTS):
        notes.append(f"According to its header, the DICOM file shows {part}, not a head.")

    def number(tag: str) -> float | None:
        found = numbers_of(header, tag, 1)
        return found[0] if found is not None and abs(found[0]) < FURTHEST_MM else None

    instance = numbers_of(header, "InstanceNumber", 1)
    return Plane(
        stored,
        claim,
        padding=padding,
        spacing_mm=(
            (spacing[0], spacing[1])
            if spacing is not None and min(spacing) > 0 and max(spacing) < FURTHEST_MM
            else None
        ),
        position_mm=(
            np.array(position)
            if position is not None and max(map(abs, position)) < FURTHEST_MM
            else None
        ),
        directions=None if orientation is None else _directions(orientation),
        location_mm=number("SliceLocation"),
        number=None if instance is None else int(instance[0]),
        acquisition=number("AcquisitionNumber"),
        time=_printable(str(header.get("AcquisitionTime") or header.get("ContentTime") or "")),
        step_mm=number("SpacingBetweenSlices") or number("SliceThickness"),
        study_uid=str(header.get("StudyInstanceUID") or ""),
        series_uid=str(header.get("SeriesInstanceUID") or ""),
        series_number=number("SeriesNumber"),
        name=name,
        notes=tuple(notes),
    )


def _claim_of(header: pydicom.Dataset, bits: int) -> Claim:
    """Return what a file, or a frame, says of its numbers."""
    words = str(header.get("RescaleType") or "HU").strip().upper()
    if words in OTHER_TYPES:
        raise ImageError(f"The DICOM file's values are {_printable(words)}, not Hounsfield units.")
    slope, intercept = (
        numbers_of(header, "RescaleSlope", 1),
        numbers_of(header, "RescaleIntercept", 1),
    )
    return Claim(
        DICOM,
        None if slope is None else slope[0],
        None if intercept is None else intercept[0],
        bits,
        int(header.PixelRepresentation) == 1,
        white_is_low=header.get("PhotometricInterpretation") == "MONOCHROME1",
        unit_is_known=words in HU_TYPES,
    )


def _without_unused_bits(words: NDArray[np.generic], bits: int) -> NDArray[np.generic]:
    """Return the numbers in the lowest bits of words; above may lie an overlay."""
    unused = 8 * words.dtype.itemsize - bits
    if unused <= 0:
        return words
    return np.right_shift(np.left_shift(words, unused), unused)  # type: ignore[no-any-return]


def _looked_up(
    stored: NDArray[np.generic], table: pydicom.Dataset, order: str
) -> NDArray[np.generic]:
    """Return what a modality table (PS3.3 C.11.1) makes of stored numbers; beyond its ends it goes
    on as there. `order` is that of the file's bytes.
    """
    entries, first, _ = (int(number) for number in table.LUTDescriptor)
    entries = entries or 2**16
    if stored.dtype.kind == "i" and first >= 2**15:
        first -= 2**16  # written as an unsigned number
    data = table.LUTData
    if isinstance(data, bytes):
        kind = "u1" if len(data) <= entries + 1 else f"{order}u2"
        data = np.frombuffer(data, kind)
    values = np.asarray(data, np.int64)[:entries].astype(np.uint16)
    return values[np.clip(stored.astype(np.int64) - first, 0, len(values) - 1)]


def _padding(
    header: pydicom.Dataset, words: NDArray[np.generic], stored: NDArray[np.generic]
) -> NDArray[np.bool_] | None:
    """Return where the file says that nothing was scanned; None where it says nothing.

    The tag may be signed or not, whatever the pixels are, and reach beyond the bits that are
    stored.
    """
    value, limit = (
        numbers_of(header, "PixelPaddingValue", 1),
        numbers_of(header, "PixelPaddingRangeLimit", 1),
    )
    if value is None:
        return None
    modulus = 2 ** (8 * words.dtype.itemsize)
    first = -modulus // 2 if words.dtype.kind == "i" else 0
    low, high = sorted(
        (int(found[0]) - first) % modulus + first for found in (value, limit or value)
    )
    padding: NDArray[np.bool_] = (stored >= low) & (stored <= high)
    if limit is None:
        padding |= words == low
    return padding


def _directions(orientation: Sequence[float]) -> NDArray[np.float64] | None:
    """Return the unit vectors along rows and columns (2, 3); None where they span no plane."""
    vectors = np.array(orientation, np.float64).reshape(2, 3)
    return vectors if float(np.linalg.norm(np.cross(*vectors))) > SHORTEST_NORMAL else None


def _printable(value: str) -> str:
    """Return a file's own word, safe to quote in a sentence."""
    return "".join(
        character for character in value if character.isascii() and character.isprintable()
    )[:64]


def values_of(header: pydicom.Dataset, name: str) -> list[object]:
    """Return the values of a tag, as text where they are not what the tag should hold; none where
    it is missing or empty.
    """
    try:
        value = header.get(name)
    except (ValueError, OverflowError):
        raw = header.get_item(name)
        value = raw.value.decode("latin-1").strip(" \0").split("\\") if raw is not None else None
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, pydicom.multival.MultiValue | list) else [value]


def numbers_of(header: pydicom.Dataset, name: str, count: int) -> tuple[float, ...] | None:
    """Return a tag's numbers, whose point may be a comma; None where it is missing, has another
    count, or is not all finite numbers.
    """
    try:
        numbers = tuple(_number(str(value)) for value in values_of(header, name))
    except ValueError:
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _number(text: str) -> float:
    return float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
