"""What can be measured on a picture to tell a head CT from anything else: shape, rim, inside,
symmetry, surroundings.

A head in CT is one upright oval body with a closed shell of bone, bright in every window, around a
gray inside with little contrast. numpy and OpenCV only; a picture takes some milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ml.preprocessing.head import find_head
from ml.preprocessing.scaling import shrunk
from ml.scans.slices import FloatArray, Slice, gray_of

WORK_PX, SHORTEST_PX = 256, 8  # sides of a picture that is shrunk to be measured
# the head unrolled: rays from its middle, steps from its outline (0) inwards
ANGLES, DEPTHS = 72, 32
# of DEPTHS: a skull lies in the first; the inside of a head begins at the second
RIM, CORE = 13, 18
# of white: rows and columns at a picture's edge whose grays spread less are margin
PLAIN_EDGE = 0.03
HARMONICS = 4


@dataclass(frozen=True)
class Look:
    """A picture prepared for measuring.

    Attributes:
        grey: float32 (height, width) in 0..1 without plain margins, longer side at most 256.
        head: where the largest body is, bool of the same shape; None where there is none.
    """

    grey: FloatArray
    head: NDArray[np.bool_] | None


def look_at(slice: Slice) -> Look:
    """Return the picture prepared for measuring; HU through the brain window."""
    grey = shrunk(gray_of(slice), WORK_PX, SHORTEST_PX)
    grey = np.ascontiguousarray(_without_margins(grey), np.float32)
    return Look(grey, find_head(grey))


def measure(look: Look) -> dict[str, float]:
    """Return the measurements by name; empty where the picture shows no body at all."""
    if look.head is None or look.head.sum() < 64:
        return {}
    grey, head = look.grey, look.head
    outlines, _ = cv2.findContours(head.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = np.asarray(max(outlines, key=cv2.contourArea), np.int32)
    if len(outline) < 16:
        return {}
    unrolled, radii = _unrolled(grey, head)
    found = _shape(head, outline, radii)
    found |= _rim(unrolled)
    found |= _inside(grey, head, unrolled)
    found |= _surroundings(grey, head)
    return {name: float(value) for name, value in found.items()}


def _without_margins(grey: FloatArray) -> FloatArray:
    """Return the picture without rows and columns of one gray at its edges, as pages and figures
    have them.
    """
    rows = np.flatnonzero(np.ptp(grey, axis=1) > PLAIN_EDGE)
    columns = np.flatnonzero(np.ptp(grey, axis=0) > PLAIN_EDGE)
    if len(rows) < 8 or len(columns) < 8:
        return grey
    # A little of the margin stays, so that a head that fills the rest still has its outline.
    top, bottom = max(rows[0] - 2, 0), rows[-1] + 3
    left, right = max(columns[0] - 2, 0), columns[-1] + 3
    return grey[top:bottom, left:right]


def _unrolled(grey: FloatArray, head: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """Return the head unrolled, float32 (ANGLES, DEPTHS), and the distance of its outline from its
    middle in each direction, px.
    """
    down, across = np.nonzero(head)
    middle_y, middle_x = float(down.mean()), float(across.mean())
    reach = float(np.hypot(*head.shape))
    angles = np.arange(ANGLES, dtype=np.float32) * np.float32(2 * np.pi / ANGLES)
    steps = np.arange(0, reach, 0.75, dtype=np.float32)
    x = np.clip(np.rint(middle_x + np.cos(angles)[:, None] * steps), -1, head.shape[1]).astype(int)
    y = np.clip(np.rint(middle_y + np.sin(angles)[:, None] * steps), -1, head.shape[0]).astype(int)
    bordered = np.pad(head, 1)
    on = bordered[y + 1, x + 1]
    radii = np.maximum(steps[len(steps) - 1 - np.argmax(on[:, ::-1], axis=1)], 1.0)
    shares = 1 - (np.arange(DEPTHS, dtype=np.float32) + 0.5) / DEPTHS
    at = radii[:, None] * shares
    map_x = (middle_x + np.cos(angles)[:, None] * at).astype(np.float32)
    map_y = (middle_y + np.sin(angles)[:, None] * at).astype(np.float32)
    return np.asarray(cv2.remap(grey, map_x, map_y, cv2.INTER_LINEAR)), radii.astype(np.float32)


def _shape(
    head: NDArray[np.bool_], outline: NDArray[np.int32], radii: FloatArray
) -> dict[str, float]:
    """Size, oblongness, solidity, roundness, and how much of the outline lies on the picture's
    edge.
    """
    area = float(head.sum())
    hull = max(float(cv2.contourArea(cv2.convexHull(outline))), 1.0)
    (_, (minor, major), _) = cv2.fitEllipse(outline)
    points = outline[:, 0]
    height, width = head.shape
    on_edge = (
        (points[:, 0] <= 1)
        | (points[:, 1] <= 1)
        | (points[:, 0] >= width - 2)
        | (points[:, 1] >= height - 2)
    )
    waves = np.abs(np.fft.rfft(radii / radii.mean())) / len(radii)
    top, bottom = points[:, 1].min(), points[:, 1].max()
    left, right = points[:, 0].min(), points[:, 0].max()
    return {
        "area_share": area / head.size,
        "oblong": min(minor, major) / max(minor, major, 1.0),
        "wide": (right - left + 1) / (bottom - top + 1),
        "solidity": min(area / hull, 1.1),
        "box_filled": area / ((right - left + 1) * (bottom - top + 1)),
        "ellipse_filled": area / max(np.pi * minor * major / 4, 1.0),
        "on_edge": on_edge.mean(),
        "radius_low_waves": np.sqrt((waves[3 : HARMONICS + 1] ** 2).sum()),
        "radius_high_waves": np.sqrt((waves[HARMONICS + 1 :] ** 2).sum()),
    }


def _rim(unrolled: FloatArray) -> dict[str, float]:
    """How closed, bright and even a shell lies under the outline, against what lies inside it."""
    core = unrolled[:, CORE:]
    inside = float(np.median(core))
    rim = unrolled[:, :RIM]
    peak = rim.max(axis=1)
    at = rim.argmax(axis=1)
    found = {
        "peak_mean": peak.mean(),
        "peak_low": np.percentile(peak, 10),
        "peak_over_inside_low": np.percentile(peak, 15) - inside,
        "peak_over_inside": np.median(peak) - inside,
        "peak_over_core_white": np.median(peak) - np.percentile(core, 97),
        "closed": (peak > inside + 0.5 * (np.percentile(peak, 75) - inside)).mean()
        if np.percentile(peak, 75) > inside + 0.1
        else 0.0,
        "peak_depth": np.median(at) / DEPTHS,
        "peak_depth_spread": np.percentile(at, 85) / DEPTHS - np.percentile(at, 15) / DEPTHS,
        "thickness": np.median((rim > (peak[:, None] + inside) / 2).sum(axis=1)) / DEPTHS,
    }
    for number, band in enumerate(np.split(unrolled, 8, axis=1)):
        found[f"depth{number}_median"] = np.median(band)
        found[f"depth{number}_spread"] = np.percentile(band, 85) - np.percentile(band, 15)
    # Mirrored about the best axis through the middle: heads are symmetric, also turned ones.
    rows = unrolled[:, : DEPTHS * 3 // 4] - unrolled[:, : DEPTHS * 3 // 4].mean(axis=0)
    turned = np.fft.rfft(rows, axis=0)
    matches = np.fft.irfft((turned * turned).sum(axis=1), n=ANGLES)
    found["symmetry"] = matches.max() / max(float((rows**2).sum()), 1e-6)
    return found


def _inside(grey: FloatArray, head: NDArray[np.bool_], unrolled: FloatArray) -> dict[str, float]:
    """Grays, grain, edges and flatness within the shell."""
    core = unrolled[:, CORE:]
    eroded = _core(head)
    values = grey[eroded]
    if len(values) < 32:
        values = grey[head]
        eroded = head
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.5)
    gradient = (
        np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)) / 8
    )
    grain = np.abs(grey - cv2.blur(grey, (3, 3)))
    low, middle, high = np.percentile(values, [5, 50, 95])
    return {
        "inside_low": low,
        "inside_middle": middle,
        "inside_high": high,
        "inside_range": high - low,
        "inside_spread": np.percentile(values, 75) - np.percentile(values, 25),
        "inside_black": (values < 0.05).mean(),
        "inside_white": (values > 0.95).mean(),
        "inside_near_middle": (np.abs(values - middle) < 0.12).mean(),
        "inside_grain": np.log(np.median(grain[eroded]) + 1e-4),
        "inside_flat": (grain[eroded] < 5e-4).mean(),
        "inside_edges": (gradient[eroded] > 0.03).mean(),
        "inside_edges_strong": (gradient[eroded] > 0.08).mean(),
        "core_between_rays": core.mean(axis=1).std(),
        "core_white_rays": (core.max(axis=1) > 0.9).mean(),
    }


def _surroundings(grey: FloatArray, head: NDArray[np.bool_]) -> dict[str, float]:
    """What lies beside the head: little, in CT; and how much of the picture is edges and how many
    grays it has.
    """
    around = ~cv2.dilate(head.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool)
    values = grey[around]
    if len(values) < 32:
        values = np.zeros(32, np.float32)
    background = float(np.median(values))
    bright = ((np.abs(grey - background) > 0.2) & around).astype(np.uint8)
    pieces = cv2.connectedComponents(bright)[0] - 1
    gradient = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    return {
        "around_share": around.mean(),
        "around_median": background,
        "around_spread": values.std(),
        "around_other": (np.abs(values - background) > 0.1).mean(),
        "around_pieces": np.log1p(pieces),
        "edges": (gradient > 0.25).mean(),
        "greys": len(np.unique((grey * 255).astype(np.uint8))) / 256,
        "black": (grey < 0.03).mean(),
        "white": (grey > 0.97).mean(),
    }


def _core(head: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the inner part of the head, without the outer third of its half width."""
    distance = cv2.distanceTransform(np.pad(head, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    return np.asarray(distance > 0.36 * distance.max())
