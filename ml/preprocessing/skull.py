"""What the skull encloses, and how far the head is tilted."""

from __future__ import annotations

import cv2
import numpy as np

from ml.preprocessing.scaling import BoolArray, disc, restored, shrunk
from ml.preprocessing.segmentation import white_of
from ml.scans.slices import FloatArray

# of the head's white; higher loses thin skulls, lower loses blood beside them (a fifth of a bright
# crescent as it is)
BONE_SHARE = 0.93


STRIP_PX = 256  # the skull is looked for in a picture of this longer side


GAP_PX, RIM_PX = 7, 3  # a gap of the skull up to this width is taken for thin bone


LEAST_BRAIN = 0.25  # of the head's area


MOST_RIM = 0.1  # of the head's rim may belong to the inside before the skull counts as open


TILT_PX = 96


MOST_TILT_DEG = 20


SHIFTS_PX = range(-3, 4)  # the midline need not run through the centroid


def intracranial_space(gray: FloatArray, head: BoolArray) -> BoolArray | None:
    """Return what the skull encloses, bool (height, width); None where no closed skull is seen.

    Bone is what is white in the brain window, gaps of a few pixels closed. The inside is the
    largest part of the head that bone does not cover; its convex hull gives back blood as white as
    bone inside the brain. Blood as white as bone along the inner table cannot be told from bone in
    this window and goes with it. It is no segmentation of the brain: meninges and fluid spaces
    belong to it. It fails, and says so by None, where the skull is open wide (craniotomy, orbits, a
    figure without bone) or the picture shows no bone.
    """
    small = shrunk(gray, STRIP_PX)
    inside_head = (shrunk(head.astype(np.float32), STRIP_PX) >= 0.5).astype(np.uint8)
    smooth = cv2.GaussianBlur(small, (5, 5), 0)  # noise lifts a pixel of blood to bone
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
    # Eroding leaves the picture's own edge alone: a head that is cut off there has no rim on that
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
    """Return by how many degrees the head is turned clockwise in the picture, within ±20; 0 where
    no midline is clear.

    It is the turn after which the head differs least from its mirror image, over whole degrees and
    a few positions of the midline; a parabola through the best three gives the fraction. A best
    turn at the limit is no minimum, and is not believed.
    """
    rows, columns = np.nonzero(head)
    if not len(rows):
        return 0.0
    center = float(columns.mean()), float(rows.mean())
    reach = 1.05 * float(np.hypot(columns - center[0], rows - center[1]).max()) + 1
    scale = TILT_PX / (2 * reach)
    # the outline counts as much as what lies inside
    body = np.where(head, 0.5 + 0.5 * gray, 0).astype(np.float32)
    turns = np.arange(-MOST_TILT_DEG - 1, MOST_TILT_DEG + 2)
    costs = np.empty(len(turns))
    if scale < 1:
        sampled_px = round(1 / scale)
        # shrinking by sampling alone would turn noise into costs
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
