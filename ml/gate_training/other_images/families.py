"""Pictures that are no head CT, by family: what the check "this does not look like a head CT" is
fitted to and measured on.

Drawn ones (`drawn`), phantoms of other anatomy and other modalities (`anatomy`), and the sample
pictures that come with scikit-learn, scikit-image and pydicom (`samples`). Nothing of them is
stored: the same seed draws the same picture.
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
    """One such picture."""

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
"""Families that resemble each other: where one was fitted to, its kin count as seen."""


def other_images(family: str, n: int, seed: int) -> Iterator[OtherImage]:
    """Yield pictures of a family: `n` where they are made; of samples as many as there are, at most
    `n`.

    Raises:
        KeyError: there is no such family.
    """
    if family in MADE:
        for number in range(n):
            yield OtherImage(family, MADE[family](np.random.default_rng([seed, number])))
        return
    for number, slice_ in enumerate(samples.FAMILIES[family]()):
        if number == n:
            return
        yield OtherImage(family, slice_)
