"""A table of answers that were given out of fold or on a set that no training saw: what figures and
comparisons are made of.

    level         "slice" or "patient" (a scan)
    dataset, filename, label, patient, slice, group
    repeat, fold  of the cross-validation; empty where a finished model was evaluated
    probability, predicted
    overlap       1 where the model's training saw the image or its patient; such answers are in no
    comparison

A patient's row names the file of a scan without a patient, and is empty there otherwise.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml.datasets.layouts import Example
from ml.training.cross_validation import Answers, Judgement
from ml.training.experiment import Material

COLUMNS = (
    *(
        "fold",
        "repeat",
        "filename",
        "label",
        "patient",
        "slice",
        "probability",
        "predicted",
        "level",
    ),
    *("dataset", "group", "overlap"),
)


def write_predictions(
    path: Path, examples: Sequence[Example], material: Material, judgement: Judgement
) -> None:
    """Write all out-of-fold answers of a cross-validation."""
    write_answers(
        path,
        [
            *_rows(judgement.slices, examples, "slice", material),
            *_rows(judgement.scans, examples, "patient", material),
        ],
    )


def write_answers(
    path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = COLUMNS
) -> None:
    """Write rows of `columns`; the file is there whole or not at all."""
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(rows)
    unfinished.replace(path)


def _rows(
    answers: Answers, examples: Sequence[Example], level: str, material: Material
) -> Iterable[dict[str, Any]]:
    positions = answers.at if level == "slice" else material.first_of_scan[answers.at]
    for repeat in range(len(answers.probabilities)):
        for column, position in enumerate(positions):
            example = examples[position]
            whole = level == "patient" and example.patient
            yield {
                "level": level,
                "dataset": example.dataset,
                "filename": "" if whole else example.name,
                "label": int(answers.labels[column]),
                "patient": example.scan_name,
                "slice": "" if whole or example.slice is None else example.slice,
                "group": answers.groups[column],
                "repeat": repeat,
                "fold": int(answers.folds[repeat, column]),
                "probability": repr(float(answers.probabilities[repeat, column])),
                "predicted": int(answers.predicted[repeat, column]),
            }
