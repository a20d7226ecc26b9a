"""The segmentation methods that the paper reviews: Otsu's threshold, GrabCut, watershed, Canny
edges. OpenCV only, for serving.

All take a gray image, float32 (height, width) in 0..1, and the region of the head. As a model
setting they modify its input: the selected region stays, everything else is dimmed to half, so that
a segmentation error reduces the contrast of a finding instead of removing it.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from ml.preprocessing.scaling import restored, shrunk
from ml.scans.slices import BoolArray, FloatArray

# relative to white in the brain window: below lies air, above lies bone (and calcium, and metal)
AIR, BONE = 0.02, 0.98
DARKEST_WHITE = (
    0.7  # in a tinted or photographed image bone is darker than white, but not darker than this
)
DIMMED = 0.5
# GrabCut takes a second on a large image, and its borders are smooth anyway
GRABCUT_PX, GRABCUT_ROUNDS = 128, 3
NEIGHBORS = np.ones((3, 3), np.uint8)
CORE_PX = 15  # peaks of the distance transform closer than this belong to one body


def restructure(picture: FloatArray, region: BoolArray, step: str) -> FloatArray:
    """Return the image modified by `step`, float32 (height, width) in 0..1.

    - "none": unchanged.
    - "otsu": the denser of the two classes of soft tissue, and bone, stay; the rest is dimmed.
    - "grabcut": what looks like the inside of the head stays; bone and air are dimmed.
    - "watershed": dense bodies that are not mostly bone stay, even if they touch bone; the rest is
      dimmed.
    - "edges": the image is dimmed and Canny's edges are drawn in white.

    Raises:
        ValueError: the step is unknown.
    """
    if step == "none":
        return picture
    if step not in SELECTIONS:
        raise ValueError(
            f"There is no segmentation {step!r}; choose none or one of {', '.join(SELECTIONS)}."
        )
    selected = SELECTIONS[step](picture, region)
    if step == "edges":
        return np.where(selected, np.float32(1), picture * np.float32(DIMMED))
    return np.where(selected, picture, picture * np.float32(DIMMED))


def soft_tissue(picture: FloatArray, region: BoolArray) -> BoolArray:
    """Return the region's pixels between air and bone that are not adjacent to either, bool
    (height, width).

    Pixels adjacent to air or bone suffer from partial volume, and would outnumber a small
    hemorrhage. They are included if nothing else is left (in tiny images).
    """
    soft = region & (picture > AIR) & (picture < BONE * white_of(picture, region))
    pure = cv2.erode(soft.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    return pure if pure.any() else soft


def white_of(picture: FloatArray, region: BoolArray) -> float:
    """Return the white level of a region: its 99th percentile, but at least 0.7; 1 for an empty
    region.
    """
    return max(float(np.percentile(picture[region], 99)), DARKEST_WHITE) if region.any() else 1.0


def otsu_threshold(values: FloatArray) -> float:
    """Return the threshold that splits gray values (n,) in 0..1 into two classes, the upper being
    those above it.

    It maximizes the between-class variance over 256 levels (Otsu 1979, doi
    10.1109/TSMC.1979.4310076); 0 for no values.
    """
    if not values.size:
        return 0.0
    levels = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8).reshape(-1, 1)
    return float(cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0]) / 255


def dense(picture: FloatArray, region: BoolArray) -> BoolArray:
    """Return the pixels above Otsu's threshold of the region's soft tissue, bool (height, width);
    bone is excluded from the computation of the threshold.
    """
    threshold = otsu_threshold(picture[soft_tissue(picture, region)])
    return np.asarray(region & (np.round(picture * 255) > round(threshold * 255)))


def grabcut(picture: FloatArray, region: BoolArray) -> BoolArray:
    """Return GrabCut's mask of the inside of the head, bool (height, width), computed at no more
    than 128 pixels per side.

    It starts from "probable foreground" for the region's soft tissue and "background" for bone, air
    and everything outside the region, and fits Gaussian mixtures to both (Rother, Kolmogorov and
    Blake 2004, doi 10.1145/1015706.1015720). It is deterministic.
    """
    small = shrunk(picture, GRABCUT_PX)
    inside = shrunk(region.astype(np.float32), GRABCUT_PX) >= 0.5
    soft = inside & (small > AIR) & (small < BONE)
    labels = np.where(soft, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    if soft.any() and not soft.all():
        cv2.setRNGSeed(0)  # its mixtures are initialized by k-means with random centers
        colors = cv2.cvtColor(_bytes(small), cv2.COLOR_GRAY2BGR)
        cv2.grabCut(
            colors,
            labels,
            (0, 0, 0, 0),
            np.zeros((1, 65)),
            np.zeros((1, 65)),
            GRABCUT_ROUNDS,
            cv2.GC_INIT_WITH_MASK,
        )
    chosen = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    return restored(chosen, picture.shape) & region


def watershed(mask: BoolArray) -> NDArray[np.int32]:
    """Label the bodies of a mask, int32 (height, width): 1, 2, …; 0 outside and on the lines
    between touching bodies.

    Flooding by level starts at the maxima of the distance transform; watershed lines are drawn
    where basins meet (Meyer 1994, doi 10.1016/0165-1684(94)90060-4). So two touching discs become
    two bodies. (`cv2.watershed` floods by the difference between neighbors and not by level: on a
    smooth distance transform its line was several pixels away from where two discs touch.)
    """
    padded = np.pad(mask, 1).astype(np.uint8)
    depth = np.asarray(
        cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32
    )
    peaks = (depth > 0) & (depth >= cv2.dilate(depth, np.ones((CORE_PX, CORE_PX), np.uint8)) - 1e-3)
    # Peaks a pixel or two apart belong to one plateau of the distance transform.
    plateaus = np.asarray(cv2.dilate(peaks.astype(np.uint8), NEIGHBORS), np.uint8) & padded
    labels = np.asarray(cv2.connectedComponents(plateaus, connectivity=8)[1], np.float32)
    dry = padded > 0
    for level in range(int(depth.max()), -1, -1):
        reached = dry & (depth > level)
        while True:
            highest = cv2.dilate(labels, NEIGHBORS)
            new = reached & (labels == 0) & (highest > 0)
            if not new.any():
                break
            lowest = -cv2.dilate(
                np.where(labels > 0, -labels, -np.inf).astype(np.float32), NEIGHBORS
            )
            meeting = new & (highest != lowest)
            labels[new & ~meeting] = highest[new & ~meeting]
            dry &= ~meeting
            reached &= ~meeting
    # A small body next to a larger one has no peak of its own within the window.
    _, others = cv2.connectedComponents((dry & (labels == 0)).astype(np.uint8), connectivity=8)
    labels[others > 0] = labels.max() + others[others > 0]
    return np.asarray(labels[1:-1, 1:-1], np.int32)


def dense_bodies(picture: FloatArray, region: BoolArray) -> BoolArray:
    """Return the dense bodies that are not mostly bone, bool (height, width); watershed separates
    hemorrhage from adjacent skull.
    """
    labels = watershed(dense(picture, region))
    count = int(labels.max()) + 1
    area = np.bincount(labels.ravel(), minlength=count)
    bony = np.bincount(labels.ravel(), weights=(picture >= BONE).ravel(), minlength=count)
    keep = bony * 2 <= area
    keep[0] = False
    return np.asarray(keep[labels])


def edges(picture: FloatArray, region: BoolArray) -> BoolArray:
    """Return Canny's edges inside the region (Canny 1986, doi 10.1109/TPAMI.1986.4767851).

    The thresholds are two thirds and four thirds of the median of the soft tissue, so that dark
    images have edges, too.
    """
    soft = picture[soft_tissue(picture, region)]
    middle = 255 * float(np.median(soft)) if soft.size else 127.0
    smooth = cv2.GaussianBlur(_bytes(picture), (5, 5), 0)
    return np.asarray((cv2.Canny(smooth, middle * 2 / 3, middle * 4 / 3) > 0) & region)


SELECTIONS: dict[str, Callable[[FloatArray, BoolArray], BoolArray]] = {
    "otsu": dense,
    "grabcut": grabcut,
    "watershed": dense_bodies,
    "edges": edges,
}
"""The selection function of each step."""


def _bytes(picture: FloatArray) -> NDArray[np.uint8]:
    return np.asarray(np.round(np.clip(picture, 0, 1) * 255), np.uint8)
