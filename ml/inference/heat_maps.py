"""Heat maps by occlusion in feature space.

The convolutions run once; then a sliding window of cells of the feature maps is masked, and the
drop in the head's output is recorded (Zeiler and Fergus 2014, doi 10.1007/978-3-319-10590-1_53,
occluded the image, which requires a run of the convolutions for each position). No gradients are
needed, so the same code works for every head: softmax, SVM, LSTM, GRU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np
from PIL import Image

from ml.preprocessing.model_input import Frame, turned_to_frame
from ml.preprocessing.scaling import shrunk
from ml.scans.slices import FloatArray

CHUNK = 64  # masked copies per batch: 64 x (13, 13, 256) maps take 11 MB
REACH = 1  # a window extends by this many blocks to each side
MOST_BLOCKS = 14
AIR = 0.02  # relative to white; darker pixels are not tissue
SMALLEST_DROP = 0.02  # in log-odds; smaller drops are noise and must not be scaled to full heat
# heat -> red, green, blue
RAMP = ((0.0, (70, 10, 110)), (0.4, (215, 45, 65)), (0.75, (250, 150, 20)), (1.0, (255, 245, 130)))
MOST_OPAQUE = 0.85


def block_of(side: int) -> int:
    """Return the side, in cells, of the square blocks that are masked together for maps with that
    side: masking single cells of large maps would take thousands of copies.
    """
    return -(-side // MOST_BLOCKS)


def masked_copies(maps: FloatArray) -> Iterator[FloatArray]:
    """Yield a copy of a slice's maps (h, w, c) for each block of cells, masked around that block,
    in row-major order and in chunks: float32 (at most `CHUNK`, h, w, c).

    The window is 3 x 3 blocks, since a hemorrhage rarely fits into one, and heads with max pooling
    ignore the masking of one cell if its neighbor still shows the hemorrhage. Masked cells are set
    to each channel's median over the slice, a typical cell of the image. Zeros would be out of
    distribution, with erratic output of a standardized SVM; the mean would still contain part of a
    large hemorrhage.
    """
    height, width, channels = maps.shape
    block = block_of(max(height, width))
    blocks = [
        (row, column) for row in range(-(-height // block)) for column in range(-(-width // block))
    ]
    typical = np.median(maps.reshape(-1, channels), axis=0)
    for start in range(0, len(blocks), CHUNK):
        chunk = blocks[start : start + CHUNK]
        copies = np.repeat(maps[np.newaxis], len(chunk), axis=0)
        for copy, (row, column) in zip(copies, chunk, strict=True):
            top, left = max(row - REACH, 0) * block, max(column - REACH, 0) * block
            copy[top : (row + REACH + 1) * block, left : (column + REACH + 1) * block] = typical
        yield copies


def occlusion(
    maps: FloatArray, score: Callable[[FloatArray], FloatArray], pixels: FloatArray | None = None
) -> FloatArray:
    """Return how much each block of cells raises the probability, float32 (rows, columns), at most
    `MOST_BLOCKS` along a side: 1 at the largest drop, 0 without a drop.

    Args:
        maps: float32 (h, w, c), maps of one slice.
        score: function from maps (n, h, w, c) of n slices to probabilities (n,).
        pixels: the input (size, size, 1) of the maps. Blocks are weighted by their share of head:
            air holds no hemorrhage, but padding makes the corner cells unusual.
    """
    block = block_of(max(maps.shape[:2]))
    shape = -(-maps.shape[0] // block), -(-maps.shape[1] // block)
    masked = np.concatenate([score(copies) for copies in masked_copies(maps)])
    # In log-odds, because probabilities near 0 and 1 hardly change.
    drop = np.maximum(log_odds(score(maps[np.newaxis])) - log_odds(masked), 0).reshape(shape)
    # A block's heat is the mean over the windows that contain it, so that a single relevant block
    # is the peak.
    side = (2 * REACH + 1, 2 * REACH + 1)
    windows = cv2.boxFilter(
        np.ones_like(drop), -1, side, normalize=False, borderType=cv2.BORDER_CONSTANT
    )
    drop = cv2.boxFilter(drop, -1, side, normalize=False, borderType=cv2.BORDER_CONSTANT) / windows
    if pixels is not None:
        shown = (pixels[:, :, 0] > AIR).astype(np.float32)
        drop = drop * cv2.resize(shown, shape[::-1], interpolation=cv2.INTER_AREA)
    heat: FloatArray = (drop / max(float(drop.max()), SMALLEST_DROP)).astype(np.float32)
    return heat


def place(cells: FloatArray, frame: Frame, shape: tuple[int, ...]) -> FloatArray:
    """Interpolate the heat of cells (h, w) to the original slice of `shape` (H, W), float32: 0
    outside the model's frame.
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
    """Return heat (H, W) in 0..1 as an RGBA overlay for `ml.scans.slices.render(slice, max_px)`, of
    the same size.

    Zero heat is fully transparent; more heat is lighter and more opaque.
    """
    shown = np.clip(shrunk(np.clip(heat, 0, 1), max_px), 0, 1)
    stops = [stop for stop, _ in RAMP]
    channels = [
        np.interp(shown, stops, [color[channel] for _, color in RAMP]) for channel in range(3)
    ]
    rgba = np.stack([*channels, shown * MOST_OPAQUE * 255], axis=-1)
    return Image.fromarray(np.round(rgba).astype(np.uint8))


def log_odds(probability: FloatArray) -> FloatArray:
    """Return the log-odds of probabilities, in the same shape, after clipping them to [1e-7, 1 -
    1e-7].
    """
    clipped = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.log(clipped / (1 - clipped)).astype(np.float32)
