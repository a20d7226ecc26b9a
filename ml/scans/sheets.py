"""Pictures of more than one slice, or of more than a slice: film sheets are cut into their slices,
and a screenshot or a wide margin down to the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ml.scans.slices import FloatArray

SEARCH_PX = 1024  # the longer side of the picture in which skulls are looked for
SMALLEST_SKULL_PX = 32
BONE, BLACK = 0.8, 0.06  # of white
BONE_SHARE = (0.05, 0.75)  # of a skull's inside
LEAST_BRAIN = 0.25  # the same, darker than bone and not black
SOLID, ROUND = 0.85, (0.85, 1.15)  # area over that of its hull, and over that of an ellipse
MOST_LONG = 2.0

FEWEST_ON_SHEET = 4
SIZE_REACH = 0.35  # of the middle size, for skulls of one sheet
SAME_LINE = 0.25  # of a skull's width, in which they stand in one line

SMALL_HEAD = 0.34  # of the canvas, below which a slice is not shown by itself
CLUTTER = 0.2  # of the canvas that shows something else than the head
HEAD_ON_CANVAS = 0.8  # of a slice's side, as scanners choose it


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
    grey: FloatArray, *, crops: bool, cuts: bool = True
) -> tuple[list[FloatArray], list[str]]:
    """Return the slices that a picture (height, width) in 0..1 shows, row by row, and sentences
    about what was cut.

    Args:
        grey: the picture, air black.
        crops: cut a wide margin, or a program's window, off a single slice.
        cuts: cut a sheet into its slices; False reads it as one.
    """
    skulls = skulls_in(grey)
    alike = _of_one_size(skulls)
    if len(alike) >= FEWEST_ON_SHEET:
        cells = _cells(alike, grey)
        if not cuts:
            return [grey], [
                f"The picture is a sheet of {len(cells)} slices; it was read as a single slice, as"
                " requested. The models have not learned such pictures."
            ]
        return cells, [
            f"The picture is a sheet of {len(cells)} slices; it was cut into slices, row by row"
            " from the upper left."
        ]
    if len(alike) > 1:
        return [grey], [
            f"The picture shows several heads ({len(alike)}); please send each slice as a"
            " separate picture."
        ]
    head = _head_around(skulls[0], grey) if crops and len(skulls) == 1 else None
    if head is None:
        return [grey], []
    return [_cut(grey, head.middle, max(head.width, head.height) / HEAD_ON_CANVAS)], [
        "The slice fills only a small part of the picture; the rest was cropped."
    ]


def skulls_in(grey: FloatArray) -> list[Box]:
    """Return where closed rings of bone with brain inside lie in a picture, of any size."""
    scale = min(1.0, SEARCH_PX / max(grey.shape))
    size = max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale))
    small = cv2.resize(np.ascontiguousarray(grey), size, interpolation=cv2.INTER_AREA)
    bone = cv2.morphologyEx(
        (small >= BONE).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)
    )
    outlines, _ = cv2.findContours(bone, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    found = []
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
            found.append(Box(*(round(edge / scale) for edge in (left, top, width, height))))
    return found


def _of_one_size(skulls: Sequence[Box]) -> list[Box]:
    """Return the skulls whose size is about that of most."""
    if not skulls:
        return []
    usual = float(np.median([max(box.width, box.height) for box in skulls]))
    return [box for box in skulls if abs(max(box.width, box.height) - usual) <= SIZE_REACH * usual]


def _cells(skulls: Sequence[Box], grey: FloatArray) -> list[FloatArray]:
    """Return the slices of a sheet, all of one size: those with a whole skull tell the lines in
    which all stand.
    """
    usual = float(np.median([box.width for box in skulls]))
    columns = _lines([box.middle[0] for box in skulls], usual, grey.shape[1])
    rows = _lines([box.middle[1] for box in skulls], usual, grey.shape[0])
    tallest = max(max(box.width, box.height) for box in skulls)
    pitch = min(
        float(np.median(np.diff(lines))) if len(lines) > 1 else np.inf for lines in (columns, rows)
    )
    side = min(pitch, tallest / HEAD_ON_CANVAS * 1.2) if np.isfinite(pitch) else tallest * 1.5
    cells = [_cut(grey, (x, y), side) for y in rows for x in columns]
    return [cell for cell in cells if (cell > BLACK).mean() > BONE_SHARE[0]]


def _lines(middles: Sequence[float], width: float, length: int) -> list[float]:
    """Return where the lines of a sheet lie along one side of that length, also those on which no
    skull is whole.
    """
    lines: list[list[float]] = []
    for middle in sorted(middles):
        if lines and middle - lines[-1][-1] <= SAME_LINE * width:
            lines[-1].append(middle)
        else:
            lines.append([middle])
    found = [float(np.mean(line)) for line in lines]
    if len(found) < 2:
        return found
    step = float(np.median(np.diff(found)))
    while found[0] - step > step / 3:
        found.insert(0, found[0] - step)
    while found[-1] + step < length - step / 3:
        found.append(found[-1] + step)
    return found


def _head_around(skull: Box, grey: FloatArray) -> Box | None:
    """Return where the head of a skull lies, if it is a small part of the picture or other things
    fill much of that; None otherwise.
    """
    shown = (grey > BLACK).astype(np.uint8)
    # scalp and skull are parted by black fat
    reach = max(3, round(0.1 * max(skull.width, skull.height))) | 1
    top, left = max(skull.top - reach, 0), max(skull.left - reach, 0)
    bottom = min(skull.top + skull.height + reach, grey.shape[0])
    right = min(skull.left + skull.width + reach, grey.shape[1])
    rim = np.concatenate(
        [shown[top, left:right], shown[bottom - 1, left:right], shown[top:bottom, left],
         shown[top:bottom, right - 1]]
    )  # fmt: skip
    if rim.mean() > 0.5:
        return None  # the head goes on, as it does below the skull's base
    inner = shown[top:bottom, left:right]
    rows, columns = np.flatnonzero(inner.any(axis=1)), np.flatnonzero(inner.any(axis=0))
    head = Box(
        left + int(columns[0]),
        top + int(rows[0]),
        int(columns[-1] - columns[0]) + 1,
        int(rows[-1] - rows[0]) + 1,
    )
    elsewhere = (int(shown.sum()) - int(inner.sum())) / shown.size
    is_small = max(head.width, head.height) < SMALL_HEAD * max(grey.shape)
    return head if is_small or elsewhere > CLUTTER else None


def _cut(grey: FloatArray, middle: tuple[float, float], side: float) -> FloatArray:
    """Return the square of that side around a place (x, y), black where the picture ends."""
    length = max(1, round(side))
    left, top = round(middle[0] - side / 2), round(middle[1] - side / 2)
    square = np.zeros((length, length), np.float32)
    rows = np.s_[max(top, 0) : max(min(top + length, grey.shape[0]), 0)]
    columns = np.s_[max(left, 0) : max(min(left + length, grey.shape[1]), 0)]
    part = grey[rows, columns]
    down, across = max(-top, 0), max(-left, 0)
    square[down : down + part.shape[0], across : across + part.shape[1]] = part
    return square
