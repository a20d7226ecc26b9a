"""Detection of the head in a slice."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ml.preprocessing.scaling import disc, restored, shrunk
from ml.scans.slices import FloatArray

# images are resized to this longer side, so that the sizes below do not depend on resolution
SEARCH_PX = 256


OPENING_PX, CLOSING_PX, RIM_PX = 7, 9, 2


BRIGHTNESS = 0.25  # threshold between the image's background (0) and its bone (1)


SMALLEST_HEAD = 0.02  # minimum area of a head, relative to the image


def find_head(gray: FloatArray) -> NDArray[np.bool_] | None:
    """Return the mask of the head, bool (height, width), with holes filled; None if there is no
    head.

    Args:
        gray: float32 (height, width) in 0..1, in a window that shows brain.
    """
    small = shrunk(gray, SEARCH_PX)
    background, bone = np.percentile(small, [2, 99])
    bright = (small > background + BRIGHTNESS * (bone - background)).astype(np.uint8)
    # Opening removes thin structures that touch the head: its holder, a panel letter, a scale bar.
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
    # The rim restores what opening removed from the scalp, and keeps the outline off the bone.
    rimmed = cv2.dilate(filled, disc(2 * RIM_PX + 1))[
        CLOSING_PX:-CLOSING_PX, CLOSING_PX:-CLOSING_PX
    ]
    return restored(rimmed, gray.shape)


def _bordered(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Add a black border to the mask, so that a head cut off by the image's edge has an outline
    there.
    """
    return np.pad(mask, CLOSING_PX)
