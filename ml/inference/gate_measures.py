"""Measures that distinguish head CT from other images: shape, rim, inside, symmetry,
surroundings.

A head in CT is a single oval body with a closed shell of bone, bright in every window, around a
gray inside with low contrast. numpy and OpenCV only; an image takes a few milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ml.preprocessing.head import find_head
from ml.preprocessing.scaling import shrunk
from ml.scans.slices import FloatArray, Slice, gray_of

WORK_PX, SHORTEST_PX = 256, 8  # longer and shorter side of the reduced image that is measured
# the head in polar coordinates: rays from its center, steps from its outline (0) inward
ANGLES, DEPTHS = 72, 32
# in steps of DEPTHS: the skull lies within RIM; the inside of the head begins at CORE
RIM, CORE = 13, 18
# relative to white: rows and columns at the image's edge with a smaller range of gray are margin
PLAIN_EDGE = 0.03
HARMONICS = 4


@dataclass(frozen=True)
class PreparedImage:
    """An image prepared for measuring.

    Attributes:
        gray: float32 (height, width) in 0..1 without plain margins, longer side at most 256.
        head: mask of the largest body, bool of the same shape; None if there is none.
    """

    gray: FloatArray
    head: NDArray[np.bool_] | None


def prepare_image(slice_: Slice) -> PreparedImage:
    """Return an image prepared for measuring; HU are shown in the brain window."""
    gray = shrunk(gray_of(slice_), WORK_PX, SHORTEST_PX)
    gray = np.ascontiguousarray(_without_margins(gray), np.float32)
    return PreparedImage(gray, find_head(gray))


def measure(image: PreparedImage) -> dict[str, float]:
    """Return the measures by name; empty if the image shows no body."""
    if image.head is None or image.head.sum() < 64:
        return {}
    gray, head = image.gray, image.head
    outlines, _ = cv2.findContours(head.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = np.asarray(max(outlines, key=cv2.contourArea), np.int32)
    if len(outline) < 16:
        return {}
    unrolled, radii = _unrolled(gray, head)
    measures = _shape(head, outline, radii)
    measures |= _rim(unrolled)
    measures |= _inside(gray, head, unrolled)
    measures |= _surroundings(gray, head)
    return {name: float(value) for name, value in measures.items()}


def _without_margins(gray: FloatArray) -> FloatArray:
    """Crop uniform rows and columns at the edges, as in pages and figures."""
    rows = np.flatnonzero(np.ptp(gray, axis=1) > PLAIN_EDGE)
    columns = np.flatnonzero(np.ptp(gray, axis=0) > PLAIN_EDGE)
    if len(rows) < 8 or len(columns) < 8:
        return gray
    # A small margin remains, so that the outline of a head that fills the rest is visible.
    top, bottom = max(rows[0] - 2, 0), rows[-1] + 3
    left, right = max(columns[0] - 2, 0), columns[-1] + 3
    return gray[top:bottom, left:right]


def _unrolled(gray: FloatArray, head: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """Return the head in polar coordinates, float32 (ANGLES, DEPTHS), and the radius of its outline
    in each direction, px.
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
    return np.asarray(cv2.remap(gray, map_x, map_y, cv2.INTER_LINEAR)), radii.astype(np.float32)


def _shape(
    head: NDArray[np.bool_], outline: NDArray[np.int32], radii: FloatArray
) -> dict[str, float]:
    """Return size, elongation, solidity, roundness, and the share of the outline on the image's
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
    """Return how closed, bright and uniform the shell below the outline is, relative to the
    inside.
    """
    core = unrolled[:, CORE:]
    inside = float(np.median(core))
    rim = unrolled[:, :RIM]
    peak = rim.max(axis=1)
    at = rim.argmax(axis=1)
    measures = {
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
        measures[f"depth{number}_median"] = np.median(band)
        measures[f"depth{number}_spread"] = np.percentile(band, 85) - np.percentile(band, 15)
    # Symmetry about the best axis through the center; heads are symmetric, also when rotated.
    rows = unrolled[:, : DEPTHS * 3 // 4] - unrolled[:, : DEPTHS * 3 // 4].mean(axis=0)
    turned = np.fft.rfft(rows, axis=0)
    matches = np.fft.irfft((turned * turned).sum(axis=1), n=ANGLES)
    measures["symmetry"] = matches.max() / max(float((rows**2).sum()), 1e-6)
    return measures


def _inside(gray: FloatArray, head: NDArray[np.bool_], unrolled: FloatArray) -> dict[str, float]:
    """Return gray levels, texture, edges and flatness inside the shell."""
    core = unrolled[:, CORE:]
    eroded = _core(head)
    values = gray[eroded]
    if len(values) < 32:
        values = gray[head]
        eroded = head
    smooth = cv2.GaussianBlur(gray, (0, 0), 1.5)
    gradient = (
        np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)) / 8
    )
    grain = np.abs(gray - cv2.blur(gray, (3, 3)))
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


def _surroundings(gray: FloatArray, head: NDArray[np.bool_]) -> dict[str, float]:
    """Return the content outside the head (CT shows little), the share of edges and the number of
    gray levels of the image.
    """
    around = ~cv2.dilate(head.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool)
    values = gray[around]
    if len(values) < 32:
        values = np.zeros(32, np.float32)
    background = float(np.median(values))
    bright = ((np.abs(gray - background) > 0.2) & around).astype(np.uint8)
    pieces = cv2.connectedComponents(bright)[0] - 1
    gradient = np.abs(np.diff(gray, axis=0))[:, :-1] + np.abs(np.diff(gray, axis=1))[:-1]
    return {
        "around_share": around.mean(),
        "around_median": background,
        "around_spread": values.std(),
        "around_other": (np.abs(values - background) > 0.1).mean(),
        "around_pieces": np.log1p(pieces),
        "edges": (gradient > 0.25).mean(),
        "greys": len(np.unique((gray * 255).astype(np.uint8))) / 256,
        "black": (gray < 0.03).mean(),
        "white": (gray > 0.97).mean(),
    }


def _core(head: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the inner part of the head, without the outer third of its radius."""
    distance = cv2.distanceTransform(np.pad(head, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    return np.asarray(distance > 0.36 * distance.max())
