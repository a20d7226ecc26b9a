"""Agreement of outlines with annotated ones."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ml.evaluation.answers import Answers
from ml.preprocessing.model_input import InputSpec, to_input
from ml.scans.phantoms import phantom
from ml.scans.slices import Slice
from ml.training.outline_figures import Overlap, outline_figures, overlaps


def answers(predicted: list[bool]) -> Answers:
    """Return answers for slices 0..5 of five patients in two data sets, with these calls."""
    n = len(predicted)
    once = np.zeros((1, n))
    return Answers(
        at=np.arange(n),
        labels=np.array([1, 0, 1, 0, 0, 1]),
        groups=np.array(["a", "a", "b", "c", "d", "b"]),
        sources=np.array(["one"] * 4 + ["two", "one"]),
        probabilities=once,
        predicted=np.array([predicted]),
        zones=once,
        folds=once,
        types=np.zeros((1, n, 5)),
    )


FOUND = [
    Overlap(0, 100, 100, 50),  # Dice .5, IoU 1/3
    Overlap(1, 0, 100, 0),  # nothing there, and something outlined
    Overlap(2, 40, 40, 40),
    Overlap(3, 0, 0, 0),
    Overlap(4, 0, 0, 0),
    Overlap(5, 60, 60, 60),
]


def test_dice_and_intersection_over_union_by_slice_and_by_patient() -> None:
    figures = outline_figures(FOUND, answers([True] * 6), seed=0)
    assert set(figures) == {"one"}  # nobody annotated a hemorrhage in the other
    one = figures["one"]
    assert one.slice_dice.n == 3 and one.slice_dice.value == pytest.approx(2.5 / 3)
    assert one.slice_iou.value == pytest.approx((1 / 3 + 2) / 3)
    # Patient a: 50 places in both, of 100 annotated and 200 outlined ones.
    assert one.patient_dice.n == 2 and one.patient_dice.value == pytest.approx((100 / 300 + 1) / 2)
    assert one.patient_iou.value == pytest.approx((50 / 250 + 1) / 2)
    assert one.without_outline.n == 2 and one.without_outline.value == 0.5


def test_a_slice_that_is_called_negative_has_no_outline() -> None:
    one = outline_figures(FOUND, answers([True, False, True, False, False, False]), seed=0)["one"]
    assert one.without_outline.value == 1
    assert one.slice_dice.value == pytest.approx(1.5 / 3)
    # Patient b: 40 of 100 places in one of two slices.
    assert one.patient_dice.value == pytest.approx((0.5 + 80 / 140) / 2)


def test_without_overlaps_there_are_no_figures() -> None:
    assert outline_figures([], answers([True] * 6), seed=0) == {}


def test_places_outside_of_a_closed_skull_are_in_no_outline() -> None:
    head = Slice(phantom(3, hemorrhage=True, size=256).astype(np.float32), "hu")
    picture, _ = to_input(head, InputSpec())
    blood = np.zeros((112, 112), np.uint8)
    blood[50:60, 50:60] = 1
    given = blood.astype(np.float16)
    given[:, :8] = 1  # Air and scalp.
    images = np.stack([picture, np.zeros_like(picture)])  # There is no skull in the other.
    run = SimpleNamespace(images=images, masks=np.stack([blood, blood]))
    fitted = SimpleNamespace(outlines=np.stack([given, given]))
    inside, without_skull = overlaps(run, fitted, np.arange(2)) or []  # type: ignore[arg-type]
    assert (inside.drawn, inside.predicted, inside.both) == (100, 100, 100)
    assert (without_skull.predicted, without_skull.both) == (100 + 112 * 8, 100)
