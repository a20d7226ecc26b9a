"""Convert a slice into a model's input, with the same code for training and serving.

Images come from many sources (scanners, figures of papers, screenshots), and a model could learn
the differences between sources (table, head holder, panel letters, black or gray margins, scale)
instead of hemorrhage. These are removed: the head is the largest bright body of the image,
everything outside its outline becomes 0, and a square crop around it is the input. Colors are
already removed (`ml.scans.read`); a tint leaves a factor on all gray levels, which `normalisation`
removes. The other steps are optional settings of a model:

    window -> head -> skull_stripping -> upright -> cut and resize -> normalization -> segmentation
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ml.preprocessing.head import find_head
from ml.preprocessing.normalization import normalize
from ml.preprocessing.segmentation import AIR, restructure
from ml.preprocessing.skull import intracranial_space, tilt_deg
from ml.scans.slices import FloatArray, Slice, gray_of

# minimum crop relative to the image's longer side, so that slices near the vertex stay small
SMALLEST_SIDE = 0.4
MARGIN = 0.02  # margin on each side, relative to the head's longer side

# Cards, stored settings of runs and programs use the British spelling of this key and of one value.
CHOICES = {
    "normalisation": ("none", "percentile", "equalise", "clahe"),
    "segmentation": ("none", "otsu", "grabcut", "watershed", "edges"),
}
NOT_STRIPPED = (
    "No closed skull was found in an image, so only the area outside the head was removed."
)


@dataclass(frozen=True)
class InputSpec:
    """A model's preprocessing, stored in its card.

    Attributes:
        size: the input is size x size pixels.
        window_level, window_width: window in HU, for slices in HU.
        crop_to_head: False uses the whole image.
        normalisation: normalization of gray levels; see `ml.preprocessing.normalization.normalize`.
        skull_stripping: True keeps only the intracranial space.
        upright: True rotates the head so that its midline is vertical.
        segmentation: segmentation method; see `ml.preprocessing.segmentation.restructure`.
    """

    size: int = 224
    window_level: float = 40.0
    window_width: float = 80.0
    crop_to_head: bool = True
    normalisation: str = "none"
    skull_stripping: bool = False
    upright: bool = False
    segmentation: str = "none"

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputSpec:
        """Parse a dictionary of `to_dict`; missing keys have their defaults.

        Raises:
            ValueError: a key is unknown (the model is from another version), or a value has the
                wrong type or is out of range.
        """
        unknown = sorted(set(values) - {item.name for item in fields(cls)})
        if unknown:
            raise ValueError(f"The preprocessing {unknown[0]!r} is unknown to this version.")
        spec = cls(**values)
        for item in fields(cls):
            value = getattr(spec, item.name)
            if item.name in CHOICES:
                if value not in CHOICES[item.name]:
                    raise ValueError(
                        f"The preprocessing gives {item.name} as {value!r}; choose one of"
                        f" {', '.join(CHOICES[item.name])}."
                    )
                continue
            is_right = (
                isinstance(value, bool)
                if item.type == "bool"
                else isinstance(value, (int, float)) and not isinstance(value, bool)
            )
            if not is_right:
                raise ValueError(
                    f"The preprocessing gives {item.name} as {value!r}, not as {item.type}."
                )
        if not (isinstance(spec.size, int) and 16 <= spec.size <= 1024 and spec.window_width > 0):
            raise ValueError(
                f"The preprocessing has size {spec.size} and window width {spec.window_width}."
            )
        return spec

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> InputSpec:
        """Return the preprocessing for an architecture's settings (`ml.catalogue.PREPROCESSING`),
        with defaults for missing ones.

        "yes" and "no" become booleans; `input_size` is the size.

        Raises:
            ValueError: a value has the wrong type or is out of range.
        """
        named = {item.name: settings[item.name] for item in fields(cls) if item.name in settings}
        if "input_size" in settings:
            named["size"] = settings["input_size"]
        truths = {"yes": True, "no": False}
        return cls.from_dict(
            {
                name: truths.get(value, value) if isinstance(value, str) else value
                for name, value in named.items()
            }
        )


@dataclass(frozen=True)
class Frame:
    """The square crop of the original slice, in its pixels. It may extend beyond the image.

    `shows_head` is False if no head was found or searched for, and the whole image was used.
    `angle_deg` is the clockwise rotation of the square about its center. `notes` are sentences
    about steps that failed.
    """

    top: int
    left: int
    height: int
    width: int
    shows_head: bool = True
    angle_deg: float = 0.0
    notes: tuple[str, ...] = ()


def to_input(slice_: Slice, spec: InputSpec) -> tuple[FloatArray, Frame]:
    """Return a model's input, float32 (size, size, 1) in 0..1, and its frame in the slice.

    If no head is found, the whole image is used.
    """
    gray = gray_of(slice_, spec.window_level, spec.window_width)
    restructures = (spec.normalisation, spec.segmentation) != ("none", "none")
    head = (
        find_head(gray)
        if spec.crop_to_head or spec.skull_stripping or spec.upright or restructures
        else None
    )
    angle = tilt_deg(gray, head) if spec.upright and head is not None else 0.0
    notes: tuple[str, ...] = ()
    if spec.skull_stripping:
        space = None if head is None else intracranial_space(gray, head)
        if space is None:
            notes = (NOT_STRIPPED,)
        else:
            head = space
            gray = np.where(space, gray, np.float32(0))
    if head is None or not spec.crop_to_head:
        frame = replace(_square((0, 0, *gray.shape), side=max(gray.shape)), shows_head=False)
    else:
        gray = np.where(head, gray, np.float32(0))
        box = _box(head) if angle == 0 else _turned_box(head, angle)
        longer = max(box[2] - box[0], box[3] - box[1])
        side = max(longer + 2 * round(MARGIN * longer), round(SMALLEST_SIDE * max(gray.shape)))
        frame = _square(box, side)
    frame = replace(frame, angle_deg=angle, notes=notes)
    resized = np.clip(_resized(cut(gray, frame), spec.size), 0, 1)
    if restructures:
        region = (
            resized > AIR
            if head is None
            else _resized(cut(head.astype(np.float32), frame), spec.size) >= 0.5
        )
        resized = normalize(resized, region, spec.normalisation)
        resized = restructure(resized, region, spec.segmentation)
    return resized.astype(np.float32)[..., np.newaxis], frame


def cut(picture: FloatArray, frame: Frame) -> FloatArray:
    """Crop a slice, or a mask of it, to the frame, float32 (height, width); 0 where the frame
    extends beyond it.
    """
    if frame.angle_deg:
        size = frame.width, frame.height
        return np.asarray(
            cv2.warpAffine(
                picture.astype(np.float32), turned_to_frame(frame), size, flags=cv2.INTER_LINEAR
            ),
            np.float32,
        )
    square = np.zeros((frame.height, frame.width), np.float32)
    top, left = max(frame.top, 0), max(frame.left, 0)
    bottom, right = (
        min(frame.top + frame.height, picture.shape[0]),
        min(frame.left + frame.width, picture.shape[1]),
    )
    square[top - frame.top : bottom - frame.top, left - frame.left : right - frame.left] = picture[
        top:bottom, left:right
    ]
    return square


def turned_to_frame(frame: Frame) -> NDArray[np.float64]:
    """Return the matrix (2, 3) that maps a pixel (x, y) of the slice into the frame, for
    `cv2.warpAffine`.
    """
    middle = frame.left + (frame.width - 1) / 2, frame.top + (frame.height - 1) / 2
    matrix = np.asarray(cv2.getRotationMatrix2D(middle, frame.angle_deg, 1.0), np.float64)
    matrix[:, 2] -= (frame.left, frame.top)
    return matrix


def _square(box: tuple[int, int, int, int], side: int) -> Frame:
    """Return the square of that side around the center of a box (top, left, bottom, right)."""
    top, left, bottom, right = box
    return Frame((top + bottom - side) // 2, (left + right - side) // 2, side, side)


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the bounding box (top, left, bottom, right) of the mask, the last two exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _turned_box(mask: NDArray[np.bool_], angle_deg: float) -> tuple[int, int, int, int]:
    """Return the bounding box of the mask after rotation, centered at its center in the unrotated
    slice.
    """
    rows, columns = np.nonzero(mask)
    turn = np.asarray(cv2.getRotationMatrix2D((0.0, 0.0), angle_deg, 1.0))[:, :2]
    x, y = turn @ np.stack([columns, rows])
    middle_x, middle_y = turn.T @ np.array([(x.min() + x.max()) / 2, (y.min() + y.max()) / 2])
    width, height = np.ceil(x.max() - x.min()) + 1, np.ceil(y.max() - y.min()) + 1
    top, left = round(middle_y - (height - 1) / 2), round(middle_x - (width - 1) / 2)
    return top, left, top + int(height), left + int(width)


def _resized(square: FloatArray, size: int) -> FloatArray:
    shrinks = len(square) > size
    return np.asarray(
        cv2.resize(
            square, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        ),
        np.float32,
    )
