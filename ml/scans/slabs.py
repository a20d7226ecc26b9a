"""Averaging of thin slices into slabs for a model, and mapping of its output back to the slices.

The models were trained on slices of about 5 mm. A thinner slice shows less blood and more noise, so
thin neighbors are averaged into slabs of that thickness, like a scanner's thick reconstruction. A
viewer shows the original slices; each has the result of its slab.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from ml.scans.slices import FloatArray, Series, Slice

SLAB_MM = 5.0
# slices closer than this are averaged; at this distance, two slices fill a slab
THIN_MM = 2.5


class Slabs(Sequence[Slice]):
    """The slabs of a series from foot to head, averaged on access; a slice that is not thin forms
    its own slab.

    No slab extends across a gap, or contains both thin and thick slices.
    """

    def __init__(self, series: Series) -> None:
        self._slices = series.slices
        even = series.distance_mm if series.distance_mm is not None else THIN_MM
        self._starts = slab_starts(np.array(series.steps_mm or [even] * (len(series.slices) - 1)))

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> Slice: ...
    @overload
    def __getitem__(self, index: slice) -> list[Slice]: ...
    def __getitem__(self, index: int | slice) -> Slice | list[Slice]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        index = range(len(self))[index]
        members = self._slices[self._starts[index] : self._starts[index + 1]]
        if len(members) == 1:
            return members[0]
        return mean_of(members)

    def number_of(self, slice_index: int) -> int:
        """Return the index of the slab to which a slice belongs."""
        return int(np.searchsorted(self._starts, slice_index, side="right")) - 1

    def size_of(self, index: int) -> int:
        """Return the number of slices in a slab."""
        return int(self._starts[index + 1] - self._starts[index])

    def middle_of(self, index: int) -> int:
        """Return the index of the slice in the middle of a slab."""
        return int(self._starts[index] + self._starts[index + 1] - 1) // 2

    def per_slice(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return values of slabs (slabs, ...) as values of slices (slices, ...)."""
        return np.repeat(values, np.diff(self._starts), axis=0)


def slab_starts(steps_mm: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the index of the first slice of each slab, followed by the number of slices;
    `steps_mm` (slices - 1,) are the distances between neighboring slices.
    """
    count = len(steps_mm) + 1
    ends = [*(np.flatnonzero(steps_mm >= THIN_MM) + 1), count]
    starts: list[int] = []
    # a run of thin slices, or a single slice
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        thickness_mm = float(np.median(steps_mm[start : end - 1])) if end - start > 1 else SLAB_MM
        slabs = max(round((end - start) * thickness_mm / SLAB_MM), 1)
        starts += [int(first) for first in np.linspace(start, end, slabs + 1).round()[:-1]]
    return np.array([*starts, count])


def mean_of(slices: Sequence[Slice]) -> Slice:
    """Return the mean of neighboring slices of one size and unit."""
    mean: FloatArray = np.zeros_like(slices[0].pixels)
    for slice_ in slices:
        mean += slice_.pixels
    return Slice(mean / np.float32(len(slices)), slices[0].unit, slices[0].spacing_mm)
