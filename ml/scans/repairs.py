"""Make the background of an image black if it can be distinguished from the head."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

WHITE, BLACK = 0.85, 0.15
WHITE_LINE = 0.98  # minimum share of white pixels in a row or column of a margin
# share of the way to the center of the body; share of that zone
SKULL_DEPTH, SKULL_SHARE = 0.2, 0.25

WHITE_MARGIN = "The image had a white margin, which was made black."
INVERTED = "The image's gray levels were inverted; this was corrected."


def on_black(gray: FloatArray) -> tuple[FloatArray | None, str]:
    """Return an image (height, width) in 0..1 with a black background, and a note about the change.

    A dark background is unchanged. A white margin around a dark image becomes black; an inverted
    image (a black skull under the scalp) is inverted back. Otherwise None is returned: the outline
    of white bone on a white background is unknown.
    """
    if _rim_median(gray) < WHITE:
        return gray, ""
    white_rows, white_columns = (
        (gray >= WHITE).mean(axis=1) >= WHITE_LINE,
        (gray >= WHITE).mean(axis=0) >= WHITE_LINE,
    )
    rows, columns = np.flatnonzero(~white_rows), np.flatnonzero(~white_columns)
    if not rows.size or not columns.size:
        return None, ""
    inner = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    if _rim_median(gray[inner]) < 0.5:
        framed = np.zeros_like(gray)
        framed[inner] = gray[inner]
        return framed, WHITE_MARGIN
    outlines, _ = cv2.findContours(
        (gray < WHITE).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    body = np.zeros(gray.shape, np.uint8)
    cv2.drawContours(body, [max(outlines, key=cv2.contourArea)], -1, 1, thickness=cv2.FILLED)
    depth = np.asarray(cv2.distanceTransform(np.pad(body, 1), cv2.DIST_L2, 5))[1:-1, 1:-1]
    zone = (depth > 0) & (depth <= SKULL_DEPTH * depth.max())
    black, white = zone & (gray < BLACK), zone & (gray >= WHITE)
    # From the outside: skin, fat, bone. In CT, fat is black and bone is white; if inverted, the
    # reverse.
    bone_is_black = (
        not white.any() or depth[black].mean() > depth[white].mean() if black.any() else False
    )
    if black.sum() > SKULL_SHARE * zone.sum() and bone_is_black:
        return np.asarray(1 - gray, np.float32), INVERTED
    return None, ""


def _rim_median(gray: FloatArray) -> float:
    return float(np.median(np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])))
