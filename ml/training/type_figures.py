"""Performance on types of hemorrhage, from held-out predictions on slices and scans whose types are
known.

A type that fewer than ten patients have gets no AUROC, which would depend on those patients more
than on the type. Instead, each patient's probability and rank are reported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ml.artifacts.card import TypeFigures, TypeMetrics, TypeScore
from ml.catalogue import BLEEDING_TYPES
from ml.datasets.examples import UNKNOWN, Example
from ml.datasets.type_labels import KnownTypes
from ml.evaluation.answers import Answers, write_answers
from ml.evaluation.metrics import metrics_with_intervals
from ml.figures import Metrics
from ml.training.cross_validation import OutOfFold
from ml.training.experiment import Experiment
from ml.validation.answer_rows import whose_answer

FEW_PATIENTS = 10
CHANCE = 0.5
COLUMNS = (
    *("level", "dataset", "filename", "patient", "slice", "group", "image"),
    *("repeat", "fold"),
    *(column for name in BLEEDING_TYPES for column in (name, f"{name}_probability")),
)


def figures_of_types(
    experiment: Experiment, out_of_fold: OutOfFold, predicted: Collection[str]
) -> dict[str, TypeFigures]:
    """Return the card's figures for each type; empty if the data have no types.

    Args:
        out_of_fold: its out-of-fold predictions.
        out_of_fold: its answers.
        predicted: the types that the final model predicts.
    """
    if experiment.types is None:
        return {}
    slices, scans = (
        (answers, _truth(experiment.types, name)[answers.at])
        for name, answers in _levels(out_of_fold)
    )
    return {
        name: _of_type(
            name in predicted, _OfType(*slices, number), _OfType(*scans, number), experiment.seed
        )
        for number, name in enumerate(BLEEDING_TYPES)
    }


def distinguished_types(experiment: Experiment, out_of_fold: OutOfFold) -> tuple[str, ...]:
    """Return the types that held-out predictions distinguish among patients with hemorrhage: the
    lower end of the AUROC's interval is above .5.
    """
    figures = figures_of_types(experiment, out_of_fold, BLEEDING_TYPES)
    return tuple(
        name
        for name, of_type in figures.items()
        if of_type.patient is not None
        and of_type.patient.auroc_among_bleeding is not None
        and (of_type.patient.auroc_among_bleeding.low or 0.0) > CHANCE
    )


def write_types(
    path: Path, examples: Sequence[Example], experiment: Experiment, out_of_fold: OutOfFold
) -> None:
    """Write all held-out predictions of types with the labels as a table, if the data have
    types.
    """
    if experiment.types is not None:
        rows = (
            row
            for name, answers in _levels(out_of_fold)
            for row in _rows(name, answers, examples, experiment, experiment.types)
        )
        write_answers(path, rows, COLUMNS)


@dataclass(frozen=True)
class _OfType:
    """Predictions and labels of types (n, 5) at one level, for the type of that number."""

    answers: Answers
    truth: np.ndarray
    number: int

    @property
    def known(self) -> np.ndarray:
        """Whether it is known if the type is present, bool (n,)."""
        return np.asarray(self.truth[:, self.number] != UNKNOWN)

    @property
    def shown(self) -> np.ndarray:
        """Whether the type is present, bool (n,)."""
        return np.asarray(self.truth[:, self.number] == 1)

    @property
    def probabilities(self) -> np.ndarray:
        """The type's probabilities (repeats, n), NaN where a fold's model does not predict it."""
        return self.answers.types[:, :, self.number]

    @property
    def answered(self) -> np.ndarray:
        """Whether the label is known and every repeat gave a probability, bool (n,)."""
        return np.asarray(np.isfinite(self.probabilities).all(axis=0) & self.known)

    def metrics(self, seed: int) -> TypeMetrics:
        """Return the metrics of the type, with the AUROC among positives: how well it is
        distinguished from the other types.
        """
        of_all = self._metrics(self.answered, seed)
        among = self._metrics(self.answered & (self.truth == 1).any(axis=1), seed)
        return TypeMetrics(of_all.auroc, of_all.ece, among.auroc)

    def _metrics(self, chosen: np.ndarray, seed: int) -> Metrics:
        rows, labels = self.probabilities[:, chosen], self.truth[chosen, self.number]
        return metrics_with_intervals(labels, rows, rows >= 0.5, self.answers.groups[chosen], seed)


def _of_type(is_predicted: bool, slices: _OfType, patients: _OfType, seed: int) -> TypeFigures:
    figures = TypeFigures(
        given=is_predicted,
        slices=int(slices.shown.sum()),
        of_slices=int(slices.known.sum()),
        patients=len(np.unique(patients.answers.groups[patients.shown])),
        of_patients=int(patients.known.sum()),
    )
    if figures.patients >= FEW_PATIENTS:
        return replace(figures, slice=slices.metrics(seed), patient=patients.metrics(seed))
    scores = _scores(patients.probabilities.mean(axis=0), patients.shown, patients.answered)
    return replace(figures, scores=scores)


def _scores(probabilities: np.ndarray, shown: np.ndarray, answered: np.ndarray) -> list[TypeScore]:
    """Return the probability of each patient with a type, and its rank among all patients; the
    highest first.

    Both are None if the training part of the patient's fold had too few patients with the type.
    """
    of = int(answered.sum())
    ranks = [
        TypeScore(float(value), int((probabilities[answered] > value).sum()) + 1, of)
        for value in sorted(probabilities[shown & answered], reverse=True)
    ]
    return ranks + [TypeScore(None, None, of)] * int((shown & ~answered).sum())


def _levels(out_of_fold: OutOfFold) -> tuple[tuple[str, Answers], tuple[str, Answers]]:
    return ("slice", out_of_fold.slices), ("patient", out_of_fold.scans)


def _truth(types: KnownTypes, level: str) -> np.ndarray:
    return types.slices if level == "slice" else types.scans


def _rows(
    level: str,
    answers: Answers,
    examples: Sequence[Example],
    experiment: Experiment,
    types: KnownTypes,
) -> Iterable[dict[str, Any]]:
    truth = _truth(types, level)
    positions = answers.at if level == "slice" else experiment.first_of_scan[answers.at]
    for repeat in range(len(answers.types)):
        for column, (at, position) in enumerate(zip(answers.at, positions, strict=True)):
            row = whose_answer(examples[position], level, answers.groups[column]) | {
                "repeat": repeat,
                "fold": int(answers.folds[repeat, column]),
            }
            for number, name in enumerate(BLEEDING_TYPES):
                known, probability = (
                    int(truth[at, number]),
                    float(answers.types[repeat, column, number]),
                )
                row[name] = "" if known == UNKNOWN else known
                row[f"{name}_probability"] = repr(probability) if np.isfinite(probability) else ""
            yield row
