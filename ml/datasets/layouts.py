"""The supported layouts of data sets: where images and labels are found."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from ml.datasets.cq500 import from_cq500, is_cq500
from ml.datasets.examples import Example
from ml.datasets.rsna import from_rsna, is_rsna
from ml.datasets.scan_labels import add_scan_label, read_patients, with_scan_labels
from ml.datasets.tables import (
    PATIENT_COLUMNS,
    column_of,
    label_of,
    read_table,
    require_no_formula,
    stays_inside,
    types_of,
    whole_number,
)
from ml.errors import DatasetError

__all__ = ["DatasetError", "Example", "find_examples"]

POSITIVE_FOLDERS = {
    "hemorrhage",
    "hemorrhagic",
    "haemorrhage",
    "bleeding",
    "positive",
    "yes",
    "1",
    "ich",
}
NEGATIVE_FOLDERS = {
    "normal",
    "no_hemorrhage",
    "non_hemorrhage",
    "no_haemorrhage",
    "healthy",
    "negative",
    "no",
    "0",
}
LABEL_COLUMNS = ("label", "hemorrhage", "any")
NAME_COLUMNS = ("filename", "file", "path", "image", "id")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".dcm", ".dicom", ""}


def find_examples(
    root: Path, name: str, on_header: Callable[[int], None] = lambda total: None
) -> tuple[Path, str, list[Example], list[str]]:
    """Return the folder with the data, the layout, an example for each image without opening it,
    and notes about irregularities.

    `group` is set where there is a patient column or a groups file, else empty.

    Args:
        root: the folder, or one that contains only that folder.
        name: name of the data set.
        on_header: called with the number of images or scans before each header is read, in layouts
            that need headers; raises to stop.

    Raises:
        DatasetError: no layout matches, a file is missing, or a label is invalid.
    """
    base = _descend(root)
    for table in (
        path for path in _visible(base) if path.suffix.lower() == ".csv" and path.is_file()
    ):
        if is_rsna(table):
            return base, *from_rsna(base, table, name, on_header)
        if is_cq500(table):
            return base, *from_cq500(base, table, name, on_header)
    manifest = _manifest_of(base)
    if manifest is None:
        return base, "folders", _from_folders(base, name), []
    return base, *_from_manifest(base, manifest, name)


def _visible(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir() if not p.name.startswith(".") and p.name != "__MACOSX"
    )


def _descend(root: Path) -> Path:
    """Return the folder that holds the data: `root`, or the only folder in it (as in most ZIP
    files).
    """
    if not root.is_dir():
        raise DatasetError(f"There is no folder {root}.")
    inside = _visible(root)
    if len(inside) == 1 and inside[0].is_dir():
        return inside[0]
    return root


def _manifest_of(base: Path) -> Path | None:
    tables = [
        p
        for p in _visible(base)
        if p.suffix.lower() == ".csv" and p.name not in ("groups.csv", "patients.csv")
    ]
    named = [p for p in tables if p.name.lower() in ("labels.csv", "manifest.csv")]
    if named:
        return named[0]
    if len(tables) > 1:
        raise DatasetError(
            f"Several tables could hold the labels ({', '.join(p.name for p in tables)}); name one"
            " of them labels.csv."
        )
    return tables[0] if tables else None


def _from_manifest(
    base: Path, manifest: Path, dataset: str
) -> tuple[str, list[Example], list[str]]:
    header, rows = read_table(manifest)
    name_column, label_column = column_of(header, NAME_COLUMNS), column_of(header, LABEL_COLUMNS)
    of_patients = read_patients(base / "patients.csv")
    if name_column is None or (
        label_column is None and not of_patients and "scan_label" not in header
    ):
        raise DatasetError(
            f"{manifest.name} needs the columns filename and label (or id and hemorrhage); it has"
            f" {', '.join(header)}."
        )
    kaggle = name_column == "id"
    groups = _read_groups(base / "groups.csv")
    patient_column = column_of(header, PATIENT_COLUMNS)
    examples = []
    odd_slices: list[str] = []
    for number, row in enumerate(rows, start=2):
        given = row.get(name_column, "")
        name = (
            f"head_ct/{int(given):03d}.png"
            if kaggle and re.fullmatch("[0-9]{1,9}", given)
            else given
        )
        require_no_formula(
            row, (name_column, patient_column, "mask"), f"{manifest.name}, line {number}"
        )
        if label_column is not None and label_column not in row:
            raise DatasetError(f"{manifest.name}, line {number} ({given}): the label is missing.")
        label = label_of(
            row.get(label_column or "", ""), "label", f"{manifest.name}, line {number} ({given})"
        )
        path = base / name
        if not given or not stays_inside(name):
            raise DatasetError(
                f"{manifest.name}, line {number}: {given[:100]!r} is not the name of a file in the"
                " data set."
            )
        if not path.is_file():
            raise DatasetError(f"{manifest.name}, line {number}: the image {name} is missing.")
        patient = row.get(patient_column, "") if patient_column else ""
        group = (
            f"patient {patient}" if patient else f"row {groups[given]}" if given in groups else ""
        )
        slice_number = whole_number(row.get("slice", ""))
        if row.get("slice") and slice_number is None:
            odd_slices.append(f"{row['slice'][:40]!r} of {name}")
        mask = _mask_of(base, name, row.get("mask", ""), f"{manifest.name}, line {number}")
        add_scan_label(
            of_patients, patient, row.get("scan_label", ""), f"{manifest.name}, line {number}"
        )
        types = types_of(row.get("subtypes"), label, f"{manifest.name}, line {number}")
        examples.append(
            Example(
                path,
                name,
                label,
                patient or None,
                slice_number,
                group,
                dataset,
                mask=mask,
                types=types,
            )
        )
    unknown_names = sorted(set(groups) - {row.get(name_column, "") for row in rows})
    if unknown_names:
        raise DatasetError(
            f"groups.csv names {unknown_names[0]}, which is not an image of {manifest.name}; both"
            " must spell the names alike."
        )
    most_common, times = Counter(example.name for example in examples).most_common(1)[0]
    if times > 1:
        raise DatasetError(f"{manifest.name} lists {most_common} {times} times.")
    examples, odd = with_scan_labels(examples, of_patients)
    if odd_slices:
        odd.append(
            f"Slice numbers that are not integers: {len(odd_slices)}, such as {odd_slices[0]};"
            " they are ignored."
        )
    return "kaggle head_ct" if kaggle else "manifest", examples, odd


def _mask_of(base: Path, name: str, given: str, where: str) -> Path | None:
    """Return the segmentation mask of an image: the file named in its row, else its own name in
    `masks/`, with or without its first folder.
    """
    if given:
        if not stays_inside(given) or not (base / given).is_file():
            raise DatasetError(f"{where}: the mask {given[:100]!r} is not a file of the data set.")
        return base / given
    own = Path(name).with_suffix(".png")
    beside = (
        [base / "masks" / own, base / "masks" / Path(*own.parts[1:])]
        if len(own.parts) > 1
        else [base / "masks" / own]
    )
    return next((path for path in beside if path.is_file()), None)


def _read_groups(path: Path) -> Mapping[str, str]:
    if not path.is_file():
        return {}
    header, rows = read_table(path)
    name_column = column_of(header, NAME_COLUMNS)
    if name_column is None or "group" not in header:
        raise DatasetError(
            f"{path.name} needs the columns id (or filename) and group; it has {', '.join(header)}."
        )
    for number, row in enumerate(rows, start=2):
        require_no_formula(row, ("group",), f"{path.name}, line {number}")
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
                examples.append(
                    Example(
                        path,
                        name,
                        label,
                        None,
                        None,
                        "",
                        dataset,
                        mask=_mask_of(base, name, "", dataset),
                    )
                )
    if not examples:
        raise DatasetError(
            f"{dataset} has neither a table (labels.csv with the columns filename and label) "
            "nor one folder per class (such as hemorrhage and normal)."
        )
    return examples
