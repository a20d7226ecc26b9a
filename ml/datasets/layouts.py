"""Where labels stand and what they say: the layouts of data sets that people have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml.datasets.cq500 import from_cq500, is_cq500
from ml.datasets.examples import Example
from ml.datasets.rsna import from_rsna, is_rsna
from ml.datasets.scan_labels import join_told, read_patients, with_scan_labels
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
    """Return the folder with the data, the layout, an entry for each image, none of them opened
    yet, and sentences about what is odd.

    `group` is filled in where a patient column or a groups file says something, and empty
    elsewhere.

    Args:
        root: the folder, or one that holds nothing but that folder.
        name: what the data set is called.
        on_header: where headers tell what a data set holds, asked before those of each image or
            scan, of how many; raises to stop.

    Raises:
        DatasetError: no layout fits, a file is missing, or a label is unreadable.
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


@dataclass(frozen=True)
class _Manifest:
    """A table of images: what its columns are called, and what stands beside it.

    Attributes:
        path, base: the table, and the folder of the data set.
        dataset: its name.
        name, label, patient: columns; the last two None where there is none.
        groups: by the name of the image as the table writes it.
    """

    path: Path
    base: Path
    dataset: str
    name: str
    label: str | None
    patient: str | None
    groups: Mapping[str, str]

    @property
    def is_kaggle(self) -> bool:
        """Whether images are named by their numbers in the folder head_ct."""
        return self.name == "id"

    def example(self, row: Mapping[str, str], where: str) -> Example:
        """Return what a row says of an image; `where` the row is, for the sentence of an error.

        Raises:
            DatasetError: a name, label, outline or type is wrong, or the image is missing.
        """
        given = row.get(self.name, "")
        require_no_formula(row, (self.name, self.patient, "mask"), where)
        if self.label is not None and self.label not in row:
            raise DatasetError(f"{where} ({given}): the label is missing.")
        label = label_of(row.get(self.label or "", ""), "label", f"{where} ({given})")
        name = self._file_of(given, where)
        patient = row.get(self.patient, "") if self.patient else ""
        row_group = f"row {self.groups[given]}" if given in self.groups else ""
        return Example(
            self.base / name,
            name,
            label,
            patient or None,
            whole_number(row.get("slice", "")),
            f"patient {patient}" if patient else row_group,
            self.dataset,
            mask=_mask_of(self.base, name, row.get("mask", ""), where),
            types=types_of(row.get("subtypes"), label, where),
        )

    def _file_of(self, given: str, where: str) -> str:
        """Return the name of the image's file within the data set."""
        is_number = self.is_kaggle and re.fullmatch("[0-9]{1,9}", given)
        name = f"head_ct/{int(given):03d}.png" if is_number else given
        if not given or not stays_inside(name):
            raise DatasetError(
                f"{where}: {given[:100]!r} is not the name of a file in the data set."
            )
        if not (self.base / name).is_file():
            raise DatasetError(f"{where}: the image {name} is missing.")
        return name

    def require_sound(self, rows: Sequence[Mapping[str, str]], examples: Sequence[Example]) -> None:
        """Refuse groups of images that are not in the table, and images that are twice."""
        strangers = sorted(set(self.groups) - {row.get(self.name, "") for row in rows})
        if strangers:
            raise DatasetError(
                f"groups.csv names {strangers[0]}, which is no image of {self.path.name}; both"
                " must write the names alike."
            )
        most_common, times = Counter(example.name for example in examples).most_common(1)[0]
        if times > 1:
            raise DatasetError(f"{self.path.name} lists {most_common} {times} times.")


def _from_manifest(
    base: Path, manifest: Path, dataset: str
) -> tuple[str, list[Example], list[str]]:
    header, rows = read_table(manifest)
    name_column, label_column = column_of(header, NAME_COLUMNS), column_of(header, LABEL_COLUMNS)
    told = read_patients(base / "patients.csv")
    if name_column is None or (label_column is None and not told and "scan_label" not in header):
        raise DatasetError(
            f"{manifest.name} needs the columns filename and label (or id and hemorrhage); it has"
            f" {', '.join(header)}."
        )
    table = _Manifest(
        manifest,
        base,
        dataset,
        name_column,
        label_column,
        column_of(header, PATIENT_COLUMNS),
        _read_groups(base / "groups.csv"),
    )
    examples, odd_slices = [], []
    for number, row in enumerate(rows, start=2):
        where = f"{manifest.name}, line {number}"
        example = table.example(row, where)
        if row.get("slice") and example.slice is None:
            odd_slices.append(f"{row['slice'][:40]!r} of {example.name}")
        join_told(told, example.patient or "", row.get("scan_label", ""), where)
        examples.append(example)
    table.require_sound(rows, examples)
    examples, odd = with_scan_labels(examples, told)
    if odd_slices:
        odd.append(
            f"Slices without a whole number: {len(odd_slices)}, such as {odd_slices[0]}; they count"
            " as unknown."
        )
    return "kaggle head_ct" if table.is_kaggle else "manifest", examples, odd


def _mask_of(base: Path, name: str, given: str, where: str) -> Path | None:
    """Return the outline of an image: what its row names, else its own name in `masks/`, with or
    without its first folder.
    """
    if given:
        if not stays_inside(given) or not (base / given).is_file():
            raise DatasetError(f"{where}: the outline {given[:100]!r} is no file of the data set.")
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
            "nor one folder a class (such as hemorrhage and normal)."
        )
    return examples
