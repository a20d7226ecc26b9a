"""Labels of whole scans, where nobody labeled each slice: a table of patients, or a column beside
the slices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ml.datasets.examples import Example
from ml.datasets.tables import PATIENT_COLUMNS, column_of, label_of, read_table, types_of
from ml.errors import DatasetError

SCAN_LABEL_COLUMNS = ("scan_label", "study_label", "label", "hemorrhage", "any")


@dataclass(frozen=True)
class Told:
    """What was said of a patient's scan as a whole, and where it stands."""

    label: int
    types: frozenset[str] | None
    where: str


def read_patients(path: Path) -> dict[str, Told]:
    """Return what a table of patients says of their scans; nothing where it is not there, or holds
    no labels.
    """
    if not path.is_file():
        return {}
    header, rows = read_table(path)
    patient_column, label_column = (
        column_of(header, PATIENT_COLUMNS),
        column_of(header, SCAN_LABEL_COLUMNS),
    )
    told: dict[str, Told] = {}
    if patient_column is None or label_column is None:
        return told
    for row in rows:
        number = row.line
        where = f"{path.name}, line {number}"
        before = told.get(row.get(patient_column, ""))
        label = join_told(told, row.get(patient_column, ""), row.get(label_column, ""), where)
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
                f"{where}: the scan of patient {patient} shows other types of bleeding than in"
                f" {before.where}."
            )
        if before is None or before.types is None:
            told[row[patient_column]] = Told(label, types, where)
    return told


def join_told(told: dict[str, Told], patient: str, text: str, where: str) -> int | None:
    """Add what a cell says of a patient's scan, and return it; None where the cell is empty."""
    label = label_of(text, "label of the scan", where)
    if label is None:
        return None
    if not patient:
        raise DatasetError(f"{where}: a label of a scan needs a patient beside it.")
    before = told.setdefault(patient, Told(label, None, where))
    if before.label != label:
        raise DatasetError(
            f"{where}: the scan of patient {patient[:60]} has the label {label}, and {before.label}"
            f" in {before.where}."
        )
    return label


def with_scan_labels(
    examples: Sequence[Example], told: Mapping[str, Told]
) -> tuple[list[Example], list[str]]:
    """Return the examples with what was told of their patients' scans, and sentences about what
    does not agree.

    Where the labels of all slices of a scan are known they say it all, so that nothing is added.

    Raises:
        DatasetError: a scan is told to show no blood, and one of its slices is labeled with it.
    """
    of_patient: dict[str, list[Example]] = {}
    for example in examples:
        if example.patient and example.patient in told:
            of_patient.setdefault(example.patient, []).append(example)
    weak, problems = set(), []
    for patient, own in of_patient.items():
        said, labels = told[patient], {example.label for example in own}
        if said.label == 0 and 1 in labels:
            positive = next(example.name for example in own if example.label == 1)
            raise DatasetError(
                f"{said.where}: the scan of patient {patient[:60]} has the label 0, but its slice"
                f" {positive} has 1."
            )
        if None in labels:
            weak.add(patient)
        elif said.label == 1 and 1 not in labels:
            problems.append(
                f"{said.where}: the scan of patient {patient[:60]} has the label 1, but all its"
                " slices have 0; the slices count."
            )
    return [
        (
            replace(e, scan_label=told[e.patient].label, scan_types=told[e.patient].types)
            if e.patient and e.patient in weak
            else e
        )
        for e in examples
    ], problems
