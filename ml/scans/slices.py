"""Slices and series, their windowing and rendering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Slice:
    """One CT slice.

    Attributes:
        pixels: float32 (height, width): Hounsfield units if `unit` is "hu", displayed gray 0..1 if
            it is "display".
        unit: of `pixels`.
        spacing_mm: distance between neighboring rows and between neighboring columns, None if
            unknown.
    """

    pixels: FloatArray
    unit: Literal["hu", "display"]
    spacing_mm: tuple[float, float] | None = None


@dataclass(frozen=True)
class Series:
    """The slices of one scan from foot to head; a single slice is a series of one.

    Attributes:
        slices: of one size and unit if made by `read_series`.
        warnings: sentences for the user about assumptions, corrections and files left out.
        distance_mm: the median distance between neighboring slices, None if unknown or if there is
            one slice.
        steps_mm: distance from each slice but the last to the next; empty if even or unknown.
    """

    slices: Sequence[Slice]
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


def gray_of(slice_: Slice, level: float = 40, width: float = 80) -> FloatArray:
    """Return the gray values of a slice, float32 (height, width) in 0..1: Hounsfield units in the
    window (HU), display values unchanged.
    """
    if slice_.unit == "hu":
        return window(slice_.pixels, level, width)
    shown: FloatArray = np.clip(slice_.pixels, 0, 1)
    return shown


def rendered_size(shape: tuple[int, ...], max_px: int) -> tuple[int, int]:
    """Return the (width, height) of an array of this shape (height, width) when its longer side is
    reduced to at most `max_px`; it is never enlarged.
    """
    height, width = shape[:2]
    scale = min(1.0, max_px / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def render(
    slice_: Slice, max_px: int, window_level: float = 40, window_width: float = 80
) -> Image.Image:
    """Return the slice as an 8-bit gray image with the same aspect ratio and a longer side of at
    most `max_px`; it is never enlarged.

    Hounsfield units are shown in the window (HU); display values are shown unchanged.
    """
    gray = gray_of(slice_, window_level, window_width)
    picture = Image.fromarray(np.round(gray * 255).astype(np.uint8))
    size = rendered_size(gray.shape, max_px)
    return (
        picture
        if picture.size == size
        else picture.resize(
            size, Image.Resampling.BOX if max_px < 128 else Image.Resampling.LANCZOS
        )
    )
