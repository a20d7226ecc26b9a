"""Agreement of outlines with annotated ones."""

from __future__ import annotations

import numpy as np

from ml.training.outline_figures import Overlap, outline_figures

GROUPS = np.array(["a", "a", "b", "c", "d"])
SOURCES = np.array(["one", "one", "one", "one", "two"])


def test_dice_and_intersection_over_union_by_slice_and_by_patient() -> None:
    found = [
        Overlap(0, 100, 100, 50),  # Dice .5, IoU 1/3
        Overlap(1, 0, 100, 0),  # nothing there, and something outlined
        Overlap(2, 40, 40, 40),
        Overlap(3, 0, 0, 0),
        Overlap(4, 0, 0, 0),
    ]
    figures = outline_figures(found, GROUPS, SOURCES, seed=0)
    assert set(figures) == {"one"}  # nobody annotated a hemorrhage in the other
    one = figures["one"]
    assert one.slice_dice.value == 0.75 and one.slice_dice.n == 2
    assert one.slice_iou.value is not None and abs(one.slice_iou.value - (1 / 3 + 1) / 2) < 1e-12
    # Patient a: 50 of 100 annotated and 200 outlined places.
    assert one.patient_dice.value is not None
    assert abs(one.patient_dice.value - (100 / 300 + 1) / 2) < 1e-12
    assert one.patient_iou.value is not None
    assert abs(one.patient_iou.value - (50 / 250 + 1) / 2) < 1e-12
    assert one.without_outline.value == 0.5 and one.without_outline.n == 2


def test_without_overlaps_there_are_no_figures() -> None:
    assert outline_figures([], GROUPS, SOURCES, seed=0) == {}
