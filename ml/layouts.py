"""Where labels stand and what they say: the layouts of data sets that people have."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ml.catalogue import BLEEDING_TYPES

POSITIVE_FOLDERS = {"hemorrhage", "hemorrhagic", "haemorrhage", "bleeding", "positive", "yes", "1", "ich"}
NEGATIVE_FOLDERS = {"normal", "no_hemorrhage", "non_hemorrhage", "no_haemorrhage", "healthy", "negative", "no", "0"}
LABELS = {"1": 1, "1.0": 1, "true": 1, "yes": 1, "0": 0, "0.0": 0, "false": 0, "no": 0, "": None}
LABEL_COLUMNS = ("label", "hemorrhage", "any")
NAME_COLUMNS = ("filename", "file", "path", "image", "id")
PATIENT_COLUMNS = ("patient", "patient_id", "group")
SCAN_LABEL_COLUMNS = ("scan_label", "study_label", "label", "hemorrhage", "any")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".dcm", ".dicom", ""}
MAX_TABLE_MB = 32
"""A table is read whole; one of 50,000 images has a few megabytes."""
MAX_NAME_BYTES = 255


class DatasetError(ValueError):
    """A data set cannot be used; its text is a sentence for the person who gave it, naming the file or row."""


@dataclass(frozen=True)
class Example:
    """One labelled slice.

    `name` is the path inside the data set, `label` 1 for hemorrhage, 0 for none, None for unknown. Images with the
    same `group` never stand on both sides of a split. `sha256` and `dhash` identify file and picture. `mask` is a picture of
    the same size in which somebody has outlined the blood: the column `mask` of the table, or the file of that name in `masks/`.
    `types` are those of `ml.catalogue.BLEEDING_TYPES` that the slice shows, None where nobody said: the column `subtypes` of the table.
    `scan_label` and `scan_types` are what was said of the patient's scan as a whole, None where nobody did or its slices say it all.
    """

    path: Path
    name: str
    label: int | None
    patient: str | None
    slice: int | None
    group: str
    dataset: str
    sha256: str = ""
    dhash: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    mask: Path | None = None
    types: frozenset[str] | None = None
    scan_label: int | None = None
    scan_types: frozenset[str] | None = None


@dataclass(frozen=True)
class Told:
    """What was said of a patient's scan as a whole, and where it stands."""

    label: int
    types: frozenset[str] | None
    where: str


def scan_key(example: Example) -> tuple[str, str, str]:
    """Return what the slices of one scan share: data set and patient; an image without a patient shares nothing."""
    return example.dataset, example.patient or "", "" if example.patient else example.name


def find_examples(root: Path, name: str) -> tuple[Path, str, list[Example], list[str]]:
    """Return the folder with the data, the layout, an entry for each image, none of them opened yet, and sentences about what is odd.

    `group` is filled in where a patient column or a groups file says something, and empty elsewhere.

    Args:
        root: the folder, or one that holds nothing but that folder.
        name: what the data set is called.

    Raises:
        DatasetError: no layout fits, a file is missing, or a label is unreadable.
    """
    base = _descend(root)
    manifest = _manifest_of(base)
    if manifest is None:
        return base, "folders", _from_folders(base, name), []
    return base, *_from_manifest(base, manifest, name)


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.name != "__MACOSX")


def _descend(root: Path) -> Path:
    """Return the folder that holds the data: `root`, or the only folder in it (as in most ZIP files)."""
    if not root.is_dir():
        raise DatasetError(f"There is no folder {root}.")
    inside = _visible(root)
    if len(inside) == 1 and inside[0].is_dir():
        return inside[0]
    return root


def _manifest_of(base: Path) -> Path | None:
    tables = [p for p in _visible(base) if p.suffix.lower() == ".csv" and p.name not in ("groups.csv", "patients.csv")]
    named = [p for p in tables if p.name.lower() in ("labels.csv", "manifest.csv")]
    if named:
        return named[0]
    if len(tables) > 1:
        raise DatasetError(f"Several tables could hold the labels ({', '.join(p.name for p in tables)}); name one of them labels.csv.")
    return tables[0] if tables else None


def _read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return header and rows, column names and values stripped; Kaggle's header has a space after its comma."""
    if path.stat().st_size > MAX_TABLE_MB * 2**20:
        raise DatasetError(f"{path.name} is larger than {MAX_TABLE_MB} MB.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as err:
        raise DatasetError(f"{path.name} is not a text file in UTF-8.") from err
    try:
        rows = [row for row in csv.reader(text.splitlines()) if row]
    except csv.Error as err:
        raise DatasetError(f"{path.name} is not a readable table: {err}.") from err
    if len(rows) < 2:
        raise DatasetError(f"{path.name} has no rows.")
    header = [column.strip().lower() for column in rows[0]]
    return header, [dict(zip(header, (value.strip() for value in row), strict=False)) for row in rows[1:]]


def _column(header: Sequence[str], known: Sequence[str]) -> str | None:
    return next((column for column in known if column in header), None)


def _from_manifest(base: Path, manifest: Path, dataset: str) -> tuple[str, list[Example], list[str]]:
    header, rows = _read_table(manifest)
    name_column, label_column = _column(header, NAME_COLUMNS), _column(header, LABEL_COLUMNS)
    told = _read_patients(base / "patients.csv")
    if name_column is None or (label_column is None and not told and "scan_label" not in header):
        raise DatasetError(f"{manifest.name} needs the columns filename and label (or id and hemorrhage); it has {', '.join(header)}.")
    kaggle = name_column == "id"
    groups = _read_groups(base / "groups.csv")
    patient_column = _column(header, PATIENT_COLUMNS)
    examples = []
    for number, row in enumerate(rows, start=2):
        given = row.get(name_column, "")
        name = f"head_ct/{int(given):03d}.png" if kaggle and re.fullmatch("[0-9]{1,9}", given) else given
        _require_no_formula(row, (name_column, patient_column, "mask"), f"{manifest.name}, line {number}")
        if label_column is not None and label_column not in row:
            raise DatasetError(f"{manifest.name}, line {number} ({given}): the label is missing.")
        label = _label_of(row.get(label_column or "", ""), "label", f"{manifest.name}, line {number} ({given})")
        path = base / name
        if not given or not _stays_inside(name):
            raise DatasetError(f"{manifest.name}, line {number}: {given[:100]!r} is not the name of a file in the data set.")
        if not path.is_file():
            raise DatasetError(f"{manifest.name}, line {number}: the image {name} is missing.")
        patient = row.get(patient_column, "") if patient_column else ""
        group = f"patient {patient}" if patient else f"row {groups[given]}" if given in groups else ""
        slice_text = row.get("slice", "")
        slice_number = _whole_number(slice_text)
        mask = _mask_of(base, name, row.get("mask", ""), f"{manifest.name}, line {number}")
        _join_told(told, patient, row.get("scan_label", ""), f"{manifest.name}, line {number}")
        types = _types_of(row.get("subtypes"), label, f"{manifest.name}, line {number}")
        examples.append(Example(path, name, label, patient or None, slice_number, group, dataset, mask=mask, types=types))
    strangers = sorted(set(groups) - {row.get(name_column, "") for row in rows})
    if strangers:
        raise DatasetError(f"groups.csv names {strangers[0]}, which is no image of {manifest.name}; both must write the names alike.")
    most_common, times = Counter(example.name for example in examples).most_common(1)[0]
    if times > 1:
        raise DatasetError(f"{manifest.name} lists {most_common} {times} times.")
    return "kaggle head_ct" if kaggle else "manifest", *with_scan_labels(examples, told)


def _label_of(text: str, what: str, where: str) -> int | None:
    if text.lower() not in LABELS:
        raise DatasetError(f"{where}: the {what} {text[:60]!r} is neither 0 nor 1 nor empty.")
    return LABELS[text.lower()]


def _read_patients(path: Path) -> dict[str, Told]:
    """Return what a table of patients says of their scans; nothing where it is not there, or holds no labels."""
    if not path.is_file():
        return {}
    header, rows = _read_table(path)
    patient_column, label_column = _column(header, PATIENT_COLUMNS), _column(header, SCAN_LABEL_COLUMNS)
    told: dict[str, Told] = {}
    if patient_column is None or label_column is None:
        return told
    for number, row in enumerate(rows, start=2):
        where = f"{path.name}, line {number}"
        label = _join_told(told, row.get(patient_column, ""), row.get(label_column, ""), where)
        if label is not None:
            told[row[patient_column]] = Told(label, _types_of(row.get("subtypes"), label, where), where)
    return told


def _join_told(told: dict[str, Told], patient: str, text: str, where: str) -> int | None:
    """Add what a cell says of a patient's scan, and return it; None where the cell is empty."""
    label = _label_of(text, "label of the scan", where)
    if label is None:
        return None
    if not patient:
        raise DatasetError(f"{where}: a label of a scan needs a patient beside it.")
    before = told.setdefault(patient, Told(label, None, where))
    if before.label != label:
        raise DatasetError(f"{where}: the scan of patient {patient[:60]} has the label {label}, and {before.label} in {before.where}.")
    return label


def with_scan_labels(examples: Sequence[Example], told: Mapping[str, Told]) -> tuple[list[Example], list[str]]:
    """Return the examples with what was told of their patients' scans, and sentences about what does not agree.

    Where the labels of all slices of a scan are known they say it all, so that nothing is added.

    Raises:
        DatasetError: a scan is told to show no blood, and one of its slices is labelled with it.
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
            raise DatasetError(f"{said.where}: the scan of patient {patient[:60]} has the label 0, but its slice {positive} has 1.")
        if None in labels:
            weak.add(patient)
        elif said.label == 1 and 1 not in labels:
            problems.append(
                f"{said.where}: the scan of patient {patient[:60]} has the label 1, but all its slices have 0; the slices count."
            )
    return [
        replace(e, scan_label=told[e.patient].label, scan_types=told[e.patient].types) if e.patient and e.patient in weak else e
        for e in examples
    ], problems


def _types_of(given: str | None, label: int | None, where: str) -> frozenset[str] | None:
    """Return the types of bleeding that a cell such as "epidural|subdural" names; an empty one tells of no type where there is no blood."""
    if not given:
        return frozenset() if given is not None and label == 0 else None
    named = frozenset(name.strip().lower() for name in given.split("|"))
    if label != 1:
        raise DatasetError(f"{where}: the types of bleeding {given[:60]!r} stand beside a label that is not 1.")
    if unknown := sorted(named - set(BLEEDING_TYPES)):
        raise DatasetError(f"{where}: {unknown[0][:40]!r} is no type of bleeding; there are {', '.join(BLEEDING_TYPES)}.")
    return named


def _whole_number(text: str) -> int | None:
    """Return the whole number that a cell of a table holds, as 12, -3 or 12.0; None if it holds none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def _stays_inside(name: str) -> bool:
    """True if this can be the name of a file in a folder: no path that leads elsewhere, and nothing that no file is called."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts and name.isprintable() and len(name.encode()) <= MAX_NAME_BYTES


def _require_no_formula(row: Mapping[str, str], columns: Sequence[str | None], where: str) -> None:
    """Refuse a cell that a spreadsheet would compute: names and patients are written to tables that people open in one."""
    for column in columns:
        text = row.get(column, "") if column else ""
        if len(text) > 1 and text[0] in "=+-@" and not re.fullmatch(r"[+-][0-9.]+", text):
            raise DatasetError(f"{where}: the {column} {text[:40]!r} is a formula to a spreadsheet; please write it without {text[0]}.")


def _mask_of(base: Path, name: str, given: str, where: str) -> Path | None:
    """Return the outline of an image: what its row names, else its own name in `masks/`, with or without its first folder."""
    if given:
        if not _stays_inside(given) or not (base / given).is_file():
            raise DatasetError(f"{where}: the outline {given[:100]!r} is no file of the data set.")
        return base / given
    own = Path(name).with_suffix(".png")
    beside = [base / "masks" / own, base / "masks" / Path(*own.parts[1:])] if len(own.parts) > 1 else [base / "masks" / own]
    return next((path for path in beside if path.is_file()), None)


def _read_groups(path: Path) -> Mapping[str, str]:
    if not path.is_file():
        return {}
    header, rows = _read_table(path)
    name_column = _column(header, NAME_COLUMNS)
    if name_column is None or "group" not in header:
        raise DatasetError(f"{path.name} needs the columns id (or filename) and group; it has {', '.join(header)}.")
    for number, row in enumerate(rows, start=2):
        _require_no_formula(row, ("group",), f"{path.name}, line {number}")
    return {row.get(name_column, ""): row["group"] for row in rows if row.get("group")}


def _from_folders(base: Path, dataset: str) -> list[Example]:
    examples = []
    for folder in (p for p in _visible(base) if p.is_dir()):
        word = folder.name.lower().replace(" ", "_").replace("-", "_")
        label = 1 if word in POSITIVE_FOLDERS else 0 if word in NEGATIVE_FOLDERS else None
        if label is None:
            continue
        for path in sorted(folder.rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(base).parts)
            if path.is_file() and not hidden and path.suffix.lower() in IMAGE_SUFFIXES:
                name = path.relative_to(base).as_posix()
                examples.append(Example(path, name, label, None, None, "", dataset, mask=_mask_of(base, name, "", dataset)))
    if not examples:
        raise DatasetError(
            f"{dataset} has neither a table (labels.csv with the columns filename and label) "
            "nor one folder a class (such as hemorrhage and normal)."
        )
    return examples
