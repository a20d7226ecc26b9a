"""Folders whose names are labels, and what must not lie in them: a name counts as the label of all
images inside only if nothing inside gives another one.
"""

from __future__ import annotations

from pathlib import Path

from ml.catalogue import BLEEDING_TYPES
from ml.datasets.tables import column_of, read_table
from ml.errors import DatasetError

POSITIVE_FOLDERS = {
    "hemorrhage",
    "hemorrhagic",
    "haemorrhage",
    "haemorrhagic",
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
    "non_hemorrhagic",
    "no_haemorrhage",
    "non_haemorrhage",
    "non_haemorrhagic",
    "healthy",
    "negative",
    "no",
    "0",
}
CLASS_FOLDERS = POSITIVE_FOLDERS | NEGATIVE_FOLDERS | set(BLEEDING_TYPES)
SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test", "testing"}
TABLE_SUFFIXES = {".csv", ".tsv"}
SPREADSHEET_SUFFIXES = {".xls", ".xlsx", ".ods"}
LABEL_COLUMNS = ("label", "hemorrhage", "any")
OPPOSITE_COLUMNS = ("no_hemorrhage", "no_haemorrhage", "normal", "healthy")
"""Columns that say 1 where there is no hemorrhage."""
TABLES_OF_LABELS = ("labels", "manifest")


def word_of(folder: Path) -> str:
    """Return a folder's name as it is compared with the names of classes."""
    return folder.name.lower().replace(" ", "_").replace("-", "_")


def visible(folder: Path) -> list[Path]:
    """Return what a folder contains, without what systems hide."""
    return sorted(
        p for p in folder.iterdir() if not p.name.startswith(".") and p.name != "__MACOSX"
    )


def require_one_label(folder: Path, base: Path) -> None:
    """Refuse a folder that may hold other labels than that of its name.

    Raises:
        DatasetError: a table of labels lies in it, or the folder of the other class.
    """
    for path in visible(folder):
        name = path.relative_to(base).as_posix()
        if path.is_file() and _may_hold_labels(path):
            raise DatasetError(
                f"{name} may hold the labels of its folder, which are given by the names of folders"
                " here; please move it beside them, or leave it out."
            )
        if path.is_dir():
            if _contradicts(path, folder):
                raise DatasetError(
                    f"The folder {name} is named like a class, and lies in that of the other one."
                )
            require_one_label(path, base)


def _may_hold_labels(path: Path) -> bool:
    """Return whether a file is a table that may have a column of labels."""
    suffix = path.suffix.lower()
    if path.stem.lower() in TABLES_OF_LABELS and suffix in TABLE_SUFFIXES | SPREADSHEET_SUFFIXES:
        return True
    if suffix not in TABLE_SUFFIXES:
        return suffix in SPREADSHEET_SUFFIXES
    try:
        header, _ = read_table(path)
    except DatasetError:
        return True
    return column_of(header, (*LABEL_COLUMNS, *BLEEDING_TYPES)) is not None


def _contradicts(folder: Path, outer: Path) -> bool:
    """Return whether a folder within that of a class is named like the other class; numbers may
    count patients if there are more than two of them.
    """
    word, of_outer = word_of(folder), word_of(outer)
    if of_outer not in CLASS_FOLDERS or word not in CLASS_FOLDERS:
        return False
    numbers = {word_of(other) for other in visible(outer) if word_of(other).isdigit()}
    if word.isdigit() and not numbers <= {"0", "1"}:
        return False
    return (word in NEGATIVE_FOLDERS) != (of_outer in NEGATIVE_FOLDERS)
