"""Where the head is in a slice."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ml.preprocessing.scaling import disc, restored, shrunk
from ml.scans.slices import FloatArray

# the head is looked for in a picture of this longer side, so that sizes below mean the same in
# every picture
SEARCH_PX = 256


OPENING_PX, CLOSING_PX, RIM_PX = 7, 9, 2


BRIGHTNESS = 0.25  # of the way from the picture's background to its bone


SMALLEST_HEAD = 0.02  # of the picture's area; below, there is no head


def find_head(gray: FloatArray) -> NDArray[np.bool_] | None:
    """Return where the head is, bool (height, width), holes filled; None where the picture shows
    none.

    Args:
        gray: float32 (height, width) in 0..1, in a window that shows brain.
    """
    small = shrunk(gray, SEARCH_PX)
    background, bone = np.percentile(small, [2, 99])
    bright = (small > background + BRIGHTNESS * (bone - background)).astype(np.uint8)
    # Opening cuts the thin things that touch a head: its holder, a panel letter, a scale bar.
    bodies = cv2.morphologyEx(_bordered(bright), cv2.MORPH_OPEN, disc(OPENING_PX))
    outlines, _ = cv2.findContours(
        cv2.morphologyEx(bodies, cv2.MORPH_CLOSE, disc(CLOSING_PX)),
        cv2.RETR_EXTERNAL,
        cv2.CHAIN_APPROX_NONE,
    )
    if not outlines:
        return None
    filled = np.zeros_like(bodies)
    cv2.drawContours(filled, [max(outlines, key=cv2.contourArea)], -1, 1, thickness=cv2.FILLED)
    if filled.sum() < SMALLEST_HEAD * small.size:
        return None
    # The rim gives back what opening took from the scalp, and keeps the outline off the bone.
    rimmed = cv2.dilate(filled, disc(2 * RIM_PX + 1))[
        CLOSING_PX:-CLOSING_PX, CLOSING_PX:-CLOSING_PX
    ]
    return restored(rimmed, gray.shape)


def _bordered(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the mask with a black border, so that a head cut off by the picture's edge has an
    outline there.
    """
    return np.pad(mask, CLOSING_PX)
