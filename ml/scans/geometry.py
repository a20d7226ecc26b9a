"""How a slice lies and how large its pixels are: upright, in square pixels, and what a file says of
sizes that no head has.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ml.scans.slices import FloatArray

SQUARE = 1.01  # the longer side of a pixel over the shorter, up to which it is square
MOST_OBLONG = 4.0  # beyond, the file is wrong
UNSAID_MM = 1.0  # what programs write that know no size
SHORTEST_HEAD_MM = 60.0

Spacing = tuple[float, float]


def turned_upright(
    pixels: FloatArray, spacing_mm: Spacing | None, directions: NDArray[np.float64]
) -> tuple[FloatArray, Spacing | None]:
    """Turn an axial slice as radiologists read it: forehead at the top, the patient's left on the
    right.

    `directions` are those of a row and a column (2, 3) in patient coordinates (x to the left, y to
    the back).
    """
    across, down = directions
    if abs(across[1]) > abs(across[0]):
        pixels, across, down = pixels.T, down, across
        spacing_mm = None if spacing_mm is None else (spacing_mm[1], spacing_mm[0])
    if across[0] < 0:
        pixels = pixels[:, ::-1]
    if down[1] < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels), spacing_mm


def in_square_pixels(
    pixels: FloatArray, spacing_mm: Spacing | None
) -> tuple[FloatArray, Spacing | None]:
    """Return a slice whose pixels are as high as wide: the coarser way gets more of them. It stays
    as it is where they are, and where the file says sizes that cannot be.
    """
    if spacing_mm is None:
        return pixels, None
    finest, coarsest = min(spacing_mm), max(spacing_mm)
    if coarsest > MOST_OBLONG * finest:
        return pixels, None
    if coarsest <= SQUARE * finest:
        return pixels, spacing_mm
    height, width = (
        max(1, round(size * step / finest))
        for size, step in zip(pixels.shape, spacing_mm, strict=True)
    )
    stretched = cv2.resize(
        np.ascontiguousarray(pixels), (width, height), interpolation=cv2.INTER_LINEAR
    )
    return np.asarray(stretched, np.float32), (finest, finest)


def says_no_size(spacing_mm: Sequence[float], slices: int) -> bool:
    """True if voxels of 1 mm in each direction are what a program writes that knows no sizes: the
    head would be lower than any is.
    """
    return (
        slices * UNSAID_MM < SHORTEST_HEAD_MM
        and slices > 1
        and all(abs(step - UNSAID_MM) < 1e-4 for step in spacing_mm)
    )
