"""A slice, a series, and how they are windowed and shown."""

from __future__ import annotations

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
        pixels: float32 (height, width): Hounsfield units if `unit` is "hu", gray 0..1 as a viewer
            shows it if "display".
        unit: what `pixels` holds.
        spacing_mm: distance of neighboring rows and columns in mm, None where the file does not
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
        distance_mm: the usual distance of neighboring slices, None where the files do not say or
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


def gray_of(slice: Slice, level: float = 40, width: float = 80) -> FloatArray:
    """Return the gray values of a slice, float32 (height, width) in 0..1: Hounsfield units through
    the window (HU), display values as they are.
    """
    if slice.unit == "hu":
        return window(slice.pixels, level, width)
    shown: FloatArray = np.clip(slice.pixels, 0, 1)
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
    """Return the slice as an 8-bit gray picture for a page: aspect kept, longer side at most
    `max_px`, never enlarged.

    Hounsfield units are shown through the window (HU); display values are shown as they are.
    """
    grey = gray_of(slice, window_level, window_width)
    picture = Image.fromarray(np.round(grey * 255).astype(np.uint8))
    size = rendered_size(grey.shape, max_px)
    return (
        picture
        if picture.size == size
        else picture.resize(
            size, Image.Resampling.BOX if max_px < 128 else Image.Resampling.LANCZOS
        )
    )
