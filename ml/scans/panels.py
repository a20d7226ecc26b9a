"""Tell apart the panels of one picture: the same slice in several windows, and scouts."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ml.scans.slices import FloatArray

COMPARED_PX = 48
INSIDE = 0.7  # of a skull's half axes: brain without bone
SAME_SLICE = 0.85  # minimum correlation of two windows of one slice
# minimum ratio of the contrasts of two windows: brain and subdural windows differ by 2.5
OTHER_WINDOW = 1.3
# maximum share of the brain that is black, as its ventricles are in windows narrower than brain's
MOST_BLACK, BLACK = 0.01, 0.02

THIN_PX, THIN_CONTRAST = 5, 0.15
LINE_LENGTH = 0.5  # share of a cell's side
FEWEST_LINES = 4
STEEPEST = 0.4  # rise of a line, relative to a cell's side


def brain_window(heads: Sequence[FloatArray]) -> int | None:
    """Return the index of the head that is shown in a brain window if all show one slice in
    different windows, -1 if none can be told to be, or None if they show different slices.

    Args:
        heads: gray (height, width) in 0..1, each cut to the box of its skull.
    """
    size = COMPARED_PX, COMPARED_PX
    small = np.stack([cv2.resize(head, size, interpolation=cv2.INTER_AREA) for head in heads])
    along = (np.arange(COMPARED_PX) + 0.5) / (COMPARED_PX / 2) - 1
    brains = small[:, np.hypot(along[:, None], along) < INSIDE]
    contrasts = brains.std(axis=1)
    if contrasts.min() == 0 or contrasts.max() < OTHER_WINDOW * contrasts.min():
        return None
    if np.asarray(np.corrcoef(brains))[0].min() < SAME_SLICE:
        return None
    # wider windows have less contrast; narrower ones, such as stroke windows, clip the ventricles
    candidates = np.flatnonzero((brains <= BLACK).mean(axis=1) <= MOST_BLACK)
    return int(candidates[contrasts[candidates].argmax()]) if candidates.size else -1


def is_scout(cell: FloatArray) -> bool:
    """Return whether a square cell of a sheet is a scout: the positions of the slices are drawn
    across it as thin parallel lines.
    """
    side = len(cell)
    thin = cell - cv2.morphologyEx(cell, cv2.MORPH_OPEN, np.ones((THIN_PX, THIN_PX), np.uint8))
    # 3 px high, so that a line is also found along a direction that misses it by a pixel
    lines = cv2.dilate((thin > THIN_CONTRAST).astype(np.uint8), np.ones((3, 1), np.uint8))
    columns = np.arange(side)
    for rise in range(-round(STEEPEST * side), round(STEEPEST * side) + 1, 2):
        rows = columns[:, None] + np.round(columns * rise / side).astype(int) - rise // 2
        along = lines[np.clip(rows, 0, side - 1), columns].mean(axis=1) >= LINE_LENGTH
        if np.count_nonzero(np.diff(along.astype(int)) > 0) >= FEWEST_LINES:
            return True
    return False
