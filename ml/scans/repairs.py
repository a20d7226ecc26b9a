"""What the values of a picture give away about how it was saved, and what can be put right safely.

Nothing here guesses: where two readings fit, neither is taken, and the caller refuses the picture
with a sentence.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

SOFT_HU = (-20.0, 100.0)  # brain, blood, muscle
NOT_AIR_HU, AIR_HU, AIR_REACH_HU = -300.0, -1000.0, 10.0
LEAST_SOFT = 0.3  # of what is not air, in a single slice saved with its CT values
OFFSETS = (1024, 1000, 32768)
MOST_12_BIT = 4095

WHITE, BLACK = 0.85, 0.15
WHITE_LINE = 0.98  # of the pixels of a margin's row or column
SKULL_DEPTH, SKULL_SHARE = 0.2, 0.25  # of the way to the body's middle; of that zone


def soft_tissue_share(values_hu: FloatArray) -> float:
    """Return how much of what is not air has the HU of soft tissue, 0..1; 0 where all is air."""
    shown = values_hu[values_hu > NOT_AIR_HU]
    return float(((shown >= SOFT_HU[0]) & (shown <= SOFT_HU[1])).mean()) if shown.size else 0.0


def hounsfield_in_16_bits(stored: NDArray[np.int64]) -> tuple[FloatArray | None, bool]:
    """Return the HU that a 16-bit picture's values (height, width) hold, and whether they are CT
    values at all.

    Programs save HU as signed numbers read as unsigned ones, or with 1024, 1000 or 32768 added.
    What was added follows from air, which lies at -1000 HU. Values of CT whose air is cut off at
    zero fit 1024 (a padded circle) as well as 1000, and the 24 HU
    between these are the difference between brain and blood: then the HU are None though the second
    answer is True.
    """
    unclear = False
    candidates = [
        np.where(stored >= 32768, stored - 65536, stored),
        *(stored - offset for offset in OFFSETS),
    ]
    for number, candidate in enumerate(candidates):
        values = np.clip(candidate, -1024, MOST_12_BIT).astype(np.float32)
        if (candidate > MOST_12_BIT).any() or soft_tissue_share(values) < LEAST_SOFT:
            continue
        lowest = int(candidate.min())
        above = candidate[(candidate > lowest) & (candidate < -700)]
        # Unsigned numbers that begin at 0 may have been cut off there.
        air_is_lowest = (number == 0 or stored.min() > 0) and abs(lowest - AIR_HU) <= AIR_REACH_HU
        air_is_above = (
            above.size >= 0.01 * stored.size
            and abs(float(np.median(above)) - AIR_HU) <= AIR_REACH_HU
        )
        if air_is_lowest or air_is_above:
            return values, True
        unclear = unclear or (number in (1, 2) and stored.max() <= MOST_12_BIT)
    return None, unclear


def on_black(grey: FloatArray) -> tuple[FloatArray | None, str]:
    """Return a picture (height, width) in 0..1 with its background black, and a sentence about what
    was done to it.

    A dark background is left as it is. Of a white one, a margin around a dark picture becomes
    black; a picture turned over (a black skull under the scalp) is turned back. Anything else,
    None: where white bone lies on white paper, the head has no outline.
    """
    if _rim_median(grey) < WHITE:
        return grey, ""
    white_rows, white_columns = (
        (grey >= WHITE).mean(axis=1) >= WHITE_LINE,
        (grey >= WHITE).mean(axis=0) >= WHITE_LINE,
    )
    rows, columns = np.flatnonzero(~white_rows), np.flatnonzero(~white_columns)
    if not rows.size or not columns.size:
        return None, ""
    inner = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    if _rim_median(grey[inner]) < 0.5:
        framed = np.zeros_like(grey)
        framed[inner] = grey[inner]
        return framed, "The picture had a white margin; it was made black."
    outlines, _ = cv2.findContours(
        (grey < WHITE).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    body = np.zeros(grey.shape, np.uint8)
    cv2.drawContours(body, [max(outlines, key=cv2.contourArea)], -1, 1, thickness=cv2.FILLED)
    depth = np.asarray(cv2.distanceTransform(np.pad(body, 1), cv2.DIST_L2, 5))[1:-1, 1:-1]
    zone = (depth > 0) & (depth <= SKULL_DEPTH * depth.max())
    black, white = zone & (grey < BLACK), zone & (grey >= WHITE)
    # From outside come skin, fat and bone. Fat is black and bone white as a CT shows them, and the
    # other way round when turned over.
    bone_is_black = (
        not white.any() or depth[black].mean() > depth[white].mean() if black.any() else False
    )
    if black.sum() > SKULL_SHARE * zone.sum() and bone_is_black:
        return np.asarray(
            1 - grey, np.float32
        ), "The picture's grays were upside down; they were turned over."
    return None, ""


def _rim_median(grey: FloatArray) -> float:
    return float(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])))
