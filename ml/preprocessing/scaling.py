"""Downscaling of images for a computation, and upscaling of the resulting masks."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ml.scans.slices import BoolArray, FloatArray, rendered_size


def shrunk(picture: FloatArray, longest_px: int, shortest_px: int = 1) -> FloatArray:
    """Return an image (height, width) downscaled to a longer side of at most `longest_px`, float32,
    by averaging pixels, with the aspect ratio kept; it is never enlarged. Downscaled sides have at
    least `shortest_px`.
    """
    picture = np.ascontiguousarray(picture, np.float32)
    if max(picture.shape) <= longest_px:
        return picture
    width, height = (max(shortest_px, px) for px in rendered_size(picture.shape, longest_px))
    return np.asarray(
        cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.float32
    )


def restored(mask: np.ndarray, shape: tuple[int, ...]) -> BoolArray:
    """Return a mask of zeros and ones that was computed on a downscaled image, as bool of the
    image's shape (height, width), with its outline interpolated.
    """
    small, size = mask.astype(np.float32), shape[::-1]
    return np.asarray(cv2.resize(small, size, interpolation=cv2.INTER_LINEAR) >= 0.5)


def disc(diameter: int) -> NDArray[np.uint8]:
    """Return the round structuring element of that diameter in pixels, uint8 (diameter,
    diameter).
    """
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (diameter, diameter)), np.uint8)
