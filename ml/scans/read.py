"""Read what a user submits: PNG, JPEG, DICOM and NIfTI files become slices in anatomical order.

What a file is, is decided by its first bytes, never by its name. Every file is hostile until it is
read: sizes are checked before anything is decoded, and whatever goes wrong becomes an `ImageError`
whose text is one sentence for the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ml.scans.repairs import soft_tissue_share

if TYPE_CHECKING:
    from ml.scans.files import LeftOut

FloatArray = NDArray[np.float32]

MAX_BYTES = 256 * 2**20
MAX_PIXELS = 16_000_000  # 4000 x 4000; a CT slice has 512 x 512
MAX_SLICES = 1_000  # a head at a fifth of a millimetre
MAX_VOXELS = MAX_SLICES * 512 * 512  # in all: 1 GiB as float32
MIN_SIDE_PX = 32
# a slice is about square, and every picture is padded to a square: a thin one would take its length
# in both ways
MOST_ELONGATED = 4

ORDER_GIVEN = "Pictures carry no position; they were read in the order given."

FEWEST_GREYS = 16  # a drawing, a mask or a fax has fewer; the plainest slice of ours has 81
DARK = 0.5  # of white, for the brightest hundredth of a picture: bone is white in the brain window
LEAST_SOFT_TISSUE = 0.05  # of what is not air, in the slice of a scan that shows most of it

# by which a file is known; the header of a packed NIfTI file is among them whatever its packer
# writes first
HEAD_BYTES = 16 * 1024

DARK_NOTE = (
    "The picture is darker than a CT slice in a brain window; the models have not learnt such"
    " pictures."
)


class ImageError(ValueError):
    """A file cannot be read as a CT image; its text is one sentence for the user."""


class BareImageError(ImageError):
    """A scan shows too little to be read, though each of its slices might stand in a scan that
    shows more.
    """


class TooLargeError(ImageError):
    """A scan as a whole is larger than what is read."""


class NoSliceError(ImageError):
    """A file of a scan is sound but shows no slice: a localizer, a report, a picture in colour."""


@dataclass(frozen=True)
class Slice:
    """One CT slice.

    Attributes:
        pixels: float32 (height, width): Hounsfield units if `unit` is "hu", grey 0..1 as a viewer
            shows it if "display".
        unit: what `pixels` holds.
        spacing_mm: distance of neighbouring rows and columns in mm, None where the file does not
            say.
    """

    pixels: FloatArray
    unit: Literal["hu", "display"]
    spacing_mm: tuple[float, float] | None = None


@dataclass(frozen=True)
class Series:
    """The slices of one scan from foot to head; a single slice is a series of one.

    Attributes:
        slices: all of one size and unit, where `read_series` made them.
        warnings: sentences for the user about what had to be assumed, removed or left out.
        distance_mm: the usual distance of neighbouring slices, None where the files do not say or
            there is one slice.
        steps_mm: how far each slice but the last lies from the next; empty where they are even or
            unknown.
    """

    slices: tuple[Slice, ...]
    warnings: tuple[str, ...] = ()
    distance_mm: float | None = None
    steps_mm: tuple[float, ...] = ()


def window(values_hu: FloatArray, level: float, width: float) -> FloatArray:
    """Map Hounsfield units linearly to float32 0..1 and clip: level - width/2 becomes 0, level +
    width/2 becomes 1.

    The brain window 40/80 maps 0 HU to 0, 40 HU to 0.5 and 80 HU to 1.
    """
    lowest = level - width / 2
    shown: FloatArray = np.clip(
        (np.asarray(values_hu, np.float32) - np.float32(lowest)) / np.float32(width), 0, 1
    )
    return shown


def rendered_size(shape: tuple[int, ...], max_px: int) -> tuple[int, int]:
    """Return (width, height) of an array of that shape (height, width) shown with its longer side
    at most `max_px`, never enlarged.
    """
    height, width = shape[:2]
    scale = min(1.0, max_px / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def render(
    slice: Slice, max_px: int, window_level: float = 40, window_width: float = 80
) -> Image.Image:
    """Return the slice as an 8-bit grey picture for a page: aspect kept, longer side at most
    `max_px`, never enlarged.

    Hounsfield units are shown through the window (HU); display values are shown as they are.
    """
    grey = (
        window(slice.pixels, window_level, window_width)
        if slice.unit == "hu"
        else np.clip(slice.pixels, 0, 1)
    )
    picture = Image.fromarray(np.round(grey * 255).astype(np.uint8))
    size = rendered_size(grey.shape, max_px)
    return (
        picture
        if picture.size == size
        else picture.resize(
            size, Image.Resampling.BOX if max_px < 128 else Image.Resampling.LANCZOS
        )
    )


def read_series(
    paths: Sequence[Path],
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    max_slices: int = MAX_SLICES,
    may_be_bare: bool = False,
    cover: bool = False,
) -> Series:
    """Read the files of one scan.

    That is PNG or JPEG pictures, which carry no position and stay in the order given; or DICOM
    files of one series, single-frame or multi-frame, which are put in order by their position along
    its normal; or one NIfTI file. Of several files, damaged ones are left out with a warning, up to
    a fifth of them, and so is what is no axial slice.

    Args:
        paths: the files; their names mean nothing, but what is said of one file among several
            begins with its name.
        max_bytes: the largest file that is opened.
        max_pixels: the largest picture (height x width) that is decoded.
        max_slices: the longest series.
        may_be_bare: True reads what shows next to nothing; it must belong to a scan that shows
            more.
        cover: True covers what lies beside the head (`ml.preprocessing.redaction`).

    Raises:
        ImageError: a file is not readable as a head CT, too large, of an unclear range of values,
            or does not belong to the others.
    """
    if not paths:
        raise ImageError("There is no file to read.")
    if len(paths) > max_slices:
        raise ImageError(f"The scan has {len(paths)} files; at most {max_slices} are read.")
    from ml.scans.files import (  # here, like the readers below: they need the types above
        LeftOut,
        opened,
    )

    left_out = LeftOut(len(paths))
    kinds: list[tuple[Path, str]] = []
    for path in paths:
        with left_out.if_unreadable(path.name), opened(path, max_bytes) as file:
            kinds.append((path, _kind(file.read(HEAD_BYTES))))
    if len(different := sorted({kind for _, kind in kinds})) > 1:
        raise ImageError(
            f"The scan mixes {' and '.join(different)} files; one scan is of one kind."
        )
    if different == ["DICOM"]:
        from ml.scans.dicom import read_planes  # A PNG does not need pydicom.
        from ml.scans.ordering import arrange

        planes = []
        for path, _ in kinds:
            with left_out.if_unreadable(path.name), opened(path, max_bytes) as file:
                planes += read_planes(file, max_pixels=max_pixels, max_slices=max_slices)
                require_fewer_slices(len(planes), planes[-1].slice.pixels.size, max_slices)
        left_out.require_others(planes)
        series = arrange(planes)
    elif different == ["NIfTI"]:
        from ml.scans.nifti import read_nifti

        if len(kinds) > 1:
            raise ImageError(
                f"There are {len(kinds)} NIfTI files; each holds a whole scan, so give them one by"
                " one."
            )
        with opened(kinds[0][0], max_bytes) as file:
            series = read_nifti(file, max_pixels=max_pixels, max_slices=max_slices)
    else:
        series = _read_pictures(
            [path for path, _ in kinds], left_out, max_bytes, max_pixels, max_slices
        )
    if not may_be_bare:
        _require_contrast(series)
    series = replace(series, warnings=(*left_out.notes(), *series.warnings))
    if cover:
        from ml.preprocessing.redaction import covered

        return covered(series)
    return series


def _read_pictures(
    paths: Sequence[Path], left_out: LeftOut, max_bytes: int, max_pixels: int, max_slices: int
) -> Series:
    from ml.scans.files import opened
    from ml.scans.ordering import of_one_size
    from ml.scans.pictures import read_picture

    slices: list[Slice] = []
    notes: list[str] = []
    for path in paths:
        with left_out.if_unreadable(path.name), opened(path, max_bytes) as file:
            slice, of_slice = read_picture(file, max_pixels)
            require_fewer_slices(len(slices) + 1, slice.pixels.size, max_slices)
            slices.append(slice)
            notes += of_slice
    left_out.require_others(slices)
    slices = [slices[index] for index in of_one_size(slices, notes)]
    if len(slices) > 1:
        notes.append(ORDER_GIVEN)
    if all(slice.unit == "display" and np.percentile(slice.pixels, 99) < DARK for slice in slices):
        notes.append(DARK_NOTE)
    if len({slice.unit for slice in slices}) > 1:
        raise ImageError(
            "Some pictures of the scan hold Hounsfield units and some do not; one scan is of one"
            " kind."
        )
    return Series(tuple(slices), tuple(dict.fromkeys(notes)))


def require_a_picture(pixels: FloatArray) -> None:
    """Refuse what cannot be a slice.

    Raises:
        ImageError: the picture is smaller than 32 px on a side, far from square, or holds values
            that are no numbers.
    """
    height, width = pixels.shape
    if min(height, width) < MIN_SIDE_PX:
        raise ImageError(
            f"The picture is too small: {width} x {height} pixels, at least {MIN_SIDE_PX} x"
            f" {MIN_SIDE_PX} are needed."
        )
    if max(height, width) > MOST_ELONGATED * min(height, width):
        raise ImageError(
            f"The picture is {width} x {height} pixels; a slice is at most {MOST_ELONGATED} times"
            " as long as it is wide."
        )
    if not np.isfinite(pixels).all():
        raise ImageError("The picture holds values that are no numbers.")


def require_fewer_pixels(width: int, height: int, max_pixels: int) -> None:
    """Refuse a picture by its declared size, before it is decoded.

    Raises:
        ImageError: it has more than `max_pixels`.
    """
    if width * height > max_pixels:
        raise ImageError(
            f"The picture is too large: {width} x {height} pixels, at most {max_pixels / 1e6:g}"
            " million are read."
        )


def require_fewer_slices(slices: int, pixels: int, max_slices: int) -> None:
    """Refuse a scan of so many slices of so many pixels each.

    Raises:
        TooLargeError: it has more than `max_slices`, or more than `MAX_VOXELS` pixels in all.
    """
    if slices > max_slices:
        raise TooLargeError(f"The scan has {slices} slices; at most {max_slices} are read.")
    if slices * pixels > MAX_VOXELS:
        raise TooLargeError(
            f"The scan is too large: at most {MAX_VOXELS / 1e6:.0f} million pixels are read in all."
        )


def _require_contrast(series: Series) -> None:
    """Refuse a scan that shows nothing. A single slice of a series may: those above the crown hold
    air only.
    """
    if all(slice.pixels.min() == slice.pixels.max() for slice in series.slices):
        raise BareImageError("The picture is blank: all its pixels have the same value.")
    lowest, highest = (
        min(float(slice.pixels.min()) for slice in series.slices),
        max(float(slice.pixels.max()) for slice in series.slices),
    )
    if series.slices[0].unit == "display":
        if (
            len(
                set().union(*(np.unique(np.round(slice.pixels * 65535)) for slice in series.slices))
            )
            < FEWEST_GREYS
        ):
            raise BareImageError(
                f"The picture has fewer than {FEWEST_GREYS} shades of grey, so it is no CT slice."
            )
    elif highest < 0 or lowest > 80:
        raise BareImageError(
            f"The scan shows no brain: its values run from {lowest:g} to {highest:g} HU."
        )
    elif lowest >= 0 and highest <= 255:
        raise ImageError(
            f"The scan holds no Hounsfield units: its values run from {lowest:g} to {highest:g},"
            " like those of a picture."
        )
    elif max(soft_tissue_share(slice.pixels) for slice in series.slices) < LEAST_SOFT_TISSUE:
        raise BareImageError(
            "The scan shows no soft tissue: next to none of its values lies between -20 and 100 HU."
        )


def _kind(head: bytes) -> str:
    """Return what a file is by its first `HEAD_BYTES`."""
    from ml.scans.nifti import is_nifti

    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[128:132] == b"DICM":
        return "DICOM"
    if is_nifti(head):
        return "NIfTI"
    raise ImageError("The file is not a PNG, JPEG, DICOM or NIfTI image.")
