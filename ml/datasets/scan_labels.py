"""Scan-level labels, from a table of patients or a column of the table of slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ml.datasets.examples import Example
from ml.datasets.tables import PATIENT_COLUMNS, column_of, label_of, read_table, types_of
from ml.errors import DatasetError

SCAN_LABEL_COLUMNS = ("scan_label", "study_label", "label", "hemorrhage", "any")


@dataclass(frozen=True)
class ScanLabel:
    """The label of a patient's scan, and where it was read."""

    label: int
    types: frozenset[str] | None
    where: str


def read_patients(path: Path) -> dict[str, ScanLabel]:
    """Read the scan labels of a table of patients; empty if there is no table or it has no
    labels.
    """
    if not path.is_file():
        return {}
    header, rows = read_table(path)
    patient_column, label_column = (
        column_of(header, PATIENT_COLUMNS),
        column_of(header, SCAN_LABEL_COLUMNS),
    )
    given: dict[str, ScanLabel] = {}
    if patient_column is None or label_column is None:
        return given
    for row in rows:
        number = row.line
        where = f"{path.name}, line {number}"
        before = given.get(row.get(patient_column, ""))
        label = add_scan_label(given, row.get(patient_column, ""), row.get(label_column, ""), where)
        if label is None:
            continue
        types = types_of(row.get("subtypes"), label, where)
        if (
            before is not None
            and before.types is not None
            and types is not None
            and types != before.types
        ):
            patient = row[patient_column][:60]
            raise DatasetError(
                f"{where}: the scan of patient {patient} has other types of hemorrhage than in"
                f" {before.where}."
            )
        if before is None or before.types is None:
            given[row[patient_column]] = ScanLabel(label, types, where)
    return given


def add_scan_label(given: dict[str, ScanLabel], patient: str, text: str, where: str) -> int | None:
    """Add the scan label in a cell and return it; None if the cell is empty."""
    label = label_of(text, "label of the scan", where)
    if label is None:
        return None
    if not patient:
        raise DatasetError(f"{where}: a scan label needs a patient in the same row.")
    before = given.setdefault(patient, ScanLabel(label, None, where))
    if before.label != label:
        raise DatasetError(
            f"{where}: the scan of patient {patient[:60]} has the label {label}, and {before.label}"
            f" in {before.where}."
        )
    return label


def with_scan_labels(
    examples: Sequence[Example], given: Mapping[str, ScanLabel]
) -> tuple[list[Example], list[str]]:
    """Return the examples with the scan labels of their patients, and notes about
    contradictions.

    If all slices of a scan are labeled, no scan label is added.

    Raises:
        DatasetError: a scan is labeled negative, but one of its slices is labeled positive.
    """
    of_patient: dict[str, list[Example]] = {}
    for example in examples:
        if example.patient and example.patient in given:
            of_patient.setdefault(example.patient, []).append(example)
    weak_patients, problems = set(), []
    for patient, own in of_patient.items():
        said, labels = given[patient], {example.label for example in own}
        if said.label == 0 and 1 in labels:
            positive = next(example.name for example in own if example.label == 1)
            raise DatasetError(
                f"{said.where}: the scan of patient {patient[:60]} has the label 0, but its slice"
                f" {positive} has 1."
            )
        if None in labels:
            weak_patients.add(patient)
        elif said.label == 1 and 1 not in labels:
            problems.append(
                f"{said.where}: the scan of patient {patient[:60]} has the label 1, but all its"
                " slices have 0; the slice labels are used."
            )
    return [
        (
            replace(e, scan_label=given[e.patient].label, scan_types=given[e.patient].types)
            if e.patient and e.patient in weak_patients
            else e
        )
        for e in examples
    ], problems
