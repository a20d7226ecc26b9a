"""Turn a slice into a model's input: the same code for training and for serving.

The pictures come from many sources (scanners, figures of papers, screenshots), and what differs between sources (table, head
holder, panel letters, black or grey margins, scale) would be learnt in place of blood. So it is removed by construction: the head
is the largest bright body of the picture, everything outside its outline becomes 0, and its square fills the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ml.images import FloatArray, Slice, window

__all__ = ["Frame", "InputSpec", "find_head", "to_input", "window"]

SEARCH_PX = 256  # the head is looked for in a picture of this longer side, so that sizes below mean the same in every picture
OPENING_PX, CLOSING_PX, RIM_PX = 7, 9, 2
BRIGHTNESS = 0.25  # of the way from the picture's background to its bone
SMALLEST_HEAD = 0.02  # of the picture's area; below, there is no head
SMALLEST_SIDE = 0.4  # of the picture's longer side: the crown of a head stays small instead of filling the input
MARGIN = 0.02  # of the head's longer side, on each side


@dataclass(frozen=True)
class InputSpec:
    """How a model wants its input; travels in the model's card.

    Attributes:
        size: the input is size x size pixels.
        window_level, window_width: HU; used where a slice holds HU.
        crop_to_head: False takes the whole picture.
    """

    size: int = 224
    window_level: float = 40.0
    window_width: float = 80.0
    crop_to_head: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> InputSpec:
        """Return what `to_dict` wrote; a key that is missing has its default.

        Raises:
            ValueError: a key is unknown (the model was made by another version), or a value is of the wrong type or range.
        """
        unknown = sorted(set(given) - {item.name for item in fields(cls)})
        if unknown:
            raise ValueError(f"The preprocessing {unknown[0]!r} is unknown to this version.")
        spec = cls(**given)
        for item in fields(cls):
            value = getattr(spec, item.name)
            is_right = isinstance(value, bool) if item.type == "bool" else isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_right:
                raise ValueError(f"The preprocessing gives {item.name} as {value!r}, not as {item.type}.")
        if not (isinstance(spec.size, int) and 16 <= spec.size <= 1024 and spec.window_width > 0):
            raise ValueError(f"The preprocessing asks for size {spec.size} and window width {spec.window_width}.")
        return spec


@dataclass(frozen=True)
class Frame:
    """The square of the original slice, in its pixels, that became the input. It may reach outside the picture.

    `shows_head` is False where no head was found, or none was looked for, and the whole picture was taken.
    """

    top: int
    left: int
    height: int
    width: int
    shows_head: bool = True


def to_input(slice: Slice, spec: InputSpec) -> tuple[FloatArray, Frame]:
    """Return a model's input, float32 (size, size, 1) in 0..1, and the square of the slice that it shows.

    Where no head is found, the whole picture is taken.
    """
    grey = window(slice.pixels, spec.window_level, spec.window_width) if slice.unit == "hu" else np.clip(slice.pixels, 0, 1)
    head = find_head(grey) if spec.crop_to_head else None
    if head is None:
        frame = replace(_square((0, 0, *grey.shape), side=max(grey.shape)), shows_head=False)
    else:
        grey = np.where(head, grey, np.float32(0))
        rows, columns = np.flatnonzero(head.any(axis=1)), np.flatnonzero(head.any(axis=0))
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        longer = max(bottom - top, right - left)
        side = max(longer + 2 * round(MARGIN * longer), round(SMALLEST_SIDE * max(grey.shape)))
        frame = _square((top, left, bottom, right), side)
    square = _cut(grey, frame)
    shrinks = frame.height > spec.size
    resized = cv2.resize(square, (spec.size, spec.size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.clip(resized, 0, 1).astype(np.float32)[..., np.newaxis], frame


def find_head(grey: FloatArray) -> NDArray[np.bool_] | None:
    """Return where the head is, bool (height, width), holes filled; None where the picture shows none.

    Args:
        grey: float32 (height, width) in 0..1, in a window that shows brain.
    """
    height, width = grey.shape
    scale = min(1.0, SEARCH_PX / max(height, width))
    small_size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(np.ascontiguousarray(grey, np.float32), small_size, interpolation=cv2.INTER_AREA)
    background, bone = np.percentile(small, [2, 99])
    bright = (small > background + BRIGHTNESS * (bone - background)).astype(np.uint8)
    # Opening cuts the thin things that touch a head: its holder, a panel letter, a scale bar.
    bodies = cv2.morphologyEx(_bordered(bright), cv2.MORPH_OPEN, _disc(OPENING_PX))
    outlines, _ = cv2.findContours(cv2.morphologyEx(bodies, cv2.MORPH_CLOSE, _disc(CLOSING_PX)), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not outlines:
        return None
    filled = np.zeros_like(bodies)
    cv2.drawContours(filled, [max(outlines, key=cv2.contourArea)], -1, 1, thickness=cv2.FILLED)
    if filled.sum() < SMALLEST_HEAD * small.size:
        return None
    # The rim gives back what opening took from the scalp, and keeps the outline off the bone.
    rimmed = cv2.dilate(filled, _disc(2 * RIM_PX + 1))[CLOSING_PX:-CLOSING_PX, CLOSING_PX:-CLOSING_PX]
    return cv2.resize(rimmed.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5


def _bordered(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the mask with a black border, so that a head cut off by the picture's edge has an outline there."""
    return np.pad(mask, CLOSING_PX)


def _disc(diameter: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (diameter, diameter)), np.uint8)


def _square(box: tuple[int, int, int, int], side: int) -> Frame:
    """Return the square of that side around the middle of a box (top, left, bottom, right)."""
    top, left, bottom, right = box
    return Frame((top + bottom - side) // 2, (left + right - side) // 2, side, side)


def _cut(grey: FloatArray, frame: Frame) -> FloatArray:
    """Return the part of the picture inside the frame, float32 (height, width); 0 where the frame reaches outside."""
    square = np.zeros((frame.height, frame.width), np.float32)
    top, left = max(frame.top, 0), max(frame.left, 0)
    bottom, right = min(frame.top + frame.height, grey.shape[0]), min(frame.left + frame.width, grey.shape[1])
    square[top - frame.top : bottom - frame.top, left - frame.left : right - frame.left] = grey[top:bottom, left:right]
    return square
