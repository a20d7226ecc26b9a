"""Images that are not head CT, by family, for training and testing the check "not a head CT".

Drawings (`drawn`), phantoms of other anatomy and modalities (`anatomy`), and the sample images of
scikit-learn, scikit-image and pydicom (`samples`). None is stored: the same seed gives the same
image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ml.gate_training.other_images import anatomy, drawn, samples
from ml.scans.slices import Slice

Maker = Callable[[np.random.Generator], Slice]


@dataclass(frozen=True)
class OtherImage:
    """One such image."""

    family: str
    slice: Slice


MADE: dict[str, Maker] = {**drawn.FAMILIES, **anatomy.FAMILIES}

KINDS: dict[str, tuple[str, ...]] = {
    "plain": ("flat", "gradient", "noise", "clouds"),
    "documents": ("text_page", "chart", "screenshot", "scikit_image_documents"),
    "shapes": ("logo", "discs", "checkerboard", "rings"),
    "trunk_ct": ("chest_ct", "abdomen_ct", "pelvis_ct", "shoulders_ct", "pydicom_other"),
    "limbs_ct": ("knee_ct", "forearm_ct", "foot_ct"),
    "mr": ("brain_mr_t1", "brain_mr_t2", "brain_mr_flair", "body_mr"),
    "projections": ("chest_xray", "hand_xray", "skull_xray", "mammogram"),
    "other_scanners": ("ultrasound", "scintigram", "microscopy", "scikit_image_medical"),
    "photographs": ("scikit_learn_photographs", "scikit_image_photographs"),
    "things": ("scikit_image_objects", "scikit_image_textures", "scikit_image_faces"),
}
"""Kinds of images: families that resemble each other."""


def other_images(family: str, n: int, seed: int) -> Iterator[OtherImage]:
    """Yield `n` images of a synthetic family, or up to `n` samples.

    Raises:
        KeyError: the family does not exist.
    """
    if family in MADE:
        for number in range(n):
            yield OtherImage(family, MADE[family](np.random.default_rng([seed, number])))
        return
    for number, slice_ in enumerate(samples.FAMILIES[family]()):
        if number == n:
            return
        yield OtherImage(family, slice_)
