"""The out-of-fold answers that ship with a model: a small table without names of files or patients.

With them, a new version can be compared with a shipped one on the images that both predicted, as
soon as it is trained (`ml.evaluation.comparison`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ml.datasets.examples import scan_key
from ml.datasets.pool import in_scan_order
from ml.datasets.read import Dataset
from ml.evaluation.answers import AnswersError, read_answers, write_answers
from ml.validation.answer_rows import mark_of, whose_answer

COPIED = ("level", "dataset", "label", "repeat", "fold", "predicted")
"""Columns that are copied unchanged."""
SHIPPED_DIGITS = 5

Place = tuple[str, str, str, str]
"""Level, data set, patient and file."""


def ship_answers(run: Path, datasets: Sequence[Dataset], out: Path) -> int:
    """Write the out-of-fold answers of a training run without names; return the number of rows.

    Images and scans are identified by hashes of their files, groups by numbers, and probabilities
    are rounded to `SHIPPED_DIGITS` digits.

    Args:
        run: a folder that `train` wrote.
        datasets: its training data; needed only if its table lacks the hashes of images, as in
            earlier versions.
        out: the file.

    Raises:
        AnswersError: the folder holds no answers, or one of their images is in none of the data
            sets.
    """
    read_answers(run)  # reports a damaged table
    with (run / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    written = list(_nameless(rows, _marks(datasets)))
    write_answers(out, written)
    return len(written)


def _marks(datasets: Iterable[Dataset]) -> dict[Place, str]:
    """Return the hash of each image, and for each scan that of its first image."""
    marks: dict[Place, str] = {}
    for dataset in datasets:
        begun = set()
        for example in in_scan_order(dataset.examples):
            levels = ["slice"] if scan_key(example) in begun else ["slice", "patient"]
            begun.add(scan_key(example))
            for level in levels:
                marks[_place(whose_answer(example, level, ""))] = mark_of(example)
    return marks


def _place(row: Mapping[str, str]) -> Place:
    return row["level"], row["dataset"], row["patient"], row["filename"]


def _nameless(
    rows: Sequence[Mapping[str, str]], marks: Mapping[Place, str]
) -> Iterator[dict[str, object]]:
    groups: dict[str, int] = {}
    for row in rows:
        image = row.get("image") or marks.get(_place(row))
        if not image:
            raise AnswersError(
                f"{row['filename'] or row['patient']} of {row['dataset']} is in none of the data"
                " sets; give those that the model was trained on."
            )
        yield {
            **{name: row[name] for name in COPIED},
            "image": image,
            "group": groups.setdefault(row["group"], len(groups)),
            "probability": f"{float(row['probability']):.{SHIPPED_DIGITS}g}",
        }
