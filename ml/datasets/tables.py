"""Read and validate the tables of data sets, with limits."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml.catalogue import BLEEDING_TYPES
from ml.errors import DatasetError

LABELS = {"1": 1, "true": 1, "yes": 1, "0": 0, "false": 0, "no": 0, "": None}
PATIENT_COLUMNS = ("patient", "patient_id", "patient_number", "subject", "subject_id", "group")
NO_PATIENT = {"", "nan", "none", "null", "n/a"}
"""What programs write for a patient that is missing, in lower case."""
MAX_TABLE_MB = 32
"""A table is read as a whole; one of 50,000 images has a few megabytes."""
MOST_BLANK_LINES = 10
"""Maximum number of lines to search for the first rows of a table."""
MAX_NAME_BYTES = 255
ROUNDING = 0.001
"""Boxes may exceed the image by this share of its side, since their numbers are rounded."""
MOST_IMAGES = 50_000
"""Larger public data sets must be reduced: each image is decoded and compared with every other."""


class Row(dict[str, str]):
    """The cells of a row by column; `line` is its line number in the file."""

    line: int = 0


def read_table(path: Path) -> tuple[list[str], list[Row]]:
    """Return header and rows, column names and values stripped; Kaggle's header has a space after
    its comma. Rows without any text, which spreadsheets leave behind, are skipped.

    If a header has semicolons and no comma, as in much of Europe, or only tabs, these separate the
    columns; a first line such as "sep=;" declares the separator.

    Raises:
        DatasetError: the file is too large, not UTF-8 text, unreadable or empty, or has a column
            twice.
    """
    if path.stat().st_size > MAX_TABLE_MB * 2**20:
        raise DatasetError(f"{path.name} is larger than {MAX_TABLE_MB} MB.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as err:
        raise DatasetError(f"{path.name} is not a text file in UTF-8.") from err
    lines = text.splitlines()
    declared = re.fullmatch(r"sep=(.)[,;\s]*", lines[0]) if lines else None
    before = 1 if declared else 0
    comma = declared.group(1) if declared else separator_in(lines[before:])
    reader = csv.reader(lines[before:], delimiter=comma)
    rows: list[tuple[int, list[str]]] = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((reader.line_num + before, row))
    except csv.Error as err:
        raise DatasetError(f"{path.name} is not a readable table: {err}.") from err
    if len(rows) < 2:
        raise DatasetError(f"{path.name} has no rows.")
    header = [column.strip().lower() for column in rows[0][1]]
    if twice := [column for column, times in Counter(header).items() if column and times > 1]:
        raise DatasetError(f"{path.name} has the column {twice[0][:60]!r} more than once.")
    table_rows = []
    for line, cells in rows[1:]:
        table_row = Row(zip(header, (value.strip() for value in cells), strict=False))
        table_row.line = line
        table_rows.append(table_row)
    return header, table_rows


def separator_in(lines: Sequence[str]) -> str:
    """Return what separates the columns of a table, judging by its first nonblank line."""
    first = next((line for line in lines if line.strip()), "")
    return next((mark for mark in ",;\t" if mark in first), ",")


def first_rows(path: Path, length: int = 10_000) -> list[list[str]]:
    """Return the first nonblank rows of a table, with cells stripped, to determine its layout; at
    most `length` characters of each line are read.
    """
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        lines = [file.readline(length) for _ in range(MOST_BLANK_LINES)]
    try:
        reader = csv.reader(lines, delimiter=separator_in(lines))
        rows = [[cell.strip() for cell in row] for row in reader]
    except csv.Error:
        return []
    return [row for row in rows if any(row)]


def column_of(header: Sequence[str], known: Sequence[str]) -> str | None:
    """Return the column with the first of the known names that a header has, in any spelling:
    "PatientID" and "Patient ID" are patient_id.
    """
    spelled = {re.sub(r"[\s_.-]", "", column): column for column in reversed(header)}
    return next(
        (spelled[plain] for name in known if (plain := name.replace("_", "")) in spelled), None
    )


def read_label(text: str) -> int | None:
    """Return the label in a cell, such as 1, "yes", "1.0" or "1,0"; None for an empty cell.

    Raises:
        KeyError: it is not a label.
    """
    return LABELS[re.sub(r"^([01])[.,]0*$", r"\1", text.strip()).lower()]


def label_of(text: str, what: str, where: str) -> int | None:
    """Return the label in a cell; `what` and `where` are for error messages.

    Raises:
        DatasetError: it is not a label.
    """
    try:
        return read_label(text)
    except KeyError as err:
        raise DatasetError(
            f"{where}: the {what} {text[:60]!r} is neither 0 nor 1 nor empty."
        ) from err


def types_of(cell: str | None, label: int | None, where: str) -> frozenset[str] | None:
    """Parse the types of hemorrhage in a cell such as "epidural|subdural"; an empty cell means no
    type if the label is 0, else unknown. `where` is the cell's place, for error messages.

    Raises:
        DatasetError: a type is unknown, or types are given although the label is not 1.
    """
    if not cell:
        return frozenset() if cell is not None and label == 0 else None
    named = frozenset(name.strip().lower() for name in cell.split("|"))
    if label != 1:
        raise DatasetError(
            f"{where}: the types of hemorrhage {cell[:60]!r} are given, but the label is not 1."
        )
    if unknown := sorted(named - set(BLEEDING_TYPES)):
        raise DatasetError(
            f"{where}: {unknown[0][:40]!r} is not a type of hemorrhage; the types are"
            f" {', '.join(BLEEDING_TYPES)}."
        )
    return named


def whole_number(text: str) -> int | None:
    """Parse an integer such as 12, -3 or 12.0; None if the cell does not hold one."""
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def is_inside(name: str) -> bool:
    """Return whether this is a valid relative path inside the folder."""
    return (
        not Path(name).is_absolute()
        and ".." not in Path(name).parts
        and name.isprintable()
        and len(name.encode()) <= MAX_NAME_BYTES
    )


def require_no_formula(row: Mapping[str, str], columns: Sequence[str | None], where: str) -> None:
    """Raise DatasetError for a cell that a spreadsheet would evaluate as a formula: names and
    patients are written to tables that users open in one.
    """
    for column in columns:
        text = row.get(column, "") if column else ""
        if len(text) > 1 and text[0] in "=+-@" and not re.fullmatch(r"[+-][0-9.]+", text):
            raise DatasetError(
                f"{where}: the {column} {text[:40]!r} would be a formula in a spreadsheet; please"
                f" write it without {text[0]}."
            )


def boxes_outside(text: str) -> list[str]:
    """Return the boxes in a cell, "type x y width height" separated by ";", that do not lie within
    the image; numbers are fractions of its sides, x and y those of the center.
    """
    return [box for box in map(str.strip, text.split(";")) if box and not _is_inside(box)]


def _is_inside(box: str) -> bool:
    try:
        x, y, width, height = (float(number) for number in box.split()[1:])
    except ValueError:
        return False
    return all(
        side > 0 and center - side / 2 >= -ROUNDING and center + side / 2 <= 1 + ROUNDING
        for center, side in ((x, width), (y, height))
    )
