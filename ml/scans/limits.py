"""Limits on the size of a scan, and the minimum content that it must show."""

from __future__ import annotations

import numpy as np

from ml.errors import BareImageError, ImageError, TooLargeError
from ml.scans.hounsfield import CLIPPED_AT, CLIPPED_IN_8_BITS, is_clipped_window, soft_tissue_share
from ml.scans.slices import FloatArray, Series

MAX_BYTES = 256 * 2**20


MAX_PIXELS = 16_000_000  # 4000 x 4000; a CT slice has 512 x 512


MAX_SLICES = 1_000  # a head in steps of 0.2 mm


MAX_VOXELS = MAX_SLICES * 512 * 512  # in total: 1 GiB as float32


MIN_SIDE_PX = 32


# maximum ratio of the sides: every image is padded to a square, so the memory for an elongated one
# grows with the square of its length
MOST_ELONGATED = 4


# drawings, masks and faxes have fewer; slices in the training data have at least 81
FEWEST_GRAYS = 16


# a scan with a narrower range was normalized; the range of resampled 8-bit gray values, and the
# minimum share of black among them
NARROWEST_HU = 20.0
GRAY_RANGE, BLACK_HU, LEAST_BLACK = (-30.0, 290.0), 6.0, 0.1


LEAST_SOFT_TISSUE = 0.05  # minimum share of pixels other than air, in the slice that shows most


def require_a_picture(pixels: FloatArray) -> None:
    """Refuse an image that cannot be a slice.

    Raises:
        ImageError: the image is smaller than 32 px on a side, far from square, or has values that
            are not finite numbers.
    """
    require_sound_pixels(pixels)
    height, width = pixels.shape
    if max(height, width) > MOST_ELONGATED * min(height, width):
        raise ImageError(
            f"The image is {width} x {height} pixels; a slice is at most {MOST_ELONGATED} times"
            " as long as it is wide."
        )


def require_sound_pixels(pixels: FloatArray) -> None:
    """Refuse an image that is neither a slice nor a film strip, which may be of any length.

    Raises:
        ImageError: the image is smaller than 32 px on a side, or has values that are not finite
            numbers.
    """
    height, width = pixels.shape
    if min(height, width) < MIN_SIDE_PX:
        raise ImageError(
            f"The image is too small: {width} x {height} pixels, at least {MIN_SIDE_PX} x"
            f" {MIN_SIDE_PX} are needed."
        )
    if not np.isfinite(pixels).all():
        raise ImageError("The image contains values that are not numbers.")


def require_fewer_pixels(width: int, height: int, max_pixels: int) -> None:
    """Refuse an image by its declared size, before it is decoded.

    Raises:
        ImageError: it has more than `max_pixels`.
    """
    if width * height > max_pixels:
        raise ImageError(
            f"The image is too large: {width} x {height} pixels, at most {max_pixels / 1e6:g}"
            " million are supported."
        )


def require_fewer_slices(slices: int, pixels: int, max_slices: int) -> None:
    """Refuse a scan with too many slices, given the number of pixels of each.

    Raises:
        TooLargeError: it has more than `max_slices`, or more than `MAX_VOXELS` pixels in all.
    """
    if slices > max_slices:
        raise TooLargeError(f"The scan has {slices} slices; at most {max_slices} are supported.")
    if slices * pixels > MAX_VOXELS:
        raise TooLargeError(
            f"The scan is too large: at most {MAX_VOXELS / 1e6:.0f} million pixels are read in all."
        )


def _is_gray_with_noise(series: Series, lowest: float, highest: float) -> bool:
    """Return whether these are 8-bit gray values that were resampled, and so slightly exceed 0 and
    255: there is no air at -1000 HU, but a black background.
    """
    is_exact = lowest >= 0 and highest <= CLIPPED_IN_8_BITS
    if is_exact or not (GRAY_RANGE[0] <= lowest and CLIPPED_AT[1] < highest <= GRAY_RANGE[1]):
        return False
    black = np.mean([(np.abs(slice_.pixels) < BLACK_HU).mean() for slice_ in series.slices])
    return bool(black > LEAST_BLACK)


def _has_few_grays(series: Series) -> bool:
    """Return whether the images have fewer than `FEWEST_GRAYS` shades of gray in all. They are read
    row by row until that many are found, which takes far less time than sorting whole images.
    """
    grays: set[float] = set()
    for slice_ in series.slices:
        for row in slice_.pixels:
            grays.update(np.unique(np.round(row * 65535)).tolist())
            if len(grays) >= FEWEST_GRAYS:
                return False
    return True


def require_contrast(series: Series) -> None:
    """Refuse a scan that shows no head. Single slices of a series may be empty: those above the
    vertex show only air.

    Raises:
        ImageError: the scan is blank, has no soft tissue or no Hounsfield units.
    """
    if all(slice_.pixels.min() == slice_.pixels.max() for slice_ in series.slices):
        raise BareImageError("The image is blank: all its pixels have the same value.")
    lowest, highest = (
        min(float(slice_.pixels.min()) for slice_ in series.slices),
        max(float(slice_.pixels.max()) for slice_ in series.slices),
    )
    if series.slices[0].unit == "display":
        if _has_few_grays(series):
            raise BareImageError(
                f"The image has fewer than {FEWEST_GRAYS} shades of gray, so it is not a CT slice."
            )
    elif highest < 0 or lowest > 80:
        raise BareImageError(
            f"The scan shows no brain: its values range from {lowest:g} to {highest:g} HU."
        )
    elif (
        lowest >= 0
        and highest <= 255
        and not is_clipped_window(np.stack([slice_.pixels for slice_ in series.slices]))
    ):
        raise ImageError(
            f"The scan has no Hounsfield units: its values range from {lowest:g} to {highest:g},"
            " like those of an ordinary image."
        )
    elif highest - lowest < NARROWEST_HU or _is_gray_with_noise(series, lowest, highest):
        raise ImageError(
            f"The scan has no Hounsfield units: its values range from {lowest:.3g} to"
            f" {highest:.3g}."
        )
    elif max(soft_tissue_share(slice_.pixels) for slice_ in series.slices) < LEAST_SOFT_TISSUE:
        raise BareImageError(
            "The scan shows no soft tissue: almost none of its values are between -20 and 100 HU."
        )
