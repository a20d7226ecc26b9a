"""The intracranial space, and the tilt of the head."""

from __future__ import annotations

import cv2
import numpy as np

from ml.preprocessing.head import find_head
from ml.preprocessing.scaling import disc, restored, shrunk
from ml.preprocessing.segmentation import white_of
from ml.scans.slices import BoolArray, FloatArray

# relative to the head's white level; a higher value misses thin skulls, a lower one removes
# adjacent blood (with this value, a fifth of a bright crescent)
BONE_SHARE = 0.93


STRIP_PX = 256  # images are resized to this longer side


GAP_PX, RIM_PX = 7, 3  # gaps in the skull up to this width are closed as thin bone


LEAST_BRAIN = 0.25  # minimum area, relative to the head


# maximum share of the head's rim that belongs to the inside; above, the skull counts as open
MOST_RIM = 0.1


TILT_PX = 96


MOST_TILT_DEG = 20


SHIFTS_PX = range(-3, 4)  # since the midline need not pass through the centroid


def inside_of_skull(gray: FloatArray) -> BoolArray | None:
    """Return `intracranial_space` of an image in the brain window, float32 (height, width) in 0..1;
    None also if there is no head.
    """
    head = find_head(gray)
    return None if head is None else intracranial_space(gray, head)


def intracranial_space(gray: FloatArray, head: BoolArray) -> BoolArray | None:
    """Return the mask of the intracranial space, bool (height, width); None if there is no closed
    skull.

    Bone is white in the brain window, with gaps of a few pixels closed. The inside is the largest
    part of the head without bone; its convex hull includes white hemorrhage inside the brain.
    Hemorrhage as white as bone along the inner table is indistinguishable from bone in this window
    and is removed. This is not brain segmentation: meninges and CSF spaces are included. It returns
    None if the skull is wide open (craniotomy, orbits, a figure without bone) or the image shows no
    bone.
    """
    small = shrunk(gray, STRIP_PX)
    inside_head = (shrunk(head.astype(np.float32), STRIP_PX) >= 0.5).astype(np.uint8)
    # noise can make single pixels of blood as bright as bone
    smooth = cv2.GaussianBlur(small, (5, 5), 0)
    bone = ((smooth >= BONE_SHARE * white_of(small, inside_head > 0)) & (inside_head > 0)).astype(
        np.uint8
    )
    closed = np.asarray(
        cv2.morphologyEx(np.pad(bone, GAP_PX), cv2.MORPH_CLOSE, disc(GAP_PX)), np.uint8
    )[GAP_PX:-GAP_PX, GAP_PX:-GAP_PX]
    free = cv2.morphologyEx(inside_head & (1 - closed), cv2.MORPH_OPEN, disc(5))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(free, connectivity=4)
    if count < 2:
        return None
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    space = (labels == largest).astype(np.uint8)
    # Erosion does not affect the image's edge: a head that is cut off there has no rim on that
    # side.
    rim = (inside_head > 0) & (cv2.erode(inside_head, disc(2 * RIM_PX + 1)) == 0)
    leaks = rim.any() and (space[rim] > 0).mean() > MOST_RIM
    if leaks or space.sum() < LEAST_BRAIN * inside_head.sum():
        return None
    outlines, _ = cv2.findContours(space, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = np.zeros_like(space)
    cv2.fillConvexPoly(hull, cv2.convexHull(np.concatenate(outlines)), 1)
    return restored(hull, gray.shape) & head


def tilt_deg(gray: FloatArray, head: BoolArray) -> float:
    """Return the clockwise rotation of the head in degrees, within ±20; 0 if the midline is
    unclear.

    It minimizes the difference between the head and its mirror image over integer degrees and a few
    positions of the midline, refined by a parabola through the best three. An optimum at the limit
    is not a minimum and is rejected.
    """
    rows, columns = np.nonzero(head)
    if not len(rows):
        return 0.0
    center = float(columns.mean()), float(rows.mean())
    reach = 1.05 * float(np.hypot(columns - center[0], rows - center[1]).max()) + 1
    scale = TILT_PX / (2 * reach)
    # the outline has the same weight as the inside
    body = np.where(head, 0.5 + 0.5 * gray, 0).astype(np.float32)
    turns = np.arange(-MOST_TILT_DEG - 1, MOST_TILT_DEG + 2)
    costs = np.empty(len(turns))
    if scale < 1:
        sampled_px = round(1 / scale)
        # subsampling without smoothing would add noise to the costs
        body = np.asarray(cv2.blur(body, (sampled_px, sampled_px)), np.float32)
    for at, turn in enumerate(turns):
        matrix = np.asarray(cv2.getRotationMatrix2D(center, float(turn), scale), np.float64)
        matrix[:, 2] += (TILT_PX - 1) / 2 - np.array(center)
        turned = cv2.warpAffine(body, matrix, (TILT_PX, TILT_PX), flags=cv2.INTER_LINEAR)
        mirrored = turned[:, ::-1]
        costs[at] = min(
            float(np.abs(turned - np.roll(mirrored, shift, axis=1)).mean()) for shift in SHIFTS_PX
        )
    best = int(np.argmin(costs))
    if not 1 <= best <= len(turns) - 2:
        return 0.0
    before, least, after = costs[best - 1 : best + 2]
    bend = before - 2 * least + after
    fraction = 0.0 if bend <= 0 else 0.5 * (before - after) / bend
    return float(np.clip(turns[best] + fraction, -MOST_TILT_DEG, MOST_TILT_DEG))
