"""Make the background of an image black if it can be distinguished from the head."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

WHITE, BLACK = 0.85, 0.15
# minimum number of white corners outside the scanned circle; its minimum radius, relative to the
# shorter side
FEWEST_CORNERS, SMALLEST_RADIUS = 3, 0.45
WHITE_LINE = 0.98  # minimum share of white pixels in a row or column of a margin
# share of the way to the center of the body; minimum share of bone in that zone, and maximum share
# of white in it where the skin is too thin to be seen: the fluid below black bone is white, and so
# is the bone below black fat
SKULL_DEPTH, SKULL_SHARE, FLUID_SHARE = 0.2, 0.25, 0.15

WHITE_MARGIN = "The image had a white margin, which was made black."
WHITE_CORNERS = "The image had white corners around the scanned circle, which were made black."
INVERTED = "The image's gray levels were inverted; this was corrected."


def on_black(gray: FloatArray) -> tuple[FloatArray | None, str]:
    """Return an image (height, width) in 0..1 with a black background, and a note about the change.

    A dark background is unchanged. A white margin around a dark image, or around the black circle
    that was scanned, becomes black; an inverted image (a black skull under the scalp) is inverted
    back. Otherwise None is returned: the outline of white bone on a white background is unknown.
    """
    rounded = _without_corners(gray)
    if _rim_median(gray) < WHITE:
        return (gray, "") if rounded is None else (rounded, WHITE_CORNERS)
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
    if rounded is not None:
        return rounded, WHITE_CORNERS
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
    bone_is_black = black.any() and (
        white.sum() < FLUID_SHARE * zone.sum() or depth[black].mean() > depth[white].mean()
    )
    if black.sum() > SKULL_SHARE * zone.sum() and bone_is_black:
        return np.asarray(1 - gray, np.float32), INVERTED
    return None, ""


def _without_corners(gray: FloatArray) -> FloatArray | None:
    """Return an image with black corners if at least three are white, outside a circle of black
    air that reaches the edges; else None.
    """
    if (gray[[0, 0, -1, -1], [0, -1, 0, -1]] >= WHITE).sum() < FEWEST_CORNERS:
        return None
    # the frame joins the corners
    _, labels = cv2.connectedComponents(
        np.pad((gray >= WHITE).astype(np.uint8), 1, constant_values=1), connectivity=4
    )
    outside = (labels == labels[0, 0])[1:-1, 1:-1].astype(np.uint8)
    height, width = gray.shape
    down, across = (np.arange(size) + 0.5 - size / 2 for size in (height, width))
    distance = np.hypot(down[:, None], across)
    if (distance[outside > 0] < SMALLEST_RADIUS * min(height, width)).any():
        return None  # the background of a head
    # JPEG and resampling blur the edge
    blurred, beyond = (cv2.dilate(outside, np.ones((side, side), np.uint8)) for side in (7, 9))
    air = gray[(beyond > 0) & (blurred == 0)]
    if not air.size or (air < BLACK).mean() < WHITE_LINE:
        return None
    return np.where(blurred > 0, np.float32(0), gray)


def _rim_median(gray: FloatArray) -> float:
    return float(np.median(np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])))
