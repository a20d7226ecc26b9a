"""Tables of predictions on held-out folds or external data, from which metrics and comparisons are
computed.

    level         "slice" or "patient" (a scan)
    dataset, filename, label, patient, slice, group
    repeat, fold  of the cross-validation; empty for a finished model
    probability, predicted
    overlap       1 if the image or its patient is in the model's training data; excluded from
                  comparisons
    image         first 16 hex digits of the SHA-256 of the image's file, of a scan those of its
                  first image; tables of earlier versions lack it

Patient rows have a file name only for scans without a patient. A table that ships with a model
(`ml.validation.shipped_answers`) contains no names of files, patients or slices: there, only
`image` identifies what a row refers to.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ml.checkpoints import replacing
from ml.errors import UserError


class AnswersError(UserError):
    """A table of predictions is missing, damaged or not comparable; the message is one sentence."""


NEEDED = (
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
"""The columns that every table has."""
COLUMNS = (*NEEDED, "image")


def write_answers(
    path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = COLUMNS
) -> None:
    """Write rows of `columns` atomically: the file is complete or does not exist."""
    with replacing(path) as hidden, hidden.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(rows)


@dataclass(frozen=True)
class Answers:
    """Held-out predictions at one level, slices or scans.

    Attributes:
        at: (n,) position of the slice, or number of the scan.
        labels, groups, sources: (n,).
        probabilities, predicted, zones, folds: (repeats, n); a zone is -1 below, 0 in, 1 above the
            fold's inconclusive band.
        types: (repeats, n, 5) probabilities of the types of hemorrhage; NaN where the fold's model
            does not predict them.
    """

    at: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    sources: np.ndarray
    probabilities: np.ndarray
    predicted: np.ndarray
    zones: np.ndarray
    folds: np.ndarray
    types: np.ndarray

    def among(self, chosen: np.ndarray) -> Answers:
        """Return the predictions where `chosen`, bool (n,), is true."""
        per_repeat = (self.probabilities, self.predicted, self.zones, self.folds, self.types)
        per_answer = (self.at, self.labels, self.groups, self.sources)
        return Answers(
            *(values[chosen] for values in per_answer),
            *(values[:, chosen] for values in per_repeat),
        )


LEVELS = ("slice", "patient")


NO_FOLD = -1
"""The fold of predictions by a finished model."""


Key = tuple[str, str, str]
"""Data set, patient and file name; in tables without names: data set, "" and image."""


@dataclass(frozen=True)
class HeldOutAnswer:
    """A run's predictions for one image or scan.

    Attributes:
        label: 0 or 1.
        group, dataset, filename, image: as in the table.
        probabilities, predicted, folds: one for each repeat.
    """

    label: int
    group: str
    dataset: str
    filename: str
    image: str
    probabilities: Sequence[float]
    predicted: Sequence[bool]
    folds: Sequence[int]


def read_answers(run: Path) -> dict[str, dict[Key, HeldOutAnswer]]:
    """Read the predictions of a run, by level and by (data set, patient, file), excluding unlabeled
    images and those seen in training.

    Raises:
        AnswersError: the folder holds no predictions.
    """
    path = next(
        (run / name for name in ("answers.csv", "predictions.csv") if (run / name).is_file()), None
    )
    if path is None:
        raise AnswersError(f"{run} holds no answers; give a folder that train or evaluate wrote.")
    rows_of: dict[str, dict[Key, list[Mapping[str, str]]]] = {level: {} for level in LEVELS}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            if not set(NEEDED) <= set(table.fieldnames or ()):
                raise AnswersError(f"{path} is no table of answers.")
            for row in table:
                if None in row.values():
                    raise ValueError("a row lacks columns")
                if row["label"] and row["overlap"] != "1":
                    rows_of[row["level"]].setdefault(_key_of(row), []).append(row)
        return {
            level: {key: _answer(rows) for key, rows in keyed.items()}
            for level, keyed in rows_of.items()
        }
    except AnswersError:
        raise
    except (ValueError, KeyError, TypeError, csv.Error) as err:  # truncated or edited
        raise AnswersError(f"{path} is a damaged table of answers.") from err


def _key_of(row: Mapping[str, str]) -> Key:
    named = row["patient"] or row["filename"]
    return row["dataset"], row["patient"], row["filename"] if named else row.get("image") or ""


def _answer(rows: Sequence[Mapping[str, str]]) -> HeldOutAnswer:
    ordered = sorted(rows, key=lambda row: int(row["repeat"] or 0))
    probabilities, predicted = (
        [float(row["probability"]) for row in ordered],
        [row["predicted"] == "1" for row in ordered],
    )
    folds = [int(row["fold"] or NO_FOLD) for row in ordered]
    first = rows[0]
    return HeldOutAnswer(
        int(first["label"]),
        first["group"],
        first["dataset"],
        first["filename"],
        first.get("image") or "",
        probabilities,
        predicted,
        folds,
    )
