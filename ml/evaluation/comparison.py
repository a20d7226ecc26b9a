"""Compare runs on the slices and patients that all of them predicted: metrics, and paired
differences from the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ml.evaluation.answers import LEVELS, NO_FOLD, AnswersError, Key, _Answer, read_answers
from ml.evaluation.metrics import auroc_within, metrics_with_intervals, paired_differences

DIFFERENCES = ("auroc", "accuracy")
SEED = 0


def compare(runs: Sequence[Path]) -> dict[str, Any]:
    """Return metrics and differences of the runs for each level.

    Args:
        runs: folders that `train` or `evaluate` wrote; the first is the reference.

    Returns:
        {"slice" and "patient": {"n", "runs": [{"run", "metrics"}], "differences": [{"run", "minus",
        "auroc", "accuracy"}]}}; with several data sets also "by_dataset", the same for each.
            Metrics of a cross-validation hold "auroc within folds" too.

    Raises:
        AnswersError: a folder holds no predictions, two runs disagree about a label, or they have
            no images in common.
    """
    tables = [read_answers(run) for run in runs]
    names = [_name(run, runs) for run in runs]
    result: dict[str, Any] = {}
    for level in LEVELS:
        keys = sorted(set.intersection(*(set(table[level]) for table in tables)))
        if not keys and level == "slice":
            raise AnswersError("These runs have no image in common.")
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
                raise AnswersError(
                    f"{names[0]} and {name} disagree about the label of"
                    f" {' '.join(filter(None, key))}."
                )
    return np.array([first[key].label for key in keys]), np.array(
        [first[key].group for key in keys]
    )


def _arrays(answers: Mapping[Key, _Answer], keys: Sequence[Key]) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and predicted classes, (repeats, n)."""
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
    """Return the folder's name, or its full path if another run has the same name."""
    return run.name if sum(other.name == run.name for other in runs) == 1 else str(run)
