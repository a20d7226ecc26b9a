""""""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ml.datasets.examples import Example
from ml.evaluation.answers import Answers, write_answers
from ml.training.cross_validation import Judgement
from ml.training.experiment import Material


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
