"""Cut film sheets into their slices, and crop screenshots and wide margins to the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ml.errors import ImageError
from ml.scans.panels import brain_window, is_scout
from ml.scans.slices import FloatArray

SEARCH_PX = 1024  # longer side of the reduced image that is searched for skulls
SMALLEST_SKULL_PX = 32
BONE, BLACK = 0.8, 0.06  # relative to white
BONE_SHARE = (0.05, 0.75)  # share of a skull's inside
LEAST_BRAIN = 0.25  # the same, for pixels darker than bone and not black
# area relative to that of the convex hull, and to that of an ellipse
SOLID, ROUND = 0.85, (0.85, 1.15)
MOST_LONG = 2.0

FEWEST_ON_SHEET = 4
MOST_WINDOWS = 6  # of one slice in a picture
SIZE_REACH = 0.35  # maximum deviation from the median size, for skulls of one sheet
SAME_LINE = 0.25  # maximum offset of skulls in one line, relative to a skull's width

# percentile of an image that is taken for its bone in a dim photograph, and its minimum there
BRIGHTEST_PERCENT, DIM_BONE = 99.5, 0.4
DARKEST_TISSUE = 0.25  # relative to white; a darker background is that of a photograph

SMALL_HEAD = 0.34  # share of the canvas; a smaller head is not a single slice
CLUTTER = 0.2  # share of the canvas outside the head that is not black
SECOND_BODY = 0.5  # size of another body on the canvas, relative to the head
CELL_MARGIN = 0.1  # share of a cell's side that may show what separates cells
HEAD_ON_CANVAS = 0.82  # share of a slice's side, as on scanners
# of a head on a larger canvas: with skulls of 64 px, 18 of 41 real slices changed their verdict, of
# 96 px, 6 of 43
SMALLEST_HEAD_PX, SHARP_HEAD_PX = 64, 128

COARSE = (
    "The head in the image has few pixels, so the result is unreliable; please send the slice in"
    " its original size."
)


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def middle(self) -> tuple[float, float]:
        """Its (x, y)."""
        return self.left + self.width / 2, self.top + self.height / 2


def slices_on(
    gray: FloatArray, *, crops: bool, cuts: bool = True
) -> tuple[list[FloatArray], list[str]]:
    """Return the slices in an image (height, width) in 0..1, row by row, and notes about what was
    cut.

    Args:
        gray: the image, with black air.
        crops: whether to crop a wide margin, or the window of a program, from a single slice.
        cuts: whether to cut a sheet into its slices; otherwise it is read as one slice.

    Raises:
        ImageError: the head has too few pixels, or is shown in several windows of which none is
            known to be the brain window.
    """
    skulls = skulls_in(gray)
    if not skulls and DIM_BONE < (bone := float(np.percentile(gray, BRIGHTEST_PERCENT))) < BONE:
        skulls = skulls_in(np.minimum(gray / np.float32(bone), 1))
    alike = _of_one_size(skulls)
    if crops and (one := _of_brain_window(alike, gray)) is not None:
        return [_cut(gray, one.middle, max(one.width, one.height) / HEAD_ON_CANVAS)], [
            "The image shows one slice in several windows; only the brain window was read."
        ]
    if len(alike) >= FEWEST_ON_SHEET:
        cells, scouts = _cells(alike, gray)
        if not cuts:
            return [gray], [
                f"The image is a sheet of {len(cells)} slices; it was read as a single slice, as"
                " requested. The models were not trained on such images."
            ]
        return cells, [
            f"The image is a sheet of {len(cells)} slices; it was cut into slices, row by row"
            " from the upper left.",
            *(["A cell of the sheet was left out: it is a scout view (localizer)."] * scouts)[:1],
        ]
    if len(alike) > 1:
        return [gray], [
            f"The image shows several heads ({len(alike)}); please send each slice as a"
            " separate image."
        ]
    return _cropped(skulls, gray) if crops else ([gray], [])


def _cropped(skulls: Sequence[Box], gray: FloatArray) -> tuple[list[FloatArray], list[str]]:
    """Return the only slice in an image, without a wide margin or the window of a program, and
    notes.

    Raises:
        ImageError: the head has too few pixels.
    """
    head = _head_around(skulls[0], gray) if len(skulls) == 1 else None
    small = head or (None if skulls else _only_body(gray))
    if small is not None and max(small.width, small.height) < SMALLEST_HEAD_PX:
        raise ImageError(
            f"The head in the image is only {small.width} x {small.height} pixels; at least"
            f" {SMALLEST_HEAD_PX} are needed."
        )
    if head is None:
        return [gray], []
    return [_cut(gray, head.middle, max(head.width, head.height) / HEAD_ON_CANVAS)], [
        "The slice fills only a small part of the image; the rest was cropped.",
        *([COARSE] if max(head.width, head.height) < SHARP_HEAD_PX else []),
    ]


def skulls_in(gray: FloatArray) -> list[Box]:
    """Return the boxes of closed rings of bone around brain, of any size."""
    scale = min(1.0, SEARCH_PX / max(gray.shape))
    size = max(1, round(gray.shape[1] * scale)), max(1, round(gray.shape[0] * scale))
    small = cv2.resize(np.ascontiguousarray(gray), size, interpolation=cv2.INTER_AREA)
    bone = cv2.morphologyEx(
        (small >= BONE).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)
    )
    outlines, _ = cv2.findContours(bone, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    skulls = []
    for outline in outlines:
        left, top, width, height = cv2.boundingRect(outline)
        if min(width, height) < SMALLEST_SKULL_PX or max(width, height) > MOST_LONG * min(
            width, height
        ):
            continue
        hull = cv2.contourArea(cv2.convexHull(outline))
        is_round = ROUND[0] < hull / (np.pi / 4 * width * height) < ROUND[1]
        if not is_round or cv2.contourArea(outline) <= SOLID * hull:
            continue
        filled = np.zeros((height, width), np.uint8)
        cv2.drawContours(filled, [outline - [left, top]], -1, 1, thickness=cv2.FILLED)
        inside = small[top : top + height, left : left + width][filled > 0]
        bone_share = float((inside >= BONE).mean())
        brain_share = float(((inside > 0.15) & (inside < BONE)).mean())
        if BONE_SHARE[0] < bone_share < BONE_SHARE[1] and brain_share > LEAST_BRAIN:
            skulls.append(Box(*(round(edge / scale) for edge in (left, top, width, height))))
    return skulls


def _of_one_size(skulls: Sequence[Box]) -> list[Box]:
    """Return the skulls of about the median size."""
    if not skulls:
        return []
    usual = float(np.median([max(box.width, box.height) for box in skulls]))
    return [box for box in skulls if abs(max(box.width, box.height) - usual) <= SIZE_REACH * usual]


def _of_brain_window(heads: Sequence[Box], gray: FloatArray) -> Box | None:
    """Return the head in the brain window if all heads are one slice in different windows.

    Raises:
        ImageError: they are, and none is known to be the brain window.
    """
    if not 2 <= len(heads) <= MOST_WINDOWS:
        return None
    found = brain_window(
        [
            gray[head.top : head.top + head.height, head.left : head.left + head.width]
            for head in heads
        ]
    )
    if found == -1:
        raise ImageError(
            "The image shows one slice in several windows; please send only the brain window."
        )
    return None if found is None else heads[found]


def _only_body(gray: FloatArray) -> Box | None:
    """Return the box of all that a small part of a black image shows; else None."""
    shown = gray > BLACK
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    if not rows.size:
        return None
    width, height = int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1
    is_small = max(width, height) < SMALL_HEAD * max(gray.shape)
    return Box(int(columns[0]), int(rows[0]), width, height) if is_small else None


def _cells(skulls: Sequence[Box], gray: FloatArray) -> tuple[list[FloatArray], int]:
    """Return the slices of a sheet, all of one size, on the grid lines that the whole skulls
    define; and the number of scouts among the cells, which are left out.
    """
    usual = float(np.median([box.width for box in skulls]))
    columns = _lines([box.middle[0] for box in skulls], usual, gray.shape[1])
    rows = _lines([box.middle[1] for box in skulls], usual, gray.shape[0])
    tallest = max(max(box.width, box.height) for box in skulls)
    pitch = min(
        float(np.median(np.diff(lines))) if len(lines) > 1 else np.inf for lines in (columns, rows)
    )
    side = min(pitch, tallest / HEAD_ON_CANVAS * 1.2) if np.isfinite(pitch) else tallest * 1.5
    middles = np.array([box.middle for box in skulls])
    cells, scouts = [], 0
    for y in rows:
        for x in columns:
            cell = _cut(gray, (x, y), side)
            shows_skull = bool((np.abs(middles - [x, y]).max(axis=1) < usual / 2).any())
            if not shows_skull and is_scout(cell):
                scouts += 1
            elif not _is_blank(cell):
                cells.append(cell)
    return cells, scouts


def _is_blank(cell: FloatArray) -> bool:
    """Return whether a cell of a sheet shows nothing but its background, of any gray level."""
    margin = round(CELL_MARGIN * len(cell))
    inner = cell[margin : len(cell) - margin, margin : len(cell) - margin]
    return bool((np.abs(inner - np.median(inner)) > BLACK).mean() <= BONE_SHARE[0])


def _lines(middles: Sequence[float], width: float, length: int) -> list[float]:
    """Return the positions of the grid lines along a side of this length, including lines without a
    whole skull.
    """
    members: list[list[float]] = []
    for middle in sorted(middles):
        if members and middle - members[-1][-1] <= SAME_LINE * width:
            members[-1].append(middle)
        else:
            members.append([middle])
    lines = [float(np.mean(line)) for line in members]
    if len(lines) < 2:
        return lines
    step = float(np.median(np.diff(lines)))
    while lines[0] - step > step / 3:
        lines.insert(0, lines[0] - step)
    while lines[-1] + step < length - step / 3:
        lines.append(lines[-1] + step)
    return lines


def _head_around(skull: Box, gray: FloatArray) -> Box | None:
    """Return the box of the head around a skull, if it is a small part of the image or the rest
    shows other content; else None.
    """
    # scalp and skull are separated by black fat
    reach = max(3, round(0.1 * max(skull.width, skull.height))) | 1
    top, left = max(skull.top - reach, 0), max(skull.left - reach, 0)
    bottom = min(skull.top + skull.height + reach, gray.shape[0])
    right = min(skull.left + skull.width + reach, gray.shape[1])
    rim = np.concatenate(
        [gray[top, left:right], gray[bottom - 1, left:right], gray[top:bottom, left],
         gray[top:bottom, right - 1]]
    )  # fmt: skip
    black = BLACK + min(float(np.median(rim)), DARKEST_TISSUE)
    if (rim > black).mean() > 0.5:
        return None  # the head continues, as it does below the skull base
    shown = (gray > black).astype(np.uint8)
    inner = shown[top:bottom, left:right]
    rows, columns = np.flatnonzero(inner.any(axis=1)), np.flatnonzero(inner.any(axis=0))
    head = Box(
        left + int(columns[0]),
        top + int(rows[0]),
        int(columns[-1] - columns[0]) + 1,
        int(rows[-1] - rows[0]) + 1,
    )
    elsewhere = (int(shown.sum()) - int(inner.sum())) / shown.size
    is_small = max(head.width, head.height) < SMALL_HEAD * max(gray.shape)
    return head if is_small or elsewhere > CLUTTER or _has_second_body(shown, head) else None


def _has_second_body(shown: NDArray[np.uint8], head: Box) -> bool:
    """Return whether a mask of what an image shows has a body of the size of the head beside it,
    such as the same slice in a bone window.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats(shown)
    inside = np.unique(
        labels[head.top : head.top + head.height, head.left : head.left + head.width]
    )
    others = np.delete(stats[:, cv2.CC_STAT_AREA], np.union1d(inside, 0))
    return bool((others > SECOND_BODY * head.width * head.height).any())


def _cut(gray: FloatArray, middle: tuple[float, float], side: float) -> FloatArray:
    """Return the square with this side around a center (x, y), black beyond the image."""
    length = max(1, round(side))
    left, top = round(middle[0] - side / 2), round(middle[1] - side / 2)
    square = np.zeros((length, length), np.float32)
    rows = np.s_[max(top, 0) : max(min(top + length, gray.shape[0]), 0)]
    columns = np.s_[max(left, 0) : max(min(left + length, gray.shape[1]), 0)]
    part = gray[rows, columns]
    down, across = max(-top, 0), max(-left, 0)
    square[down : down + part.shape[0], across : across + part.shape[1]] = part
    return square
