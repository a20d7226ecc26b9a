"""Scan-level labels, from a table of patients or a column of the table of slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ml.datasets.examples import Example
from ml.datasets.tables import PATIENT_COLUMNS, column_of, label_of, read_table, types_of
from ml.errors import DatasetError

ScanKey = tuple[str, str]
"""A patient, and which of the patient's scans; the latter is empty if tables do not distinguish
them.
"""
SCAN_LABEL_COLUMNS = ("scan_label", "study_label", "label", "hemorrhage", "any")


@dataclass(frozen=True)
class ScanLabel:
    """The label of a scan, and where it was read."""

    label: int
    types: frozenset[str] | None
    where: str


def read_patients(path: Path) -> dict[ScanKey, ScanLabel]:
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
    labels: dict[ScanKey, ScanLabel] = {}
    if patient_column is None or label_column is None:
        return labels
    for row in rows:
        where = f"{path.name}, line {row.line}"
        key = (row.get(patient_column, ""), "")
        add_scan_label(labels, key, row.get(label_column, ""), row.get("subtypes"), where)
    return labels


def add_scan_label(
    labels: dict[ScanKey, ScanLabel], key: ScanKey, text: str, subtypes: str | None, where: str
) -> None:
    """Add the label of a scan in a cell, if any, and its types of hemorrhage.

    Raises:
        DatasetError: it is not a label, has no patient, or contradicts another row of the same
            scan.
    """
    label = label_of(text, "label of the scan", where)
    if label is None:
        return
    patient = key[0]
    if not patient:
        raise DatasetError(f"{where}: a scan label needs a patient in the same row.")
    types = types_of(subtypes, label, where)
    before = labels.get(key)
    if before is None:
        labels[key] = ScanLabel(label, types, where)
        return
    if before.label != label:
        raise DatasetError(
            f"{where}: the scan of patient {patient[:60]} has the label {label}, and {before.label}"
            f" in {before.where}."
        )
    if None not in (before.types, types) and types != before.types:
        raise DatasetError(
            f"{where}: the scan of patient {patient[:60]} has other types of hemorrhage than in"
            f" {before.where}."
        )
    if before.types is None and types is not None:
        labels[key] = ScanLabel(label, types, where)


def with_scan_labels(
    examples: Sequence[Example], scan_labels: Mapping[ScanKey, ScanLabel]
) -> tuple[list[Example], list[str]]:
    """Return the examples with the labels of their scans, and notes about contradictions.

    If all slices of a scan are labeled, no scan label is added.

    Raises:
        DatasetError: a scan is labeled negative, but one of its slices is labeled positive.
    """
    of_scan: dict[ScanKey, list[Example]] = {}
    for example in examples:
        if example.patient and _key(example) in scan_labels:
            of_scan.setdefault(_key(example), []).append(example)
    weak_keys, problems = set(), []
    for key, slices in of_scan.items():
        patient = key[0]
        scan_label, labels = scan_labels[key], {example.label for example in slices}
        if scan_label.label == 0 and 1 in labels:
            positive = next(example.name for example in slices if example.label == 1)
            raise DatasetError(
                f"{scan_label.where}: the scan of patient {patient[:60]} has the label 0, but its"
                f" slice {positive} has 1."
            )
        if None in labels:
            weak_keys.add(key)
        elif scan_label.label == 1 and 1 not in labels:
            problems.append(
                f"{scan_label.where}: the scan of patient {patient[:60]} has the label 1, but all"
                " its slices have 0; the slice labels are used."
            )
    return [
        replace(e, scan_label=scan_labels[_key(e)].label, scan_types=scan_labels[_key(e)].types)
        if _key(e) in weak_keys
        else e
        for e in examples
    ], problems


def _key(example: Example) -> ScanKey:
    return example.patient or "", example.scan
