"""What a training computes with stays with the examples that it was made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ml.datasets.examples import Example
from ml.datasets.layouts import find_examples
from ml.datasets.pool import in_scan_order
from ml.errors import DatasetError
from ml.preprocessing.model_input import InputSpec
from ml.scans.phantoms import phantom, write_png
from ml.training.inputs import read_inputs

SPEC = InputSpec(size=32)


def quiet(share: float) -> None:
    return None


def examples_in(root: Path, table: str) -> list[Example]:
    (root / "labels.csv").write_text(table)
    return find_examples(root, "set")[2]


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Three slices of one patient, whose names have no leading zeros."""
    (tmp_path / "set").mkdir()
    for number in (1, 2, 10):
        write_png(
            phantom(number, hemorrhage=number == 1, size=64), tmp_path / "set" / f"s{number}.png"
        )
    return tmp_path / "set"


def test_inputs_are_read_once_and_refused_for_other_examples(series: Path, tmp_path: Path) -> None:
    examples = examples_in(series, "filename,label,patient\ns1.png,1,p\ns2.png,0,p\ns10.png,0,p\n")
    first = read_inputs(examples, SPEC, tmp_path / "run" / "cache", quiet)
    again = read_inputs(examples, SPEC, tmp_path / "run" / "cache", quiet)
    np.testing.assert_array_equal(first.images, again.images)
    for others in (examples[::-1], [replace(examples[0], label=0), *examples[1:]]):
        with pytest.raises(
            DatasetError, match="have changed since run was created; give another folder"
        ):
            read_inputs(others, SPEC, tmp_path / "run" / "cache", quiet)


def test_slices_without_numbers_are_ordered_by_those_in_their_names(series: Path) -> None:
    examples = examples_in(series, "filename,label,patient\ns10.png,0,p\ns2.png,0,p\ns1.png,1,p\n")
    assert [example.name for example in in_scan_order(examples)] == ["s1.png", "s2.png", "s10.png"]


def test_a_slice_number_may_be_written_as_a_decimal(series: Path) -> None:
    examples = examples_in(
        series, "filename,label,patient,slice\ns1.png,1,p,12.0\ns2.png,0,p,-3\ns10.png,0,p,upper\n"
    )
    assert [example.slice for example in examples] == [12, -3, None]
