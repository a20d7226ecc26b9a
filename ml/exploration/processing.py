"""The effect of each preprocessing step on one slice, computed by the functions that training
uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ml.preprocessing.augmentation import augmented_copies
from ml.preprocessing.model_input import InputSpec, to_input
from ml.scans.slices import BoolArray, FloatArray, Slice, gray_of

COPIES = 10
"""The paper's augmentation: each image and nine altered copies of it."""
NO_UNITS = "This image has no Hounsfield units, so the window changes nothing."
NO_HEAD = "No head was found, so the whole image is used."
ORIGINAL, INPUT = "original", "input"
STEPS: Mapping[str, Mapping[str, object]] = {
    "head crop": {"crop_to_head": True},
    "upright": {"upright": True},
    "skull stripping": {"skull_stripping": True},
    "percentiles": {"normalisation": "percentile"},
    "equalization": {"normalisation": "equalise"},
    "CLAHE": {"normalisation": "clahe"},
    "Otsu": {"segmentation": "otsu"},
    "GrabCut": {"segmentation": "grabcut"},
    "watershed": {"segmentation": "watershed"},
    "edges": {"segmentation": "edges"},
}
"""The steps by name, each with the settings that it changes in the chosen preprocessing."""
AUGMENTED = "augmentation"


@dataclass(frozen=True)
class Shown:
    """The result of a step: one or several images, float32 (height, width) in 0..1, and sentences
    about what failed.
    """

    pictures: tuple[FloatArray, ...]
    notes: tuple[str, ...] = ()


def processing_steps(slice_: Slice, spec: InputSpec, seed: int) -> dict[str, Callable[[], Shown]]:
    """Return the steps by name, in display order; each is computed when called.

    "original" is the slice in the window and "input" the model's input according to `spec`; each of
    `STEPS` is the input with that step, and "augmentation" the input and nine augmented copies of
    it.

    Args:
        slice_: the slice.
        spec: the chosen preprocessing.
        seed: of the augmentation.
    """

    def original() -> Shown:
        notes = () if slice_.unit == "hu" else (NO_UNITS,)
        return Shown((gray_of(slice_, spec.window_level, spec.window_width),), notes)

    def input_by(changed: InputSpec) -> Callable[[], Shown]:
        def model_input() -> Shown:
            pixels, frame = to_input(slice_, changed)
            notes = frame.notes
            if changed.crop_to_head and not frame.shows_head:
                notes = (NO_HEAD, *notes)
            return Shown((pixels[..., 0],), notes)

        return model_input

    def augmented() -> Shown:
        copies = augmented_copies(to_input(slice_, spec)[0], COPIES, seed)
        return Shown(tuple(copies[..., 0]))

    return {
        ORIGINAL: original,
        INPUT: input_by(spec),
        **{
            name: input_by(replace(spec, **changes))  # type: ignore[arg-type]
            for name, changes in STEPS.items()
        },
        AUGMENTED: augmented,
    }


OUTLINE_COLOR = 255, 196, 61


def with_outline(picture: FloatArray, mask: BoolArray) -> NDArray[np.uint8]:
    """Return a gray picture with the outline of a mask of its size drawn on it, uint8 (height,
    width, 3).
    """
    levels = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    drawn = np.ascontiguousarray(np.repeat(levels[..., np.newaxis], 3, axis=2))
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    thickness = max(1, round(max(picture.shape) / 400))
    cv2.drawContours(drawn, outlines, -1, OUTLINE_COLOR, thickness)
    return np.asarray(drawn, np.uint8)
