"""The input of the gate's networks, a crop around the largest body, and the reconstruction
errors.
"""

from __future__ import annotations

import cv2
import numpy as np

from ml.inference.gate_measures import PreparedImage
from ml.scans.slices import FloatArray

VIEW_PX = 128
CONTEXT = 1.1  # side of the view relative to the body's longer side
LOCAL_PX = 9  # neighborhood for local contrast
LEAST_VARIANCE = 0.003  # variance relative to white squared; below, a neighborhood counts as flat


def view_of(image: PreparedImage) -> tuple[FloatArray, FloatArray]:
    """Return a square crop around the body, float32 (128, 128, 1), black outside the image, and its
    body mask (128, 128), 0..1.

    Raises:
        ValueError: the image shows no body.
    """
    if image.head is None:
        raise ValueError("The image shows no body.")
    rows, columns = np.flatnonzero(image.head.any(axis=1)), np.flatnonzero(image.head.any(axis=0))
    middle = (columns[0] + columns[-1]) / 2, (rows[0] + rows[-1]) / 2
    side = CONTEXT * (max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1)
    scale = VIEW_PX / side
    matrix = np.array(
        [[scale, 0, VIEW_PX / 2 - scale * middle[0]], [0, scale, VIEW_PX / 2 - scale * middle[1]]]
    )
    # Blurred before shrinking, since warpAffine does not average pixels.
    gray = cv2.GaussianBlur(image.gray, (0, 0), 0.4 / scale) if scale < 0.8 else image.gray
    size = (VIEW_PX, VIEW_PX)
    pixels = np.clip(cv2.warpAffine(gray, matrix, size, flags=cv2.INTER_LINEAR), 0, 1)
    mask = cv2.warpAffine(image.head.astype(np.float32), matrix, size, flags=cv2.INTER_LINEAR)
    return pixels[..., np.newaxis].astype(np.float32), np.asarray(mask, np.float32)


def errors(pixels: FloatArray, drawn: FloatArray, mask: FloatArray) -> dict[str, float]:
    """Return the logarithms of a view's reconstruction errors by name, absolute and relative to
    local contrast, for view and reconstruction (128, 128) and the body mask of the same shape.
    """
    squared = (pixels - drawn) ** 2
    around = (LOCAL_PX, LOCAL_PX)
    variance = np.maximum(cv2.blur(pixels**2, around) - cv2.blur(pixels, around) ** 2, 0)
    normalized = cv2.blur(squared, around) / (variance + LEAST_VARIANCE)
    body = mask > 0.5
    inside = normalized[body] if body.any() else normalized.ravel()
    return {
        "error": float(np.log(squared.mean() + 1e-5)),
        "error_normalised": float(np.log(inside.mean() + 1e-3)),
        "error_normalised_high": float(np.log(np.percentile(inside, 90) + 1e-3)),
        "error_outside": float(np.log(squared[~body].mean() + 1e-5))
        if not body.all()
        else float(np.log(1e-5)),
    }
