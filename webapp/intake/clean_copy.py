"""One uploaded file: its format, determined by its content, and a de-identified copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from flask import current_app

from ml.files.image_types import ImageKind
from webapp.intake.archives import is_zip
from webapp.intake.dicom import (
    CT_SOP_CLASSES,
    READ_SYNTAXES,
    DicomFile,
    DicomHeader,
    start_of_data,
    whole_number,
)
from webapp.intake.nifti import GZIP, NiftiFile, inflated, is_half_of_pair, is_nifti
from webapp.intake.pictures import PNG_SIGNATURE, AnimatedPicture, copy_jpeg, copy_png
from webapp.intake.streams import Budget, DamagedFile

JPEG_START = b"\xff\xd8\xff"
PAIR = (
    "The file is the header of a pair (.hdr and .img); please send the scan as a single .nii or"
    " .nii.gz file."
)
NESTED = "The ZIP archive contains another archive. Please include the files directly."
OTHER_ARCHIVE = "The file is an archive of another kind than ZIP; please send a ZIP archive."
PACKED_OTHERWISE = "The file is compressed, and not a NIfTI image; please unpack it first."
STARTS_OF_ARCHIVES = (
    b"7z\xbc\xaf\x27\x1c",
    b"Rar!\x1a\x07",
    b"BZh",
    b"\xfd7zXZ\0",
    b"\x28\xb5\x2f\xfd",
)
TAR_AT = 257
NO_IMAGE = "The file is not a PNG, JPEG, DICOM or NIfTI image."


class UploadRejected(ValueError):
    """A file or its description is not accepted; the message is one sentence for the person who
    sent it.
    """


class QuotaReached(UploadRejected):
    """The owner's quota is used up; something must be deleted first."""


class NoSlice(UploadRejected):
    """A valid file without axial CT, such as a study may contain besides its slices. `what` is a
    plural noun for such files.
    """

    def __init__(self, sentence: str, what: str) -> None:
        super().__init__(sentence)
        self.what = what


@dataclass(frozen=True)
class Taken:
    """An accepted file: `path` of its clean copy, `name` and `folder` as sent, `number` (its
    position in the upload), and `digest` of its encoded pixels (DICOM only).
    """

    path: Path
    kind: str
    number: int
    name: str
    folder: str | None = None  # In an archive; None for a file sent individually.
    slices: int = 1
    pixels: int = 0  # In all slices.
    size: tuple[int, int] = (0, 0)  # Width and height of a PNG or JPEG.
    dicom: DicomHeader = field(default_factory=DicomHeader)
    digest: bytes = b""


def take(
    stream: IO[bytes],
    path: Path,
    new_uid: Callable[[str], str],
    *,
    number: int,
    name: str,
    folder: str | None = None,
    budget: Budget | None = None,
) -> Taken:
    """Write a clean copy of the file in `stream` to `path`; no pixel is decoded.

    Raises:
        UploadRejected: it is not accepted.
        TooMuchWork: the budget is used up.
    """
    budget = budget or Budget()
    size = stream.seek(0, 2)
    stream.seek(0)
    start = stream.read(352)
    stream.seek(0)
    if size == 0:
        raise NoSlice("The file is empty.", "empty files")
    if size > current_app.config["MAX_UPLOAD_MB"] * 2**20:
        raise UploadRejected(f"The file is larger than {current_app.config['MAX_UPLOAD_MB']} MB.")
    slices, header, digest, shape = 1, DicomHeader(), b"", (0, 0)
    with path.open("xb") as target:
        path.chmod(0o600)
        if start.startswith((PNG_SIGNATURE, JPEG_START)):
            kind = "png" if start.startswith(PNG_SIGNATURE) else "jpeg"
            shape = _take_picture(stream, target, kind.upper(), budget)
            pixels = shape[0] * shape[1]
        elif start[128:132] == b"DICM":
            kind, (slices, pixels, header, digest) = (
                "dicom",
                _take_dicom(stream, target, new_uid, budget),
            )
        elif is_half_of_pair(start, size):
            raise UploadRejected(PAIR)
        elif is_nifti(start) or start.startswith(GZIP):
            kind, (slices, pixels) = (
                "nifti",
                _take_nifti(stream, target, start.startswith(GZIP), budget),
            )
        elif is_zip(start):  # Not opened: it might contain a third archive.
            raise NoSlice(NESTED, "archives and documents")
        elif start.startswith(STARTS_OF_ARCHIVES) or start[TAR_AT:].startswith(b"ustar"):
            raise NoSlice(OTHER_ARCHIVE, "archives and documents")
        elif start_of_data(start) is not None:
            kind, (slices, pixels, header, digest) = (
                "dicom",
                _take_dicom(stream, target, new_uid, budget),
            )
        else:
            raise NoSlice(NO_IMAGE, "files that are not images")
    return Taken(path, kind, number, name, folder, slices, pixels, shape, header, digest)


def _take_picture(
    stream: IO[bytes], target: IO[bytes], kind: str, budget: Budget
) -> tuple[int, int]:
    copy = copy_png if kind == "PNG" else copy_jpeg
    try:
        width, height = copy(stream, target, budget)
    except DamagedFile as err:
        raise UploadRejected(f"The {kind} image is damaged or incomplete.") from err
    except AnimatedPicture as err:
        raise UploadRejected(
            "The PNG image is animated. Please upload each slice as a separate file."
        ) from err
    _require_fewer_pixels(width, height)
    return width, height


def _take_dicom(
    stream: IO[bytes], target: IO[bytes], new_uid: Callable[[str], str], budget: Budget
) -> tuple[int, int, DicomHeader, bytes]:
    try:
        file = DicomFile(stream, budget)
    except DamagedFile as err:
        raise UploadRejected("The DICOM file is damaged or incomplete.") from err
    header = file.header
    if header.is_deflated:  # Inflating has no limit.
        raise UploadRejected("The DICOM file uses deflate compression, which is not supported.")
    if not header.transfer_syntax:
        raise UploadRejected("The DICOM file does not specify a transfer syntax.")
    modality = header.modality or ("CT" if header.sop_class in CT_SOP_CLASSES else "unknown")
    if modality != "CT":
        printable_modality = "".join(
            character for character in modality[:16] if character.isprintable()
        )
        raise NoSlice(
            f"The DICOM file is not a CT image: its modality is {printable_modality}.",
            "files with a modality other than CT",
        )
    if not header.has_pixels or header.rows < 1 or header.columns < 1:
        raise NoSlice("The DICOM file contains no image.", "files without an image")
    if header.transfer_syntax not in READ_SYNTAXES:
        raise UploadRejected(
            "The DICOM file’s pixels are coded in an unsupported way; please export it without"
            " compression."
        )
    frames = whole_number(header.frames or "1")
    if frames is None or frames < 0:
        raise UploadRejected("The DICOM file is damaged or incomplete.")
    frames = frames or 1  # Some programs write 0 for a single frame.
    if header.samples != 1:
        raise NoSlice("The DICOM file is a color image, not a CT slice.", "color images")
    if header.image_kind is ImageKind.LOCALIZER:
        raise NoSlice(
            "The DICOM file is a localizer, an overview to plan the scan by; please send the"
            " slices.",
            "localizers",
        )
    if header.image_kind is ImageKind.PAGE:
        raise NoSlice(
            "The DICOM file is a page of text or a screen capture, not a CT slice.",
            "pages of text and screen captures",
        )
    _require_fewer_pixels(header.columns, header.rows)
    _require_fewer_slices(frames, frames * header.rows * header.columns)
    try:
        file.write(target, new_uid)
    except DamagedFile as err:
        raise UploadRejected("The DICOM file is damaged or incomplete.") from err
    return frames, frames * header.rows * header.columns, header, file.pixels_digest


def _take_nifti(
    stream: IO[bytes], target: IO[bytes], compress: bool, budget: Budget
) -> tuple[int, int]:
    try:
        with inflated(stream, budget) as content:
            start = content.read(352)
            if is_half_of_pair(start, 0):
                raise UploadRejected(PAIR)
            if not is_nifti(start):
                raise NoSlice(PACKED_OTHERWISE, "archives and documents")
            content.seek(0)
            file = NiftiFile(content)
            header = file.header
            if not header.is_grey:
                raise UploadRejected(
                    "The NIfTI file contains colors or complex numbers, not CT values."
                )
            if header.volumes != 1:
                raise UploadRejected(
                    f"The NIfTI file holds {header.volumes} volumes; please send one scan in one"
                    " file."
                )
            longest, middle, shortest = sorted(
                (header.columns, header.rows, header.slices), reverse=True
            )
            _require_fewer_pixels(longest, middle)  # In any orientation.
            _require_fewer_slices(shortest, longest * middle * shortest)
            file.write(target, compress=compress)
    except DamagedFile as err:
        raise UploadRejected("The NIfTI file is damaged or incomplete.") from err
    return header.slices, header.columns * header.rows * header.slices


def _require_fewer_pixels(width: int, height: int) -> None:
    most = current_app.config["MAX_PIXELS"]
    if width * height > most:
        raise UploadRejected(
            f"The image is too large: {width} x {height} pixels, at most {most / 1e6:g} million"
            " are supported."
        )


def _require_fewer_slices(slices: int, pixels: int) -> None:
    """Refuse a series that is longer, or has more pixels in total, than a worker reads at once."""
    most, most_pixels = current_app.config["MAX_SLICES"], current_app.config["MAX_SERIES_PIXELS"]
    if slices > most:
        raise UploadRejected(f"The series has {slices} slices; at most {most} are supported.")
    if pixels > most_pixels:
        raise UploadRejected(
            f"The series has {pixels / 1e6:.0f} million pixels; at most {most_pixels / 1e6:g}"
            " million are supported."
        )
