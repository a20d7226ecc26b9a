"""Read CT slices from DICOM files, single-frame or multi-frame: Hounsfield units, in the usual
orientation, with their position in the patient.

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

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset
from pydicom.pixels.utils import iter_pixels

from ml.errors import ImageError, NoSliceError
from ml.files.image_types import ImageKind, image_kind
from ml.scans.dicom_frames import PER_FRAME, SHARED, frame_headers
from ml.scans.hounsfield import DICOM, Claim, Scale, assess_scale
from ml.scans.limits import require_a_picture, require_fewer_pixels, require_fewer_slices
from ml.scans.planes import FURTHEST_MM, Plane

# its warnings quote values of tags, which must not appear in a log
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

BIG_ENDIAN = "1.2.840.10008.1.2.2"
NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", BIG_ENDIAN}
RLE = "1.2.840.10008.1.2.5"
COMPRESSED = {
    RLE,
    # JPEG, JPEG-LS, JPEG 2000
    *(
        f"1.2.840.10008.1.2.4.{number}"
        for number in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)
    ),
}
"""Supported transfer syntaxes. Deflated ones are not supported: pydicom inflates without a size
limit.
"""

CT_SOP_CLASSES = {f"1.2.840.10008.5.1.4.1.1.2{kind}" for kind in ("", ".1", ".2")}
"""CT, Enhanced CT, and Enhanced CT converted from single slices."""
START_BYTES = 132 + 12
# below the noise of air; a marker does not have this many different values
LOWEST_POSSIBLE_HU, FEWEST_LOW_VALUES = -1300.0, 16
TISSUE_HU = 200.0  # fat, brain, blood
LOCALIZER = "The DICOM file is a localizer (scout view), not an axial slice."
EXCHANGED = "The DICOM file's header exchanges rows and columns; this was corrected."
SHEARED = 0.5  # maximum share of the differences from row to row that is left in upright pixels
# minimum length of the cross product: nearly parallel rows and columns span no plane
SHORTEST_NORMAL = 0.5

# US is "unspecified"; iodine maps, electron densities and others have a type (C.11.1.1.2)
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
    "PixelSpacing", "PixelAspectRatio", "KVP", "ConvolutionKernel", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "PlanarConfiguration", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "RescaleIntercept", "ModalityLUTSequence",
    "RescaleSlope", "RescaleType", "BodyPartExamined", SHARED, PER_FRAME, "PixelData",
]  # fmt: skip


def read_planes(file: BinaryIO, *, max_pixels: int, max_slices: int, name: str = "") -> list[Plane]:
    """Return the slices of one DICOM file, one per frame, with the tags that determine their order.

    Args:
        file: the open file, at its beginning.
        name: the file's name as the user knows it.
        max_pixels: maximum size (rows x columns) of a slice that is decoded.
        max_slices: maximum number of frames that are decoded.

    Raises:
        NoSliceError: the file does not contain CT slices.
        ImageError: the file is damaged, or its slices cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # pydicom warns about every unusual value, and may quote it
            header = read_tags(file, TAGS)
            _assume_usual_pixels(header)
            announced = header.get("Rows"), header.get("Columns")
            frames = _require_ct_frames(header, max_pixels, max_slices)
            if _is_sheared(header, frames):
                header.Rows, header.Columns = header.Columns, header.Rows
            # uncorrected: a padding value may use bits that are not stored
            words = iter_pixels(header, correct_unused_bits=False)
            pairs = zip(frame_headers(header, frames), words, strict=True)
            order = ">" if header.file_meta.TransferSyntaxUID == BIG_ENDIAN else "<"
            planes = [
                _to_plane(header, frame, name, order)
                for header, frame in pairs
                if image_kind(values_of(header, "FrameType")) is not ImageKind.LOCALIZER
            ]
        if not planes:
            raise NoSliceError(LOCALIZER)
        if localizers := frames - len(planes):
            note = (
                "One frame of the DICOM file was left out: it is a localizer."
                if localizers == 1
                else f"{localizers} frames of the DICOM file were left out: they are localizers."
            )
            planes[0] = replace(planes[0], notes=(*planes[0].notes, note))
        if (header.Rows, header.Columns) != announced:
            planes = [replace(plane, notes=(*plane.notes, EXCHANGED)) for plane in planes]
        return planes
    except (ImageError, MemoryError):
        raise
    # a damaged file can make pydicom and its decoders raise any exception, including RecursionError
    except Exception as err:
        raise ImageError("The DICOM file is damaged or incomplete and cannot be decoded.") from err


def read_tags(file: BinaryIO, tags: Sequence[str], *, with_pixels: bool = True) -> pydicom.Dataset:
    """Return some tags of a DICOM file, which may lack the preamble and the file meta information.

    Raises:
        ImageError: the encoding of its pixels or its header is not supported.
    """
    file.seek(0)
    offset = start_of_data(file.read(START_BYTES))
    file.seek(offset or 0)
    # `dcmread` would inflate a deflated data set before it can be rejected
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
    """Return the offset of the first element of a DICOM file, which may lack a preamble, from its
    first `START_BYTES`; None if it is not a DICOM file.
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


def _assume_usual_pixels(header: pydicom.Dataset) -> None:
    """Set the tags that describe how the pixels are stored to the usual values where they are
    missing: a CT has one gray sample of 16 bits. Whether it is signed follows from its values
    (`ml.scans.hounsfield`).
    """
    if "PixelData" not in header:
        return
    if not header.get("BitsAllocated"):
        header.BitsAllocated = 16
    if not header.get("BitsStored"):
        header.BitsStored = header.BitsAllocated
    usual = {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelRepresentation": 0,
    }
    for name, value in usual.items():
        if header.get(name) in (None, ""):
            setattr(header, name, value)


def _require_ct_frames(header: pydicom.Dataset, max_pixels: int, max_slices: int) -> int:
    """Return the number of CT frames in the file, at least 1, before any is decoded."""
    if "PixelData" not in header or not header.PixelData:
        raise NoSliceError("The DICOM file contains no image.")
    modality = str(header.get("Modality") or "").strip().upper() or (
        "CT" if header.get("SOPClassUID") in CT_SOP_CLASSES else "unknown"
    )
    if modality != "CT":
        raise NoSliceError(
            f"The DICOM file is not a CT image: its modality is {_printable(modality)}."
        )
    kind = image_kind(values_of(header, "ImageType"))
    if kind is ImageKind.LOCALIZER:
        raise NoSliceError(LOCALIZER)
    if kind is ImageKind.PAGE:
        raise NoSliceError("The DICOM file is a page of text or a screen capture, not a CT slice.")
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
            if coded is not None and coded == (columns, rows):
                rows, columns = header.Rows, header.Columns = coded
            # A decoder trusts the compressed stream, so a small header must not hide a huge image.
            if coded is not None and coded != (rows, columns):
                raise ImageError(
                    f"The DICOM file declares {columns} x {rows} pixels, but {coded[1]} x"
                    f" {coded[0]} are encoded."
                )
    return frames


def _is_sheared(header: pydicom.Dataset, frames: int) -> bool:
    """Return whether the header exchanges rows and columns: the middle frame is much smoother from
    row to row if its rows are as long as the header says its columns are. Compressed frames other
    than RLE contain their own size.
    """
    if header.Rows == header.Columns or header.file_meta.TransferSyntaxUID in COMPRESSED - {RLE}:
        return False
    [words] = iter_pixels(header, indices=[frames // 2])
    as_said, exchanged = (
        float(np.abs(np.diff(words.reshape(-1, length).astype(np.float32), axis=0)).mean())
        for length in (header.Columns, header.Rows)
    )
    return exchanged < SHEARED * as_said


def _coded_size(frame: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) from the header of a JPEG, JPEG-LS or JPEG 2000 stream; None for RLE,
    which has no header.
    """
    # JPEG 2000: SOC, then SIZ with the corners of the image area
    if frame.startswith(b"\xff\x4f\xff\x51"):
        right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
        return bottom - top, right - left
    if not frame.startswith(b"\xff\xd8"):
        return None
    offset = 2
    while frame[offset] == 0xFF:
        marker = frame[offset + 1]
        if marker == 0xFF:  # a fill byte
            offset += 1
            continue
        # a start-of-frame marker
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = struct.unpack_from(">2H", frame, offset + 5)
            return rows, columns
        offset += 2 + struct.unpack_from(">H", frame, offset + 2)[0]
    raise ImageError("The DICOM file's compressed image is damaged.")


def _to_plane(header: pydicom.Dataset, words: NDArray[np.generic], name: str, order: str) -> Plane:
    require_a_picture(words.astype(np.float32))
    notes: list[str] = []
    bits = int(header.BitsStored)
    claim = _claim_of(header, bits)
    aligned = _aligned(words, claim, int(header.get("HighBit") or 0))
    stored = _without_unused_bits(aligned, bits)
    padding = _padding(header, words, stored, claim)
    if (unsigned := _as_unsigned(words, stored, claim)) is not None:
        stored = unsigned
        notes.append("The DICOM file's pixels are not signed, although its header says so.")
    if header.get("ModalityLUTSequence") and _is_table_of_hu(header.ModalityLUTSequence[0], claim):
        stored = _looked_up(stored, header.ModalityLUTSequence[0], order)
        claim = replace(claim, slope=1.0, intercept=0.0, bits=16)
    spacing = _spacing_of(header)
    aspect = numbers_of(header, "PixelAspectRatio", 2) if spacing is None else None
    orientation = numbers_of(header, "ImageOrientationPatient", 6)
    position = numbers_of(header, "ImagePositionPatient", 3)
    part = _printable(str(header.get("BodyPartExamined") or "")).upper()
    if part and not any(known in part for known in HEAD_PARTS):
        notes.append(f"According to its header, the DICOM file shows {part}, not a head.")

    def number(tag: str) -> float | None:
        values = numbers_of(header, tag, 1)
        return values[0] if values is not None and abs(values[0]) < FURTHEST_MM else None

    instance = numbers_of(header, "InStackPositionNumber", 1) or numbers_of(
        header, "InstanceNumber", 1
    )
    return Plane(
        stored,
        claim,
        padding=padding,
        spacing_mm=spacing,
        position_mm=(
            np.array(position)
            if position is not None and max(map(abs, position)) < FURTHEST_MM
            else None
        ),
        directions=None if orientation is None else _directions(orientation),
        location_mm=number("SliceLocation"),
        number=None if instance is None else int(instance[0]),
        acquisition=number("FrameAcquisitionNumber") or number("AcquisitionNumber"),
        time=_printable(str(header.get("AcquisitionTime") or header.get("ContentTime") or "")),
        step_mm=abs(number("SpacingBetweenSlices") or number("SliceThickness") or 0.0) or None,
        thickness_mm=number("SliceThickness"),
        aspect=(aspect[0], aspect[1]) if aspect is not None and min(aspect) > 0 else None,
        technique=_technique_of(header),
        study_uid=str(header.get("StudyInstanceUID") or ""),
        series_uid=str(header.get("SeriesInstanceUID") or ""),
        series_number=number("SeriesNumber"),
        is_made=_is_made(header),
        name=name,
        notes=tuple(notes),
    )


def _is_made(header: pydicom.Dataset) -> bool:
    """Return whether an image was made from other slices."""
    words = values_of(header, "FrameType") or values_of(header, "ImageType")
    return image_kind(words, str(header.get("SOPClassUID") or "")) is ImageKind.MADE


def _spacing_of(header: pydicom.Dataset) -> tuple[float, float] | None:
    """Return the distance between rows and between columns in mm, which some files give once for
    both; None if it is unknown.
    """
    sides = numbers_of(header, "PixelSpacing", 2) or numbers_of(header, "PixelSpacing", 1)
    if sides is None or min(sides) <= 0 or max(sides) >= FURTHEST_MM:
        return None
    return sides[0], sides[-1]


def _technique_of(header: pydicom.Dataset) -> tuple[str, ...]:
    """Return the parameters that may differ between two reconstructions of one acquisition, or
    between the two energies of a dual-energy scan.
    """
    kind = "FrameType" if "FrameType" in header else "ImageType"
    kinds = [str(word) for word in values_of(header, kind)[2:]]
    kernel = [str(value) for value in values_of(header, "ConvolutionKernel")[:1]]
    # 120 and 120.0 are the same voltage
    others = [numbers_of(header, name, 1) or () for name in ("KVP", "TemporalPositionIndex")]
    return ("".join(kernel), *("".join(f"{value:g}" for value in some) for some in others), *kinds)


def _claim_of(header: pydicom.Dataset, bits: int) -> Claim:
    """Return the tags of a file or frame that describe its stored numbers."""
    rescale_type = str(header.get("RescaleType") or "HU").strip().upper()
    _require_hu(rescale_type)
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
        unit_is_known=rescale_type in HU_TYPES,
    )


def _aligned(words: NDArray[np.generic], claim: Claim, high_bit: int) -> NDArray[np.generic]:
    """Return words whose numbers start at the lowest bit. Older files fill words from the highest
    bit, perhaps with an overlay in the lowest ones; other headers specify a high bit that their
    pixels do not use, so the words are then shifted only if they show a head thereafter.
    """
    unused = high_bit + 1 - claim.bits
    if unused <= 0 or high_bit >= 8 * words.dtype.itemsize:
        return words
    shifted: NDArray[np.generic] = np.right_shift(words, unused)
    is_empty = not (words & ((1 << unused) - 1)).any()  # type: ignore[operator]
    scale = Scale(slope=claim.slope or 1.0, intercept=claim.intercept or 0.0)
    shows_head = [
        not is_empty
        and assess_scale(
            scale, _without_unused_bits(some, claim.bits).ravel().astype(np.float64)
        ).is_head
        for some in (words, shifted)
    ]
    return shifted if is_empty or shows_head == [False, True] else words


def _as_unsigned(
    words: NDArray[np.generic], stored: NDArray[np.generic], claim: Claim
) -> NDArray[np.generic] | None:
    """Return the numbers as unsigned if they are declared signed, but show a head only if unsigned:
    many of the signed numbers would be impossibly low (bone would become air), and the bits above
    the sign bit do not repeat it. Otherwise return None.
    """
    unused = 8 * words.dtype.itemsize - claim.bits
    if not claim.signed or unused <= 0:
        return None
    if (words.astype(f"u{words.dtype.itemsize}") >> claim.bits).any():
        return None
    scale = Scale(slope=claim.slope or 1.0, intercept=claim.intercept or 0.0)
    numbers = stored.astype(np.float64)
    lowest = (numbers < 0) & (scale.values(numbers) < LOWEST_POSSIBLE_HU)
    # A marker of pixels that were not scanned has one value, or two.
    if len(np.unique(stored[lowest])) < FEWEST_LOW_VALUES:
        return None
    unsigned = stored.astype(np.int32) & (2**claim.bits - 1)
    is_head = assess_scale(scale, unsigned.ravel().astype(np.float64)).is_head
    return unsigned if is_head else None


def _without_unused_bits(words: NDArray[np.generic], bits: int) -> NDArray[np.generic]:
    """Return the numbers in the lowest bits of words; higher bits may contain an overlay."""
    unused = 8 * words.dtype.itemsize - bits
    if unused <= 0:
        return words
    return np.right_shift(np.left_shift(words, unused), unused)  # type: ignore[no-any-return]


def _require_hu(unit: str) -> None:
    if unit in OTHER_TYPES:
        raise ImageError(f"The DICOM file's values are {_printable(unit)}, not Hounsfield units.")


def _is_table_of_hu(table: pydicom.Dataset, claim: Claim) -> bool:
    """Return whether a modality table may yield Hounsfield units; False if it yields another unit,
    but rescaling yields them.

    Raises:
        ImageError: it yields another unit, and there is no rescaling.
    """
    unit = str(table.get("ModalityLUTType") or "HU").strip().upper()
    if unit in OTHER_TYPES and claim.slope is not None and claim.intercept is not None:
        return False
    _require_hu(unit)
    return True


def _looked_up(
    stored: NDArray[np.generic], table: pydicom.Dataset, order: str
) -> NDArray[np.generic]:
    """Return stored numbers mapped by a modality table (PS3.3 C.11.1), whose first and last entries
    also apply beyond its ends. `order` is the byte order of the file.
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
    header: pydicom.Dataset,
    words: NDArray[np.generic],
    stored: NDArray[np.generic],
    claim: Claim,
) -> NDArray[np.bool_] | None:
    """Return the mask of pixels that the file marks as not scanned; None if it has no such tag.

    The tag may be signed or unsigned, regardless of the pixels, and use bits that are not stored.
    Where it marks values of tissue, only the area around the scanned circle is meant: 0, which
    some programs write for every signed file, is also water.
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
        (int(values[0]) - first) % modulus + first for values in (value, limit or value)
    )
    darkest, brightest = _range_hu(low, high, claim)
    if darkest < -TISSUE_HU <= brightest:  # a range from air to tissue; its limit is wrong
        low = high = (int(value[0]) - first) % modulus + first
    padding: NDArray[np.bool_] = (stored >= low) & (stored <= high)
    if low == high:
        padding |= words == low
    is_tissue = brightest >= -TISSUE_HU and darkest <= TISSUE_HU
    return _around_the_circle(padding) if is_tissue else padding


def _range_hu(low: int, high: int, claim: Claim) -> tuple[float, float]:
    """Return the lowest and the highest HU of a range of stored numbers according to the tags;
    infinity if these do not say which numbers are tissue.
    """
    if claim.intercept is None and not claim.signed:
        return np.inf, np.inf
    scale = Scale(slope=claim.slope or 1.0, intercept=claim.intercept or 0.0)
    values = scale.values(np.array([low, high]))
    return float(values.min()), float(values.max())


def _around_the_circle(padding: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Return the part of a mask that touches the edge of the slice; None if no corner does."""
    if not padding[[0, 0, -1, -1], [0, -1, 0, -1]].any():
        return None
    filled = np.pad(padding.astype(np.uint8), 1, constant_values=1)
    cv2.floodFill(filled, None, (0, 0), 2)
    return np.asarray(filled[1:-1, 1:-1] == 2)


def _directions(orientation: Sequence[float]) -> NDArray[np.float64] | None:
    """Return the unit vectors along rows and columns (2, 3); None if they span no plane."""
    vectors = np.array(orientation, np.float64).reshape(2, 3)
    return vectors if float(np.linalg.norm(np.cross(*vectors))) > SHORTEST_NORMAL else None


def _printable(value: str) -> str:
    """Return a value from a file, safe to quote in a sentence."""
    return "".join(
        character for character in value if character.isascii() and character.isprintable()
    )[:64]


def values_of(header: pydicom.Dataset, name: str) -> list[object]:
    """Return the values of a tag, as text if they are not valid for the tag; empty if the tag is
    missing or empty.
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
    """Return the numbers of a tag, which may have decimal commas; None if it is missing, has a
    different number of values, or has values that are not finite numbers. Instead of a single
    number, the same number may be repeated; empty values at the end do not count.
    """
    try:
        texts = [str(value).strip() for value in values_of(header, name)]
        while texts and not texts[-1]:
            texts.pop()
        numbers = tuple(map(_number, texts))
    except ValueError:
        return None
    if count == 1 and len(set(numbers)) == 1:
        numbers = numbers[:1]
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _number(text: str) -> float:
    return float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
