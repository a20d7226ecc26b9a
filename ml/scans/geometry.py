"""Geometry of slices: the standard orientation, resampling to square pixels, and the detection of
placeholder sizes and of gaps between slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ml.scans.planes import MAX_LISTED, Vector
from ml.scans.slices import FloatArray

SQUARE = 1.01  # maximum ratio of the sides of a square pixel
MOST_OBLONG = 4.0  # at larger ratios, the file is wrong
PLACEHOLDER_MM = 1.0  # written by programs that do not know the size
SHORTEST_HEAD_MM = 60.0
GAP = 1.6  # a step larger than this multiple of the neighboring steps is a gap
NEIGHBORING_STEPS = 5  # on each side
EVEN = 1.25  # maximum ratio of the largest step to the smallest in an evenly spaced scan
# no field of view is that small or large; such a file gives its sizes in another unit
SMALLEST_FIELD_MM, LARGEST_FIELD_MM = 2.0, 20_000.0

Spacing = tuple[float, float]


def turned_upright(
    pixels: FloatArray, spacing_mm: Spacing | None, directions: NDArray[np.float64]
) -> tuple[FloatArray, Spacing | None]:
    """Turn an axial slice to the radiological orientation: forehead at the top, the patient's left
    on the right.

    `directions` are unit vectors along a row and a column (2, 3) in patient coordinates (x to the
    left, y to the back).
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
    """Return a slice (height, width), resampled to square pixels of the finer spacing, and the new
    spacing. It is unchanged if its pixels are square already, or if the spacing is implausible.
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


def factor_of_sizes(
    container: str,
    spacing_mm: Sequence[float] | None,
    shape: tuple[int, ...],
    step_mm: float | None,
    slices: int,
) -> tuple[float | None, list[str]]:
    """Return the factor by which the sizes of a scan must be multiplied, or None if they cannot be
    those of a head and are therefore unknown, and a note if the factor is not 1.

    Args:
        container: the user's term for the file.
        spacing_mm: distance between neighboring rows and between neighboring columns.
        shape: height and width of a slice.
        step_mm: distance between neighboring slices.
        slices: the number of slices.
    """
    if spacing_mm is None:
        return 1.0, []
    if step_mm is not None and is_placeholder_size((*spacing_mm, step_mm), slices):
        return None, [
            f"The {container} does not give its voxel size: {slices} slices of 1 mm would not cover"
            " a head."
        ]
    field_mm = max(side * step for side, step in zip(shape, spacing_mm, strict=True))
    if SMALLEST_FIELD_MM <= field_mm <= LARGEST_FIELD_MM:
        return 1.0, []
    factor = 1000.0 if field_mm < SMALLEST_FIELD_MM else 0.001
    if not SMALLEST_FIELD_MM <= factor * field_mm <= LARGEST_FIELD_MM:
        return None, [f"The {container} gives a pixel size that cannot be that of a head."]
    return factor, [f"The {container} gives its sizes in another unit; they were converted to mm."]


def scaled(sizes: Sequence[float] | None, factor: float) -> Any:
    """Return sizes times a factor; None stays None."""
    return None if sizes is None else tuple(factor * size for size in sizes)


def is_placeholder_size(spacing_mm: Sequence[float], slices: int) -> bool:
    """Return whether voxels of 1 mm in each direction are a placeholder for unknown sizes, since
    the head would be implausibly short.
    """
    return (
        slices * PLACEHOLDER_MM < SHORTEST_HEAD_MM
        and slices > 1
        and all(abs(step - PLACEHOLDER_MM) < 1e-4 for step in spacing_mm)
    )


def is_gap(steps_mm: Vector) -> NDArray[np.bool_]:
    """Return, for each step in mm between neighboring slices (n,), whether a part of the scan is
    missing, bool (n,).
    """
    return np.asarray(steps_mm > GAP * _local_median(steps_mm))


def _local_median(steps_mm: Vector) -> Vector:
    """Return the median of each step and its neighbors."""
    reach = NEIGHBORING_STEPS
    return np.array(
        [np.median(steps_mm[max(i - reach, 0) : i + reach + 1]) for i in range(len(steps_mm))]
    )


def spacing_notes(steps_mm: Vector) -> list[str]:
    """Return notes about gaps and uneven spacing. Scanners may change the step within a head, so
    each step is compared with its neighbors.
    """
    usual = _local_median(steps_mm)
    missing = is_gap(steps_mm)
    gaps = np.flatnonzero(missing)
    notes = [
        f"A part of the scan is missing between slices {i + 1} and {i + 2}: they are"
        f" {steps_mm[i]:.3g} mm apart, neighboring slices {usual[i]:.3g} mm."
        for i in gaps[:MAX_LISTED]
    ]
    if len(gaps) > MAX_LISTED:
        notes.append(f"Parts are missing in {len(gaps) - MAX_LISTED} further places.")
    rest = steps_mm[~missing]
    if len(rest) and rest.max() > EVEN * rest.min():
        notes.append(
            f"The slices are unevenly spaced: {rest.min():.3g} to {rest.max():.3g} mm apart."
        )
    return notes
