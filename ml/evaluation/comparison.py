"""Compare runs on the slices and patients that all of them answered for: their figures, and paired
differences to the first.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ml.datasets.layouts import DatasetError
from ml.evaluation.answers import COLUMNS
from ml.evaluation.metrics import auroc_within, metrics_with_intervals, paired_differences

LEVELS = ("slice", "patient")
DIFFERENCES = ("auroc", "accuracy")
SEED = 0
NO_FOLD = -1
"""Where a finished model was evaluated."""
Key = tuple[str, str, str]


@dataclass(frozen=True)
class _Answer:
    label: int
    group: str
    probabilities: Sequence[float]
    predicted: Sequence[bool]
    folds: Sequence[int]


def compare(runs: Sequence[Path]) -> dict[str, Any]:
    """Return for each level what the runs share and how they differ.

    Args:
        runs: folders that `train` or `evaluate` wrote; the first is what the others are compared
            with.

    Returns:
        {"slice" and "patient": {"n", "runs": [{"run", "metrics"}], "differences": [{"run", "minus",
        "auroc", "accuracy"}]}}; where several data sets were answered for also "by_dataset", the
        same for each. Metrics of a cross-validation hold "auroc within folds" too.

    Raises:
        DatasetError: a folder holds no answers, two runs disagree about a label, or they have
            nothing in common.
    """
    tables = [read_answers(run) for run in runs]
    names = [_name(run, runs) for run in runs]
    result: dict[str, Any] = {}
    for level in LEVELS:
        keys = sorted(set.intersection(*(set(table[level]) for table in tables)))
        if not keys and level == "slice":
            raise DatasetError("These runs have no image in common.")
        result[level] = _compared(tables, level, keys, names)
        datasets = sorted({dataset for dataset, _, _ in keys})
        if len(datasets) > 1:
            of_each = {dataset: [key for key in keys if key[0] == dataset] for dataset in datasets}
            result[level]["by_dataset"] = {
                dataset: _compared(tables, level, own, names) for dataset, own in of_each.items()
            }
    return result


def _compared(
    tables: Sequence[Mapping[str, Mapping[Key, _Answer]]],
    level: str,
    keys: Sequence[Key],
    names: Sequence[str],
) -> dict[str, Any]:
    labels, groups = _facts(tables, level, keys, names)
    answers = [_arrays(table[level], keys) for table in tables]
    metrics = [metrics_with_intervals(labels, *own, groups, SEED) for own in answers]
    for of_run, table, (probabilities, _) in zip(metrics, tables, answers, strict=True):
        folds = np.array([table[level][key].folds for key in keys]).T
        if folds.size and (folds != NO_FOLD).all():
            of_run["auroc within folds"] = auroc_within(labels, probabilities, folds, groups, SEED)
    return {
        "n": len(keys),
        "runs": [
            {"run": name, "metrics": of_run} for name, of_run in zip(names, metrics, strict=True)
        ],
        "differences": [
            {"run": name, "minus": names[0], **_differences(labels, answers[0], own, groups)}
            for name, own in zip(names[1:], answers[1:], strict=True)
        ],
    }


def read_answers(run: Path) -> dict[str, dict[Key, _Answer]]:
    """Return the answers of a run by level and by (data set, patient, file); those without label
    and those that training saw left out.

    Raises:
        DatasetError: the folder holds none.
    """
    path = next(
        (run / name for name in ("answers.csv", "predictions.csv") if (run / name).is_file()), None
    )
    if path is None:
        raise DatasetError(f"{run} holds no answers; give a folder that train or evaluate wrote.")
    found: dict[str, dict[Key, list[Mapping[str, str]]]] = {level: {} for level in LEVELS}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            if not set(COLUMNS) <= set(table.fieldnames or ()):
                raise DatasetError(f"{path} is no table of answers.")
            for row in table:
                if row["label"] and row["overlap"] != "1":
                    found[row["level"]].setdefault(
                        (row["dataset"], row["patient"], row["filename"]), []
                    ).append(row)
        return {
            level: {key: _answer(rows) for key, rows in keyed.items()}
            for level, keyed in found.items()
        }
    except DatasetError:
        raise
    except (ValueError, KeyError, TypeError, csv.Error) as err:  # cut short, or edited
        raise DatasetError(f"{path} is a damaged table of answers.") from err


def _answer(rows: Sequence[Mapping[str, str]]) -> _Answer:
    ordered = sorted(rows, key=lambda row: int(row["repeat"] or 0))
    probabilities, predicted = (
        [float(row["probability"]) for row in ordered],
        [row["predicted"] == "1" for row in ordered],
    )
    folds = [int(row["fold"] or NO_FOLD) for row in ordered]
    return _Answer(int(rows[0]["label"]), rows[0]["group"], probabilities, predicted, folds)


def _facts(
    tables: Sequence[Mapping[str, Mapping[Key, _Answer]]],
    level: str,
    keys: Sequence[Key],
    names: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
    first = tables[0][level]
    for table, name in zip(tables, names, strict=True):
        for key in keys:
            if table[level][key].label != first[key].label:
                raise DatasetError(
                    f"{names[0]} and {name} disagree about the label of"
                    f" {' '.join(filter(None, key))}."
                )
    return np.array([first[key].label for key in keys]), np.array(
        [first[key].group for key in keys]
    )


def _arrays(answers: Mapping[Key, _Answer], keys: Sequence[Key]) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and calls, (repeats, n)."""
    if not keys:
        return np.zeros((1, 0)), np.zeros((1, 0), bool)
    return (
        np.array([answers[key].probabilities for key in keys]).T,
        np.array([answers[key].predicted for key in keys]).T,
    )


def _differences(
    labels: np.ndarray,
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    groups: np.ndarray,
) -> dict[str, Any]:
    found = paired_differences(labels, first, second, groups, SEED)
    return {name: found[name] for name in DIFFERENCES}


def _name(run: Path, runs: Sequence[Path]) -> str:
    """Return the folder's name, or its whole path where another run has the same name."""
    return run.name if sum(other.name == run.name for other in runs) == 1 else str(run)
