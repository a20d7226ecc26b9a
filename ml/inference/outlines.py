"""The outline of the hemorrhage in each slice of a scan, its area and its volume.

A model with outlines predicts a probability map, which is resampled to the slice and thresholded at
0.5. The volume is the sum over the slices of area times thickness, which reaches halfway to each
neighbor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ml.inference.heat_maps import place
from ml.preprocessing.model_input import Frame
from ml.preprocessing.skull import inside_of_skull
from ml.scans.geometry import is_gap
from ml.scans.slabs import Slabs
from ml.scans.slices import BoolArray, FloatArray, Series, Slice, gray_of

MapFunction = Callable[..., Iterable[Any]]
"""A function that applies another to each item, like `map`."""

OUTLINED_FROM = 0.5
SMALLEST_PIECE = 0.1
"""Minimum area relative to the largest piece of an outline in the same slice; smaller pieces are
specks. On held-out slices of ct_ich, dropping them halves the number of pieces without changing the
Dice coefficient (docs/results/journal.md).
"""
MM3_PER_ML = 1000.0

NO_OUTLINES = "The model does not outline hemorrhages."
NOT_FOUND = "No hemorrhage was found."
NOTHING_OUTLINED = "Nothing could be outlined."
ONE_SLICE = "A single slice has no volume."
NO_PIXEL_SIZE = "The size of a pixel is unknown."
NO_DISTANCE = "The distance between slices is unknown."
NEXT_TO_GAP = "Slices are missing next to the outlined hemorrhage."


@dataclass(frozen=True)
class Outlines:
    """The outlines of hemorrhage in a scan.

    Attributes:
        masks: of each slice, bool (height, width) in its own pixels, None if nothing is outlined;
            the thin slices of a slab share one. Empty without outlines.
        areas_mm2: of each slice; empty without outlines or if the pixel size is unknown.
        volume_ml: of the hemorrhage; None if unknown.
        no_volume_because: the reason, a sentence; empty if there is a volume.
    """

    masks: tuple[BoolArray | None, ...] = ()
    areas_mm2: tuple[float, ...] = ()
    volume_ml: float | None = None
    no_volume_because: str = NO_OUTLINES

    @property
    def outlined_slices(self) -> tuple[int, ...]:
        """The indices of the slices in which something is outlined."""
        return tuple(index for index, mask in enumerate(self.masks) if mask is not None)


def outlines_of(
    series: Series,
    slabs: Slabs,
    outlined: Sequence[FloatArray | None],
    frames: Sequence[Frame],
    map_: MapFunction = map,
) -> Outlines:
    """Return the outlines of a scan whose result is "suspected" or "inconclusive".

    Args:
        series: the scan.
        slabs: of the series.
        outlined: probability maps of the slabs (m, m), in the model's input; None for a negative
            slab.
        frames: position of the input in each slab.
        map_: applies a function to each slab, perhaps in threads.
    """

    def mask_of(number: int) -> BoolArray | None:
        probabilities = outlined[number]
        # Interpolation cannot exceed the maximum, so most slices need no further work.
        if probabilities is None or float(probabilities.max()) < OUTLINED_FROM:
            return None
        return _mask_of(probabilities, frames[number], series.slices[slabs.middle_of(number)])

    of_slabs = list(map_(mask_of, range(len(slabs))))
    masks = tuple(of_slabs[slabs.number_of(index)] for index in range(len(series.slices)))
    areas = areas_mm2(series, masks)
    volume, reason = _volume_of(series, masks, areas)
    return Outlines(masks, areas, volume, reason)


def areas_mm2(series: Series, masks: Sequence[BoolArray | None]) -> tuple[float, ...]:
    """Return the outlined area of each slice in mm², or () if a pixel size is unknown."""
    areas = []
    for slice_, mask in zip(series.slices, masks, strict=True):
        if slice_.spacing_mm is None:
            return ()
        row_mm, column_mm = slice_.spacing_mm
        pixels = 0 if mask is None else int(np.count_nonzero(mask))
        areas.append(pixels * row_mm * column_mm)
    return tuple(areas)


def thicknesses_mm(series: Series) -> NDArray[np.float64] | None:
    """Return the thickness in mm that each slice of a series represents, (n,): halfway to either
    neighbor, and at the ends as far outward as inward. None if the distances are unknown.
    """
    steps = _steps_mm(series)
    if steps is None:
        return None
    around = np.concatenate([steps[:1], steps, steps[-1:]])
    return np.asarray((around[:-1] + around[1:]) / 2)


def _steps_mm(series: Series) -> NDArray[np.float64] | None:
    between = len(series.slices) - 1
    if series.steps_mm:
        return np.abs(np.array(series.steps_mm, np.float64))
    return None if series.distance_mm is None else np.full(between, float(series.distance_mm))


def _mask_of(probabilities: FloatArray, frame: Frame, slice_: Slice) -> BoolArray | None:
    """Return the outline in the slice's own pixels, excluding areas outside a closed skull: a
    swollen scalp is as bright as blood.
    """
    mask = place(probabilities, frame, slice_.pixels.shape) >= OUTLINED_FROM
    space = inside_of_skull(gray_of(slice_))
    if space is not None:
        mask &= space
    return without_specks(mask) if mask.any() else None


def without_specks(mask: BoolArray) -> BoolArray:
    """Return an outline (height, width) without pieces smaller than `SMALLEST_PIECE`."""
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count <= 2:
        return mask
    areas = stats[:, cv2.CC_STAT_AREA]
    areas[0] = 0  # the background
    return np.asarray((areas >= max(SMALLEST_PIECE * areas.max(), 1))[pieces])


def _volume_of(
    series: Series, masks: Sequence[BoolArray | None], areas: Sequence[float]
) -> tuple[float | None, str]:
    """Return the volume in mL, or None and the reason."""
    if all(mask is None for mask in masks):
        return None, NOTHING_OUTLINED
    if len(masks) == 1:
        return None, ONE_SLICE
    if not areas:
        return None, NO_PIXEL_SIZE
    steps, thicknesses = _steps_mm(series), thicknesses_mm(series)
    if steps is None or thicknesses is None:
        return None, NO_DISTANCE
    gaps = is_gap(steps)
    if any(
        mask is not None and gaps[max(index - 1, 0) : index + 1].any()
        for index, mask in enumerate(masks)
    ):
        return None, NEXT_TO_GAP
    return float(np.dot(areas, thicknesses)) / MM3_PER_ML, ""
