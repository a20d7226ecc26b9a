"""Where did the model look? Occlusion in feature space, and its picture.

The convolutions run once; then one window of cells of their maps after the other is masked, and the
head says how much its answer drops (Zeiler and Fergus 2014, doi 10.1007/978-3-319-10590-1_53,
occluded the picture, which would run the convolutions each time). It
needs no gradient, so the same code serves every head: softmax, SVM, LSTM, GRU.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from ml.preprocessing.model_input import Frame, turned_to_frame
from ml.preprocessing.scaling import shrunk
from ml.scans.slices import FloatArray

CHUNK = 64  # masked copies scored at once: 64 x (13, 13, 256) maps are 11 MB
REACH = 1  # a window reaches so many cells to each side
AIR = 0.02  # of white; what is darker shows no tissue
SMALLEST_DROP = 0.02  # in log-odds; smaller ones are noise and must not be stretched to full heat
# heat -> red, green, blue
RAMP = ((0.0, (70, 10, 110)), (0.4, (215, 45, 65)), (0.75, (250, 150, 20)), (1.0, (255, 245, 130)))
MOST_OPAQUE = 0.85


def masked_copies(maps: FloatArray) -> FloatArray:
    """Return one copy of a slice's maps (h, w, c) for each cell, with the cells around it masked:
    float32 (h * w, h, w, c), row by row.

    The window is 3 x 3 cells, as a bleed seldom fits one: while a neighbor still shows it, a head
    that takes a channel's maximum does not miss a single cell. A masked cell takes each channel's
    median over the slice: the typical cell of this very picture. Zeros would be no absence but a
    cell that no picture has, which a standardized SVM answers wildly; the mean would still hold
    some of a large bleed.
    """
    height, width, channels = maps.shape
    copies = np.repeat(maps[np.newaxis], height * width, axis=0)
    typical = np.median(maps.reshape(-1, channels), axis=0)
    for cell, copy in enumerate(copies):
        row, column = divmod(cell, width)
        copy[max(row - REACH, 0) : row + REACH + 1, max(column - REACH, 0) : column + REACH + 1] = (
            typical
        )
    return copies


def occlusion(
    maps: FloatArray, score: Callable[[FloatArray], FloatArray], pixels: FloatArray | None = None
) -> FloatArray:
    """Return how much each cell raises the probability, float32 (h, w): 1 where masking it costs
    most, 0 where it costs nothing.

    Args:
        maps: float32 (h, w, c), one slice's maps.
        score: probabilities (n,) of n slices' maps (n, h, w, c).
        pixels: the input (size, size, 1) that the maps are of. A cell counts by its share of shown
            head: air holds no blood, but the convolutions' padding makes the corners of a map
            unlike any other cell.
    """
    copies = masked_copies(maps)
    masked = np.concatenate(
        [score(copies[start : start + CHUNK]) for start in range(0, len(copies), CHUNK)]
    )
    # In log-odds, because near 0 and 1 a probability hardly moves whatever is masked.
    drop = np.maximum(log_odds(score(maps[np.newaxis])) - log_odds(masked), 0).reshape(
        maps.shape[:2]
    )
    # A cell's heat is the mean over the windows that hold it, so that the heat of a single cell
    # peaks at that cell.
    side = (2 * REACH + 1, 2 * REACH + 1)
    windows = cv2.boxFilter(
        np.ones_like(drop), -1, side, normalize=False, borderType=cv2.BORDER_CONSTANT
    )
    drop = cv2.boxFilter(drop, -1, side, normalize=False, borderType=cv2.BORDER_CONSTANT) / windows
    if pixels is not None:
        shown = (pixels[:, :, 0] > AIR).astype(np.float32)
        drop = drop * cv2.resize(
            shown, (maps.shape[1], maps.shape[0]), interpolation=cv2.INTER_AREA
        )
    heat: FloatArray = (drop / max(float(drop.max()), SMALLEST_DROP)).astype(np.float32)
    return heat


def place(cells: FloatArray, frame: Frame, shape: tuple[int, ...]) -> FloatArray:
    """Return the heat of cells (h, w) over the original slice of `shape` (H, W), float32: smooth
    inside the frame, 0 outside.
    """
    square = np.clip(
        cv2.resize(cells, (frame.width, frame.height), interpolation=cv2.INTER_LINEAR), 0, 1
    )
    if frame.angle_deg:
        turned_back = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return np.asarray(
            cv2.warpAffine(square, turned_to_frame(frame), (shape[1], shape[0]), flags=turned_back),
            np.float32,
        )
    heat = np.zeros(shape[:2], np.float32)
    top, left = max(frame.top, 0), max(frame.left, 0)
    bottom, right = (
        min(frame.top + frame.height, heat.shape[0]),
        min(frame.left + frame.width, heat.shape[1]),
    )
    heat[top:bottom, left:right] = square[
        top - frame.top : bottom - frame.top, left - frame.left : right - frame.left
    ]
    return heat


def overlay(heat: FloatArray, max_px: int) -> Image.Image:
    """Return heat (H, W) in 0..1 as an RGBA picture to lay over `ml.scans.slices.render(slice,
    max_px)`, of the same size.

    No heat is fully transparent; the more heat, the lighter and the more opaque.
    """
    shown = np.clip(shrunk(np.clip(heat, 0, 1), max_px), 0, 1)
    stops = [stop for stop, _ in RAMP]
    channels = [
        np.interp(shown, stops, [colour[channel] for _, colour in RAMP]) for channel in range(3)
    ]
    rgba = np.stack([*channels, shown * MOST_OPAQUE * 255], axis=-1)
    return Image.fromarray(np.round(rgba).astype(np.uint8))


def log_odds(probability: FloatArray) -> FloatArray:
    """Return the log-odds of probabilities, which are kept 1e-7 away from 0 and 1."""
    clipped = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.log(clipped / (1 - clipped)).astype(np.float32)
