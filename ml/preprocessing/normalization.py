"""Normalization of gray levels, an optional preprocessing step; numpy and OpenCV only.

All methods take a gray image, float32 (height, width) in 0..1 in a brain window, and the mask of
the head.
"""

from __future__ import annotations

import cv2
import numpy as np

from ml.preprocessing.segmentation import AIR, soft_tissue
from ml.scans.slices import BoolArray, FloatArray

# where the soft tissue of most heads lies in the brain window
LOW_PERCENT, HIGH_PERCENT, LOW_GRAY, HIGH_GRAY = 10, 90, 0.25, 0.55
# minimum distance of the two percentiles; less is noise, which must not be amplified to full
# contrast
SMALLEST_SPREAD = 0.05
CLAHE_LIMIT, CLAHE_TILES = 2.0, (8, 8)


def normalize(picture: FloatArray, region: BoolArray, how: str) -> FloatArray:
    """Return the image with normalized gray levels, float32 (height, width) in 0..1; black stays
    black.

    - "none": unchanged.
    - "percentile": linear scaling that maps the 10th and 90th percentile of the region's soft
      tissue to 0.25 and 0.55. The percentiles are moderate, since hemorrhage is the brightest soft
      tissue and must neither determine the scale nor be clipped. This removes gains and offsets: a
      tint, another window, a dark photograph.
    - "equalise": histogram equalization over the region.
    - "clahe": contrast-limited adaptive histogram equalization (Zuiderveld 1994, Graphics Gems IV).

    Raises:
        ValueError: the method is unknown.
    """
    if how == "none":
        return picture
    shown = picture > 0
    if how == "percentile":
        soft = picture[soft_tissue(picture, region)]
        if not soft.size:
            return picture
        low, high = np.percentile(soft, [LOW_PERCENT, HIGH_PERCENT])
        slope = (HIGH_GRAY - LOW_GRAY) / max(float(high - low), SMALLEST_SPREAD)
        scaled = np.clip((picture - low) * slope + LOW_GRAY, 0, 1)
        return np.where(picture > AIR, scaled, picture).astype(np.float32)
    levels = np.asarray(np.round(np.clip(picture, 0, 1) * 255), np.uint8)
    if how == "equalise":
        counts = np.bincount(levels[region & shown], minlength=256).astype(np.float64)
        ranks = np.cumsum(counts) / max(counts.sum(), 1)
        return np.where(shown, ranks[levels], 0).astype(np.float32)
    if how == "clahe":
        local = cv2.createCLAHE(CLAHE_LIMIT, CLAHE_TILES).apply(levels)
        return np.where(shown, local.astype(np.float32) / np.float32(255), np.float32(0))
    raise ValueError(
        f"There is no normalization {how!r}; choose none, percentile, equalise or clahe."
    )
