"""Curves of held-out answers for display: sensitivity and specificity by threshold, calibration,
and the worst mistakes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ml.evaluation.answers import HeldOutAnswer, read_answers
from ml.evaluation.metrics import wilson
from ml.figures import CurvePoint, Estimate

CURVE_POINTS = 100
BINS = 10


@dataclass(frozen=True)
class CalibrationBin:
    """The answers in one tenth of the probability range.

    Attributes:
        probability: their mean probability, 0..1.
        observed: the share of them with hemorrhage, with its Wilson interval and their number.
    """

    probability: float
    observed: Estimate


@dataclass(frozen=True)
class LevelCurves:
    """Curves for slices or patients; each repeat of a cross-validation counts as a separate answer.

    Attributes:
        positive, negative: numbers of slices or patients with and without hemorrhage.
        thresholds: sensitivity and specificity at thresholds from 0 to 1, ascending; empty if a
            class is missing.
        calibration: the tenths of the probability range that contain answers.
    """

    positive: int
    negative: int
    thresholds: list[CurvePoint]
    calibration: list[CalibrationBin]


@dataclass(frozen=True)
class Mistake:
    """A slice on the wrong side of the threshold; `label` is the right answer, 0 or 1."""

    filename: str
    patient: str
    label: int
    probability: float


def threshold_curve(labels: np.ndarray, probabilities: np.ndarray) -> list[CurvePoint]:
    """Return sensitivity and specificity at thresholds from 0 to 1 for answers (n,), at most
    `CURVE_POINTS` of them, ascending; empty if a class is missing.
    """
    if len(np.unique(labels)) < 2:
        return []
    # Rounded down, so that a probability reaches its own threshold.
    thresholds = np.unique(np.floor(np.asarray(probabilities) * 10_000) / 10_000)
    if len(thresholds) > CURVE_POINTS - 2:
        chosen = np.linspace(0, len(thresholds) - 1, CURVE_POINTS - 2).astype(int)
        thresholds = thresholds[chosen]
    positive, negative = probabilities[labels == 1], probabilities[labels == 0]
    return [
        CurvePoint(
            float(threshold),
            float((positive >= threshold).mean()),
            float((negative < threshold).mean()),
        )
        for threshold in np.unique([0.0, *thresholds, 1.0])
    ]


def level_curves(labels: np.ndarray, probabilities: np.ndarray) -> LevelCurves:
    """Return the curves of answers; `labels` (n,), `probabilities` (n,) or (repeats, n)."""
    rows = np.atleast_2d(np.asarray(probabilities, np.float64))
    truth, answers = np.tile(np.asarray(labels), len(rows)), rows.ravel()
    bins = np.minimum((answers * BINS).astype(int), BINS - 1)
    return LevelCurves(
        positive=int((np.asarray(labels) == 1).sum()),
        negative=int((np.asarray(labels) == 0).sum()),
        thresholds=threshold_curve(truth, answers),
        calibration=[
            _bin(truth[bins == number], answers[bins == number]) for number in np.unique(bins)
        ],
    )


def _bin(truth: np.ndarray, answers: np.ndarray) -> CalibrationBin:
    low, high = wilson(int(truth.sum()), len(truth))
    return CalibrationBin(
        float(answers.mean()), Estimate(float(truth.mean()), low, high, len(truth))
    )


def curves_of_run(run: Path) -> dict[str, LevelCurves]:
    """Return the curves of a folder that `train` or `evaluate` wrote, by level, excluding unlabeled
    images and those seen in training.

    Raises:
        AnswersError: the folder holds no predictions.
    """
    return {
        level: level_curves(
            np.array([answer.label for answer in answers.values()], int),
            np.array([answer.probabilities for answer in answers.values()]).T,
        )
        for level, answers in read_answers(run).items()
    }


def worst_mistakes(run: Path, most: int) -> list[Mistake]:
    """Return the slices on the wrong side of the threshold in the first repeat of a run: up to
    `most` missed hemorrhages, then as many false alarms, those furthest from their labels first.

    Raises:
        AnswersError: the folder holds no predictions.
    """
    wrong = [
        (key, answer)
        for key, answer in read_answers(run)["slice"].items()
        if answer.predicted[0] != (answer.label == 1)
    ]

    def distance(answer: HeldOutAnswer) -> float:
        return abs(answer.label - answer.probabilities[0])

    wrong.sort(key=lambda mistake: (-distance(mistake[1]), mistake[0]))
    return [
        Mistake(answer.filename, key[1], answer.label, float(answer.probabilities[0]))
        for label in (1, 0)
        for key, answer in [mistake for mistake in wrong if mistake[1].label == label][:most]
    ]
