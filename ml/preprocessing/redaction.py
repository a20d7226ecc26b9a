"""Redact everything outside the head, where names and notes may be burned into images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ml.preprocessing.head import find_head
from ml.scans.slices import Series, Slice, gray_of

AIR_HU, BLACK = -1000.0, 0.0
COVERED = "Everything outside the head was covered."


def covered(series: Series) -> Series:
    """Return the series with air, or black, outside the head.

    The head is the largest bright body in the brain window, including what it encloses
    (`ml.preprocessing.head.find_head`). Slices without a head, as above the vertex, are unchanged,
    and a note states their number.
    """
    slices = [_covered(slice_) for slice_ in series.slices]
    without = sum(new is old for new, old in zip(slices, series.slices, strict=True))
    notes = [COVERED] if without < len(slices) else []
    if without:
        notes.append(
            f"In {without} of {len(slices)} slices no head was found, so nothing was covered there."
        )
    return replace(series, slices=tuple(slices), warnings=(*series.warnings, *notes))


def _covered(slice_: Slice) -> Slice:
    head = find_head(gray_of(slice_))
    if head is None:
        return slice_
    return replace(
        slice_,
        pixels=np.where(head, slice_.pixels, np.float32(AIR_HU if slice_.unit == "hu" else BLACK)),
    )
