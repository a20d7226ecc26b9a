"""Performance on types of hemorrhage, from held-out predictions on slices and scans whose types are
known.

A type that fewer than ten patients have gets no AUROC, which would depend on those patients more
than on the type. Instead, each patient's probability and rank are given.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ml.catalogue import BLEEDING_TYPES
from ml.datasets.examples import UNKNOWN, Example
from ml.datasets.type_labels import KnownTypes
from ml.evaluation.answers import Answers, write_answers
from ml.evaluation.metrics import metrics_with_intervals
from ml.training.answer_rows import whose_answer
from ml.training.cross_validation import OutOfFold
from ml.training.experiment import Experiment

FEW_PATIENTS = 10
# and the AUROC among positives: how well the type is distinguished from the others
FIGURES = ("auroc", "ece")
COLUMNS = (
    *("level", "dataset", "filename", "patient", "slice", "group", "repeat", "fold"),
    *(column for name in BLEEDING_TYPES for column in (name, f"{name}_probability")),
)


def figures_of_types(
    experiment: Experiment, out_of_fold: OutOfFold, given: Collection[str]
) -> dict[str, dict[str, Any]]:
    """Return the card's entry for each type, see `ml.artifacts.card.Card`; empty if the data have
    no types.

    Args:
        material: what was judged.
        judgement: its answers.
        given: the types that the final model predicts.
    """
    if experiment.types is None:
        return {}
    levels = [
        (name, answers, _truth(experiment.types, name)[answers.at])
        for name, answers in _levels(out_of_fold)
    ]
    return {
        name: {"given": name in given, **_of_type(number, levels, experiment.seed)}
        for number, name in enumerate(BLEEDING_TYPES)
    }


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


def _of_type(
    number: int, levels: Sequence[tuple[str, Answers, np.ndarray]], seed: int
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, answers, truth in levels:
        known = truth[:, number] != UNKNOWN
        shown = truth[:, number] == 1
        found[f"{name}s"] = (
            len(np.unique(answers.groups[shown])) if name == "patient" else int(shown.sum())
        )
        found[f"of_{name}s"] = int(known.sum())
    for name, answers, truth in levels:
        probabilities = answers.types[:, :, number]
        answered = np.isfinite(probabilities).all(axis=0) & (truth[:, number] != UNKNOWN)
        if found["patients"] >= FEW_PATIENTS:
            rows, labels = probabilities[:, answered], truth[answered, number]
            metrics = metrics_with_intervals(
                labels, rows, rows >= 0.5, answers.groups[answered], seed
            )
            found[name] = {figure: metrics[figure] for figure in FIGURES}
            bleeds = answered & (truth == 1).any(axis=1)
            rows, labels = probabilities[:, bleeds], truth[bleeds, number]
            among = metrics_with_intervals(labels, rows, rows >= 0.5, answers.groups[bleeds], seed)
            found[name]["auroc_among_bleeding"] = among["auroc"]
        elif name == "patient":
            found["scores"] = _scores(probabilities.mean(axis=0), truth[:, number] == 1, answered)
    return found


def _scores(
    probabilities: np.ndarray, shown: np.ndarray, answered: np.ndarray
) -> list[dict[str, Any]]:
    """Return the probability of each patient with a type, and its rank among all patients; the
    highest first.

    Both are null if the training part of the patient's fold had too few patients with the type.
    """
    ranks = [
        {
            "probability": float(value),
            "rank": int((probabilities[answered] > value).sum()) + 1,
            "of": int(answered.sum()),
        }
        for value in sorted(probabilities[shown & answered], reverse=True)
    ]
    return ranks + [{"probability": None, "rank": None, "of": int(answered.sum())}] * int(
        (shown & ~answered).sum()
    )


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
