"""Labels of whole scans: where they stand, what they must agree with, and what becomes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml.datasets.read import Dataset, read_dataset
from ml.errors import DatasetError
from ml.scans.phantoms import phantom, write_png
from tests.ml.oracle import pooled

LABELED = [
    (f"{patient}-{n}.png", str(int(patient < "p4" and n == 0)), patient)
    for patient in ("p0", "p1", "p4", "p5")
    for n in range(2)
]
WEAK = [(f"{patient}-{n}.png", "", patient) for patient in ("w0", "w1") for n in range(2)]


def write_set(
    root: Path,
    rows: list[tuple[str, ...]],
    header: str = "filename,label,patient",
    patients: str = "",
) -> Path:
    root.mkdir()
    for seed, row in enumerate(rows):
        write_png(phantom(seed, hemorrhage=False, size=96), root / row[0])
    (root / "labels.csv").write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    if patients:
        (root / "patients.csv").write_text(patients)
    return root


def scan_label_of(dataset: Dataset) -> dict[str, int | None]:
    return {example.patient: example.scan_label for example in dataset.examples if example.patient}


def test_a_table_of_patients_labels_the_scans_whose_slices_nobody_labeled(tmp_path: Path) -> None:
    patients = "patient,study_label,subtypes\nw0,1,subdural|epidural\nw1,0,\nnot here,1,\n"
    result = read_dataset(write_set(tmp_path / "set", [*LABELED, *WEAK], patients=patients))
    assert scan_label_of(result) == {
        "p0": None,
        "p1": None,
        "p4": None,
        "p5": None,
        "w0": 1,
        "w1": 0,
    }
    assert [result.examples[at].scan_types for at in (8, 10)] == [
        {"subdural", "epidural"},
        frozenset(),
    ]
    pool = pooled([result], (), 1)
    assert (
        len(pool.labels) == 12
        and pool.given_scan_labels == {4: 1, 5: 0}
        and not pool.known[8:].any()
    )


def test_a_column_labels_scans_too_even_where_no_slice_has_a_label(tmp_path: Path) -> None:
    rows = [
        (name, patient, {"w0": "1", "w1": "0"}[patient] if "-0" in name else "")
        for name, _, patient in WEAK
    ]
    result = read_dataset(write_set(tmp_path / "set", rows, "filename,patient,scan_label"))
    assert scan_label_of(result) == {"w0": 1, "w1": 0}
    with pytest.raises(DatasetError, match="There are only scan-level labels"):
        pooled([result], (), 1)


def test_where_every_slice_is_labeled_the_slices_say_it_all(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", LABELED)
    before = read_dataset(root)
    (root / "patients.csv").write_text("patient,scan_label\np0,1\np4,0\np5,1\n")
    result = read_dataset(root)
    assert (
        result.fingerprint == before.fingerprint
        and set(scan_label_of(result).values()) == {None}
        and pooled([result], (), 1).given_scan_labels == {}
    )
    assert result.problems == (
        (
            "patients.csv, line 4: the scan of patient p5 has the label 1, but all its slices have"
            " 0; the slice labels are used."
        ),
    )


def test_a_repeated_patient_row_is_fine_and_one_without_types_removes_none(
    tmp_path: Path,
) -> None:
    patients = (
        "patient,scan_label,subtypes\n"
        "w0,1,subdural|epidural\nw0,1,epidural|subdural\nw0,1,\nw1,0,\n"
    )
    result = read_dataset(write_set(tmp_path / "set", [*LABELED, *WEAK], patients=patients))
    assert result.examples[8].scan_types == {"subdural", "epidural"}


def test_a_table_of_patients_without_labels_is_no_matter(tmp_path: Path) -> None:
    result = read_dataset(write_set(tmp_path / "set", LABELED, patients="patient,age\np0,70\n"))
    assert set(scan_label_of(result).values()) == {None}


def test_the_fingerprint_changes_with_the_label_of_a_scan(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", [*LABELED, *WEAK])
    fingerprints = set()
    for patients in (
        "",
        "patient,scan_label\nw0,1\n",
        "patient,scan_label\nw0,0\n",
    ):
        if patients:
            (root / "patients.csv").write_text(patients)
        fingerprints.add(read_dataset(root).fingerprint)
    assert len(fingerprints) == 3


@pytest.mark.parametrize(
    ("rows", "header", "patients", "sentence"),
    [
        (LABELED, "filename,label,patient", "patient,scan_label\np0,0\n",
        r"patients\.csv, line 2: .* has the label 0, but its slice p0"),
        ([("a.png", "", "1")], "filename,patient,scan_label", "",
        r"labels\.csv, line 2: a scan label needs a patient"),
        ([("a.png", "p", "1"), ("b.png", "p", "0")], "filename,patient,scan_label", "",
        "line 3: .* p has the label 0, and 1 in labels"),
        (WEAK, "filename,label,patient", "patient,scan_label\nw0,maybe\n",
        "the label of the scan 'maybe' is neither 0 nor 1"),
        (WEAK, "filename,label,patient", "patient,scan_label,subtypes\nw0,1,bruise\n",
        "'bruise' is not a type of hemorrhage"),
        (WEAK, "filename,label,patient", "patient,any,subtypes\nw0,1,epidural\nw0,1,subdural\n",
        "line 3: .* w0 has other types"),
    ],
)  # fmt: skip
def test_contradictory_labels_are_refused(
    tmp_path: Path, rows: list[tuple[str, ...]], header: str, patients: str, sentence: str
) -> None:
    root = write_set(tmp_path / "set", rows, header, patients)
    with pytest.raises(DatasetError, match=sentence):
        read_dataset(root, needs_both_classes=False)
