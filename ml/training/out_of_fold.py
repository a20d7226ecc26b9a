"""The table of all out-of-fold answers of a cross-validation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ml.datasets.examples import Example
from ml.evaluation.answers import Answers, write_answers
from ml.training.cross_validation import OutOfFold
from ml.training.experiment import Experiment
from ml.validation.answer_rows import whose_answer


def write_predictions(
    path: Path, examples: Sequence[Example], experiment: Experiment, out_of_fold: OutOfFold
) -> None:
    """Write all predictions of a cross-validation."""
    write_answers(
        path,
        [
            *_rows(out_of_fold.slices, examples, "slice", experiment),
            *_rows(out_of_fold.scans, examples, "patient", experiment),
        ],
    )


def _rows(
    answers: Answers, examples: Sequence[Example], level: str, experiment: Experiment
) -> Iterable[dict[str, Any]]:
    positions = answers.at if level == "slice" else experiment.first_of_scan[answers.at]
    for repeat in range(len(answers.probabilities)):
        for column, position in enumerate(positions):
            yield whose_answer(examples[position], level, answers.groups[column]) | {
                "label": int(answers.labels[column]),
                "repeat": repeat,
                "fold": int(answers.folds[repeat, column]),
                "probability": repr(float(answers.probabilities[repeat, column])),
                "predicted": int(answers.predicted[repeat, column]),
            }
