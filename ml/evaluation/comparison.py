"""Compare runs on the slices and patients that all of them predicted: metrics, and paired
differences from the first run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ml.evaluation.answers import (
    LEVELS,
    NO_FOLD,
    AnswersError,
    HeldOutAnswer,
    Key,
    read_answers,
)
from ml.evaluation.curves import LevelCurves, level_curves
from ml.evaluation.metrics import auroc_within, metrics_with_intervals, paired_differences
from ml.figures import Estimate, Metrics

SEED = 0


@dataclass(frozen=True)
class ComparedRun:
    """A run's metrics and curves on the data that all runs share; for a cross-validation also the
    AUROC over pairs within a fold.
    """

    run: str
    metrics: Metrics
    curves: LevelCurves
    auroc_within_folds: Estimate | None = None


@dataclass(frozen=True)
class Difference:
    """A run's metrics minus those of the first run."""

    run: str
    minus: str
    auroc: Estimate
    accuracy: Estimate
    sensitivity: Estimate
    specificity: Estimate


@dataclass(frozen=True)
class ComparedLevel:
    """The slices or patients that all runs share, and the differences there.

    Attributes:
        n: number of slices or patients that all runs predicted.
        runs: in the order given.
        differences: for each run except the first.
        by_dataset: the same for each data set; None if there is only one.
    """

    n: int
    runs: list[ComparedRun]
    differences: list[Difference]
    by_dataset: dict[str, ComparedLevel] | None = None


@dataclass(frozen=True)
class Comparison:
    """The comparison by slice and by patient."""

    slice: ComparedLevel
    patient: ComparedLevel


def compare(runs: Sequence[Path]) -> Comparison:
    """Return metrics and differences of the runs for each level.

    Images are matched by file content if all tables contain its hash, whatever the names of images
    and data sets; otherwise by data set, patient and name.

    Args:
        runs: folders that `train` or `evaluate` wrote; the first is the reference.

    Raises:
        AnswersError: a folder holds no predictions, two runs disagree about a label, or they have
            no images in common.
    """
    tables = [read_answers(run) for run in runs]
    names = [_name(run, runs) for run in runs]
    if all(_knows_images(table) for table in tables):
        tables = [
            {level: _by_image(answers) for level, answers in table.items()} for table in tables
        ]
    slices, patients = (
        sorted(set.intersection(*(set(table[level]) for table in tables))) for level in LEVELS
    )
    if not slices:
        raise AnswersError("These runs have no image in common.")
    return Comparison(
        _with_datasets([table["slice"] for table in tables], slices, names),
        _with_datasets([table["patient"] for table in tables], patients, names),
    )


def _knows_images(table: Mapping[str, Mapping[Key, HeldOutAnswer]]) -> bool:
    return all(answer.image for answers in table.values() for answer in answers.values())


def _by_image(answers: Mapping[Key, HeldOutAnswer]) -> dict[Key, HeldOutAnswer]:
    """Return the answers by image only, without images that occur more than once."""
    times = Counter(answer.image for answer in answers.values())
    return {
        ("", "", answer.image): answer for answer in answers.values() if times[answer.image] == 1
    }


def _with_datasets(
    tables: Sequence[Mapping[Key, HeldOutAnswer]], keys: Sequence[Key], names: Sequence[str]
) -> ComparedLevel:
    """Compare on all shared data, and on each data set if there are several."""
    compared = _compared(tables, keys, names)
    dataset_of = {key: tables[0][key].dataset for key in keys}
    datasets = sorted(set(dataset_of.values()))
    if len(datasets) < 2:
        return compared
    of_each = {
        name: _compared(tables, [key for key in keys if dataset_of[key] == name], names)
        for name in datasets
    }
    return replace(compared, by_dataset=of_each)


def _compared(
    tables: Sequence[Mapping[Key, HeldOutAnswer]], keys: Sequence[Key], names: Sequence[str]
) -> ComparedLevel:
    labels, groups = _facts(tables, keys, names)
    answers = [_arrays(table, keys) for table in tables]
    runs = []
    for name, table, (probabilities, called) in zip(names, tables, answers, strict=True):
        metrics = metrics_with_intervals(labels, probabilities, called, groups, SEED)
        folds = np.array([table[key].folds for key in keys]).T
        within = None
        if folds.size and (folds != NO_FOLD).all():
            within = auroc_within(labels, probabilities, folds, groups, SEED)
        curves = level_curves(labels, probabilities)
        runs.append(ComparedRun(name, metrics, curves, within))
    differences = []
    for name, answer in zip(names[1:], answers[1:], strict=True):
        difference = paired_differences(labels, answers[0], answer, groups, SEED)
        differences.append(
            Difference(
                name,
                names[0],
                difference.auroc,
                difference.accuracy,
                difference.sensitivity,
                difference.specificity,
            )
        )
    return ComparedLevel(len(keys), runs, differences)


def _facts(
    tables: Sequence[Mapping[Key, HeldOutAnswer]], keys: Sequence[Key], names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and groups, (n,).

    Raises:
        AnswersError: two runs disagree about a label.
    """
    first = tables[0]
    for table, name in zip(tables, names, strict=True):
        for key in keys:
            if table[key].label != first[key].label:
                raise AnswersError(
                    f"{names[0]} and {name} disagree about the label of"
                    f" {' '.join(filter(None, key))}."
                )
    return np.array([first[key].label for key in keys]), np.array(
        [first[key].group for key in keys]
    )


def _arrays(
    answers: Mapping[Key, HeldOutAnswer], keys: Sequence[Key]
) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and predicted classes, (repeats, n)."""
    if not keys:
        return np.zeros((1, 0)), np.zeros((1, 0), bool)
    return (
        np.array([answers[key].probabilities for key in keys]).T,
        np.array([answers[key].predicted for key in keys]).T,
    )


def _name(run: Path, runs: Sequence[Path]) -> str:
    """Return the folder's name, or its full path if another run has the same name."""
    return run.name if sum(other.name == run.name for other in runs) == 1 else str(run)
