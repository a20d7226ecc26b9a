"""How large a scan may be, and how little it may show."""

from __future__ import annotations

import numpy as np

from ml.errors import BareImageError, ImageError, TooLargeError
from ml.scans.hounsfield import is_clipped_window, soft_tissue_share
from ml.scans.slices import FloatArray, Series

MAX_BYTES = 256 * 2**20


MAX_PIXELS = 16_000_000  # 4000 x 4000; a CT slice has 512 x 512


MAX_SLICES = 1_000  # a head at a fifth of a millimeter


MAX_VOXELS = MAX_SLICES * 512 * 512  # in all: 1 GiB as float32


MIN_SIDE_PX = 32


# a slice is about square, and every picture is padded to a square: a thin one would take its length
# in both ways
MOST_ELONGATED = 4


FEWEST_GREYS = 16  # a drawing, a mask or a fax has fewer; the plainest slice of ours has 81


LEAST_SOFT_TISSUE = 0.05  # of what is not air, in the slice of a scan that shows most of it


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
        raise ImageError("The picture contains values that are not numbers.")


def require_fewer_pixels(width: int, height: int, max_pixels: int) -> None:
    """Refuse a picture by its declared size, before it is decoded.

    Raises:
        ImageError: it has more than `max_pixels`.
    """
    if width * height > max_pixels:
        raise ImageError(
            f"The picture is too large: {width} x {height} pixels, at most {max_pixels / 1e6:g}"
            " million are supported."
        )


def require_fewer_slices(slices: int, pixels: int, max_slices: int) -> None:
    """Refuse a scan of so many slices of so many pixels each.

    Raises:
        TooLargeError: it has more than `max_slices`, or more than `MAX_VOXELS` pixels in all.
    """
    if slices > max_slices:
        raise TooLargeError(f"The scan has {slices} slices; at most {max_slices} are supported.")
    if slices * pixels > MAX_VOXELS:
        raise TooLargeError(
            f"The scan is too large: at most {MAX_VOXELS / 1e6:.0f} million pixels are read in all."
        )


def require_contrast(series: Series) -> None:
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
                f"The picture has fewer than {FEWEST_GREYS} shades of gray, so it is not a CT"
                " slice."
            )
    elif highest < 0 or lowest > 80:
        raise BareImageError(
            f"The scan shows no brain: its values range from {lowest:g} to {highest:g} HU."
        )
    elif (
        lowest >= 0
        and highest <= 255
        and not is_clipped_window(np.stack([slice.pixels for slice in series.slices]))
    ):
        raise ImageError(
            f"The scan has no Hounsfield units: its values range from {lowest:g} to {highest:g},"
            " like those of a picture."
        )
    elif max(soft_tissue_share(slice.pixels) for slice in series.slices) < LEAST_SOFT_TISSUE:
        raise BareImageError(
            "The scan shows no soft tissue: almost none of its values are between -20 and 100 HU."
        )
