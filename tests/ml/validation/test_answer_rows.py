"""What a row of a table of answers says of its image or scan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ml.datasets.examples import Example
from ml.evaluation.answers import COLUMNS, LEVELS
from ml.validation.answer_rows import whose_answer

OF_PATIENT = Example(
    Path("a/7.png"),
    "a/7.png",
    1,
    "ann",
    7,
    "ann and bob",
    "phantoms",
    scan="second",
    sha256="0123456789abcdef" * 4,
)
ALONE = replace(OF_PATIENT, patient=None, slice=None, scan="")


@pytest.mark.parametrize(
    ("example", "level", "filename", "patient", "slice_"),
    [
        (OF_PATIENT, "slice", "a/7.png", "ann scan second", 7),
        (OF_PATIENT, "patient", "", "ann scan second", ""),
        (ALONE, "slice", "a/7.png", "", ""),
        (ALONE, "patient", "a/7.png", "", ""),
    ],
)
def test_a_scan_with_a_patient_names_no_file(
    example: Example, level: str, filename: str, patient: str, slice_: object
) -> None:
    row = whose_answer(example, level, "ann and bob")
    assert level in LEVELS and row.keys() < set(COLUMNS)
    assert row == {
        "level": level,
        "dataset": "phantoms",
        "filename": filename,
        "patient": patient,
        "slice": slice_,
        "group": "ann and bob",
        "image": "0123456789abcdef",
    }
