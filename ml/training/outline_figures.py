"""The agreement of the outlines of held-out slices with the annotations.

Both are compared at the resolution of the masks in the model's input
(`ml.models.contract.RunData`). An outline consists of the positions inside a closed skull whose
probability is at least one half, without specks; nothing is fitted. As in serving
(`ml.inference.outlines`), a slice that is called negative has no outline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ml.artifacts.card import OutlineFigures
from ml.evaluation.answers import Answers
from ml.evaluation.metrics import share_with_interval
from ml.figures import Estimate
from ml.inference.outlines import without_specks
from ml.models.contract import Fitted
from ml.preprocessing.skull import inside_of_skull
from ml.training.experiment import Experiment
from ml.training.inputs import BLOOD, NOT_DRAWN

INSIDE = 0.5


@dataclass(frozen=True)
class Overlap:
    """The outline of one slice compared with the annotation, in numbers of mask pixels.

    Attributes:
        at: position of the slice.
        drawn, predicted: pixels inside the annotation and inside the model's outline.
        both: pixels inside both.
    """

    at: int
    drawn: int
    predicted: int
    both: int


def overlaps(experiment: Experiment, fitted: Fitted, held_out: np.ndarray) -> list[Overlap] | None:
    """Return the overlaps of held-out slices (positions), excluding those without annotation; None
    if the architecture gives no outlines.
    """
    if fitted.outlines is None:
        return None
    measured = []
    for at in held_out:
        mask = np.asarray(experiment.masks[at])
        if (mask == NOT_DRAWN).any():
            continue
        predicted = fitted.outlines[at] >= INSIDE
        if predicted.any():
            predicted &= _places_inside(np.asarray(experiment.images[at, ..., 0]), predicted.shape)
            predicted = without_specks(predicted)
        drawn = mask == BLOOD
        counts = (int(places.sum()) for places in (drawn, predicted, drawn & predicted))
        measured.append(Overlap(int(at), *counts))
    return measured


def _places_inside(gray: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return which positions, bool of that shape (m, m), lie inside a closed skull of an input
    (size, size); all of them if there is none.
    """
    space = inside_of_skull(gray)
    if space is None:
        return np.ones(shape, bool)
    share = cv2.resize(space.astype(np.float32), shape[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(share >= INSIDE)


def outline_figures(
    measured: Sequence[Overlap], slices: Answers, seed: int
) -> dict[str, OutlineFigures]:
    """Return the agreement for each data set that has annotations, by name.

    Args:
        measured: the overlaps of held-out slices.
        slices: the answers for them; those of the first repeat determine which slices have an
            outline.
        seed: of the bootstrap over groups.
    """
    place = {int(at): number for number, at in enumerate(slices.at)}
    shown = [
        overlap if slices.predicted[0, place[overlap.at]] else replace(overlap, predicted=0, both=0)
        for overlap in measured
    ]
    sources = np.array([slices.sources[place[overlap.at]] for overlap in measured], str)
    groups = np.array([slices.groups[place[overlap.at]] for overlap in measured], str)
    drawn, predicted, both = (
        np.array([getattr(overlap, name) for overlap in shown], float)
        for name in ("drawn", "predicted", "both")
    )
    figures = {}
    for source in np.unique(sources[drawn > 0]):
        chosen = sources == source
        figures[str(source)] = _of_one(
            drawn[chosen], predicted[chosen], both[chosen], groups[chosen], seed
        )
    return figures


def _of_one(
    drawn: np.ndarray, predicted: np.ndarray, both: np.ndarray, groups: np.ndarray, seed: int
) -> OutlineFigures:
    bloody = drawn > 0
    patients, inverse = np.unique(groups, return_inverse=True)
    of_patient = [np.bincount(inverse, values) for values in (drawn, predicted, both)]
    bleeding = of_patient[0] > 0

    def mean(values: np.ndarray, of: np.ndarray) -> Estimate:
        return share_with_interval(values, of, seed)

    by_slice = [values[bloody] for values in (drawn, predicted, both)]
    by_patient = [values[bleeding] for values in of_patient]
    return OutlineFigures(
        slice_dice=mean(_dice(*by_slice), groups[bloody]),
        slice_iou=mean(_iou(*by_slice), groups[bloody]),
        patient_dice=mean(_dice(*by_patient), patients[bleeding]),
        patient_iou=mean(_iou(*by_patient), patients[bleeding]),
        without_outline=mean((predicted[~bloody] == 0).astype(float), groups[~bloody]),
    )


def _dice(drawn: np.ndarray, predicted: np.ndarray, both: np.ndarray) -> np.ndarray:
    return np.asarray(2 * both / (drawn + predicted))


def _iou(drawn: np.ndarray, predicted: np.ndarray, both: np.ndarray) -> np.ndarray:
    return np.asarray(both / (drawn + predicted - both))
