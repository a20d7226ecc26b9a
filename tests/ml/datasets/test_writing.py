"""A data set that was written of labeled scans is read back with the same slices and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from ml.datasets.examples import slice_of
from ml.datasets.read import Dataset, read_dataset
from ml.datasets.writing import LabeledScan, write_manifest, write_scan
from ml.scans.phantoms import phantom
from ml.scans.slices import Series, Slice, gray_of


def a_series(seed: int, slices: int, *, hemorrhage: bool) -> Series:
    """A series in HU whose slices lie 5 mm apart."""
    return Series(
        tuple(
            Slice(
                phantom(seed + n, hemorrhage=hemorrhage, size=96).astype(np.float32),
                "hu",
                (2.4, 2.4),
            )
            for n in range(slices)
        ),
        distance_mm=5.0 if slices > 1 else None,
    )


SCANS = (
    LabeledScan(
        "s1",
        "p1",
        a_series(0, 3, hemorrhage=True),
        1,
        types=("subdural",),
        slice_labels={0: 0, 1: 1},
        slice_types={1: ("subdural",)},
    ),
    LabeledScan("s2", "p1", a_series(10, 2, hemorrhage=False), 0),
    LabeledScan("s3", "p2", a_series(20, 1, hemorrhage=True), 1, types=("epidural",)),
    LabeledScan(
        "s4",
        "p3",
        Series((Slice(gray_of(a_series(30, 1, hemorrhage=False).slices[0]), "display"),)),
        0,
    ),
)


def written(root: Path) -> Dataset:
    """Write `SCANS` and read them."""
    root.mkdir()
    write_manifest(root, [row for scan in SCANS for row in write_scan(root, scan)])
    return read_dataset(root, "confirmed")


def test_scans_are_read_back_with_slices_places_labels_and_types(tmp_path: Path) -> None:
    result = {example.name: example for example in written(tmp_path / "set").examples}
    first = [result[f"p1/s1/000{n}.dcm"] for n in (1, 2, 3)]
    assert [example.label for example in first] == [0, 1, None]
    assert [example.place_mm for example in first] == [0.0, 5.0, 10.0]
    assert {(example.patient, example.scan_name) for example in first} == {("p1", "p1 scan s1")}
    assert first[1].types == {"subdural"} and first[0].types == frozenset()
    assert first[2].scan_label == 1 and first[2].scan_types == {"subdural"}
    np.testing.assert_array_equal(
        slice_of(first[0]).pixels, np.round(SCANS[0].series.slices[0].pixels)
    )
    # Another scan of the same patient has labels of its own, and belongs to the same group.
    other = [result[f"p1/s2/000{n}.dcm"] for n in (1, 2)]
    assert [example.label for example in other] == [0, 0]
    assert len({example.group for example in (*first, *other)}) == 1
    single = result["p2/s3/0001.dcm"]
    assert single.label == 1 and single.types == {"epidural"} and single.place_mm is None
    picture = result["p3/s4/0001.png"]
    expected = SCANS[3].series.slices[0].pixels
    assert slice_of(picture).pixels == pytest.approx(expected, abs=1 / 255)


def test_the_same_scans_have_the_same_fingerprint_and_files_name_nobody(tmp_path: Path) -> None:
    first, second = written(tmp_path / "one"), written(tmp_path / "two")
    assert first.fingerprint == second.fingerprint
    for path in (tmp_path / "one").rglob("*.dcm"):
        file = pydicom.dcmread(path)
        assert file.PatientName == "" and file.PatientID == "" and "StudyDate" not in file
