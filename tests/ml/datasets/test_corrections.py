"""Corrected labels replace those of the files, with what follows from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml.datasets.corrections import with_corrections
from ml.datasets.examples import Example
from ml.datasets.read import read_dataset
from ml.errors import DatasetError
from ml.scans.phantoms import phantom, write_png

SUBDURAL = frozenset({"subdural"})


def example(name: str, label: int | None, patient: str | None = None, **more: object) -> Example:
    """Return an image without a file."""
    return Example(Path(name), name, label, patient, None, "", "set", **more)  # type: ignore[arg-type]


def test_types_of_a_corrected_slice_no_longer_count() -> None:
    given = [
        example("a", 1, types=SUBDURAL),
        example("b", 0, types=frozenset()),
        example("c", 1, types=SUBDURAL),
        example("d", 1),
        example("e", 1, types=SUBDURAL),
    ]
    corrected = with_corrections(given, {"a": 0, "b": 1, "c": None, "d": 0, "e": 1})
    assert [(one.label, one.types) for one in corrected] == [
        (0, frozenset()),
        (1, None),
        (None, None),
        (0, None),
        (1, SUBDURAL),
    ]
    assert with_corrections(given, {}) == given


def test_a_scan_follows_its_slices() -> None:
    given = [
        example("a1", None, "a", scan_label=0, scan_types=frozenset()),
        example("a2", None, "a", scan_label=0, scan_types=frozenset()),
        example("b1", None, "b", scan_label=1, scan_types=SUBDURAL),
        example("b2", 0, "b", scan_label=1, scan_types=SUBDURAL),
    ]
    corrected = with_corrections(given, {"a1": 1, "b1": 1})
    assert [(one.scan_label, one.scan_types) for one in corrected] == [
        (1, None),
        (1, None),
        (None, None),
        (None, None),
    ]


def test_an_image_that_is_not_there_cannot_be_corrected() -> None:
    with pytest.raises(DatasetError, match="label of b was corrected"):
        with_corrections([example("a", 1)], {"b": 0})


def test_a_correction_changes_the_fingerprint_and_nothing_else(tmp_path: Path) -> None:
    rows = ["filename,label"]
    for number in range(3):
        write_png(phantom(number, hemorrhage=number == 1, size=64), tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{int(number == 1)}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    before = read_dataset(tmp_path, "set")
    after = read_dataset(tmp_path, "set", corrections={"2.png": 1})
    assert [one.label for one in after.examples] == [0, 1, 1]
    assert after.fingerprint != before.fingerprint
    assert read_dataset(tmp_path, "set", corrections={"2.png": 0}).fingerprint == before.fingerprint
