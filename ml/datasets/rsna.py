"""The layout of the RSNA's hemorrhage challenge of 2019 (A. Flanders et al., Radiology: Artificial
Intelligence 2020).

`stage_2_train.csv` (or stage 1's) has the columns ID and Label and six rows for each image,
ID_0a1b2c3d4_epidural and so on, the last of them ID_0a1b2c3d4_any; some rows are duplicated. The
files ID_0a1b2c3d4.dcm are in a folder next to it, such as stage_2_train. Patient and slice order
come from the DICOM headers. Rows without a file are ignored, so a subset of the 752,803 images can
be used with the complete table.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from ml.catalogue import BLEEDING_TYPES
from ml.datasets.dicom_headers import Header, from_foot_to_head, read_header
from ml.datasets.examples import Example
from ml.datasets.tables import (
    MOST_BLANK_LINES,
    MOST_IMAGES,
    first_rows,
    read_label,
    require_no_formula,
    separator_in,
)
from ml.errors import DatasetError, ImageError

MAX_TABLE_MB = 256
"""The complete table has 4.5 million rows and 120 MB; it is read row by row and takes about as much
memory.
"""
MOST_ABSENT = 1_000_000
"""Maximum number of images in the table without a file; their names are stored for counting."""
FACTS = (*BLEEDING_TYPES, "any")
ROW = re.compile(rf"([A-Za-z0-9][A-Za-z0-9_.-]{{0,99}})_({'|'.join(FACTS)})")
SUFFIX = ".dcm"


def is_rsna(table: Path) -> bool:
    """Return whether a table has this layout and is not the sample submission, whose labels are all
    0.5.
    """
    if "submission" in table.name.lower():
        return False
    header, first = [*first_rows(table, 200), [""], [""]][:2]
    at = _first_column(header)
    return at is not None and bool(ROW.fullmatch("".join(first[at : at + 1])))


def _first_column(header: Sequence[str]) -> int | None:
    """Return where the columns ID and Label begin: first, or after a column of row numbers, which
    pandas writes without a name; None if the table has other columns.
    """
    words = [word.strip().lower() for word in header]
    at = 1 if words[0] in ("", "unnamed: 0") else 0
    return at if words[at:] == ["id", "label"] else None


def from_rsna(
    base: Path, table: Path, dataset: str, on_header: Callable[[int], None] = lambda total: None
) -> tuple[str, list[Example], list[str]]:
    """Return the layout's name, an example for each file that has rows, and notes about the
    others.

    A patient's second series is a scan of its own. `on_header` is as in
    `ml.datasets.layouts.find_examples`.

    Raises:
        DatasetError: the table is too large or has an invalid row, there are too many images, or
            none has a row.
    """
    paths, doubled = _by_name(_images(base))
    if len(paths) > MOST_IMAGES:
        raise DatasetError(
            f"{dataset} holds {len(paths):,} images; at most {MOST_IMAGES:,} are read. Keep a part"
            " of the patients."
        )
    if not paths:
        raise DatasetError(
            f"{dataset} holds no DICOM files (.dcm) for {table.name}; pictures need a table with"
            " the columns filename and label."
        )
    labels_of, absent = _read(table, paths)
    problems = []
    if unclear := sorted(name for name, (label, _) in labels_of.items() if label is None):
        problems.append(
            f"{len(unclear):,} images have rows for some types of bleeding only, and none says that"
            f" they show one, so their label is unknown; the first is {unclear[0]}{SUFFIX}."
        )
    if doubled:
        problems.append(
            f"{len(doubled):,} images are in more than one folder, of which the last is read; the"
            f" first such image is {min(doubled)}{SUFFIX}."
        )
    if absent:
        problems.append(
            f"{absent:,} images of {table.name} are not in this data set; their rows were ignored."
        )
    if unlabeled := sorted(set(paths) - set(labels_of)):
        problems.append(
            f"{len(unlabeled):,} images have no row in {table.name} and are left out; the first is"
            f" {unlabeled[0]}{SUFFIX}."
        )
    if not labels_of:
        raise DatasetError(
            f"None of the {len(paths):,} images of {dataset} has a row in {table.name}."
        )
    headers = []
    for name in sorted(labels_of):
        on_header(len(labels_of))
        try:
            headers.append(read_header(paths[name]))
        except ImageError as err:
            problems.append(f"{paths[name].relative_to(base).as_posix()} is left out: {err}")
    return "RSNA 2019", list(_examples(base, dataset, headers, labels_of)), problems


def _examples(
    base: Path,
    dataset: str,
    headers: list[Header],
    labels_of: Mapping[str, tuple[int | None, frozenset[str] | None]],
) -> Iterator[Example]:
    """Yield an example for each readable image, patient by patient and scan by scan."""
    for patient, scan, slices in _scans(headers):
        require_no_formula({"patient": patient}, ("patient",), dataset)
        for place, header in enumerate(slices, start=1):
            label, types = labels_of[header.path.stem]
            name = header.path.relative_to(base).as_posix()
            require_no_formula({"filename": name}, ("filename",), dataset)
            yield Example(
                header.path,
                name,
                label,
                patient or None,
                place,
                f"patient {patient}" if patient else "",
                dataset,
                types=types,
                scan=scan,
            )


def _by_name(images: Iterator[Path]) -> tuple[dict[str, Path], set[str]]:
    """Return the images by name, and the names of those that are in more than one folder."""
    paths: dict[str, Path] = {}
    doubled = set()
    for path in images:
        if path.stem in paths:
            doubled.add(path.stem)
        paths[path.stem] = path
    return paths, doubled


def _images(base: Path) -> Iterator[Path]:
    """Yield the DICOM files next to the table and in folders there, except for the unlabeled test
    set.
    """
    folders = [
        path
        for path in sorted(base.iterdir())
        if path.is_dir() and "test" not in path.name.lower() and path.name[0] not in "._"
    ]
    for folder in (base, *folders):
        yield from (
            path
            for path in folder.iterdir()
            if path.suffix.lower() == SUFFIX and not path.name.startswith(".")
        )


def _read(
    table: Path, wanted: Mapping[str, Path]
) -> tuple[dict[str, tuple[int | None, frozenset[str] | None]], int]:
    """Return label and types of each wanted image that has rows, and the number of other images
    with rows.
    """
    if table.stat().st_size > MAX_TABLE_MB * 2**20:
        raise DatasetError(f"{table.name} is larger than {MAX_TABLE_MB} MB.")
    labels_of: dict[str, dict[str, int]] = {}
    absent = set()
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            lines = [file.readline() for _ in range(MOST_BLANK_LINES)]
            reader = csv.reader(chain(lines, file), delimiter=separator_in(lines))
            rows = (row for row in reader if any(map(str.strip, row)))
            at = _first_column(next(rows)) or 0
            for row in (cells[at:] for cells in rows):
                number = reader.line_num
                match = ROW.fullmatch(row[0].strip()) if row else None
                label = _label_in(row)
                if match is None or label is None:
                    raise DatasetError(
                        f"{table.name}, line {number}: {','.join(row)[:60]!r} is not an image with"
                        " a type of hemorrhage, and 0 or 1."
                    )
                name, fact = match.groups()
                if name not in wanted:
                    absent.add(name)
                    if len(absent) > MOST_ABSENT:
                        raise DatasetError(
                            f"{table.name} names more than {MOST_ABSENT:,} images that are not in"
                            " this data set."
                        )
                elif labels_of.setdefault(name, {}).setdefault(fact, label) != label:
                    raise DatasetError(
                        f"{table.name}, line {number}: {row[0].strip()} has the label {label}, but"
                        " a different one in an earlier row."
                    )
    except (UnicodeDecodeError, csv.Error) as err:
        raise DatasetError(f"{table.name} is not a readable table.") from err
    facts_of = {name: _facts_of(name, facts, table.name) for name, facts in labels_of.items()}
    return facts_of, len(absent)


def _label_in(row: Sequence[str]) -> int | None:
    """Return the label of a row; None if it has none."""
    try:
        return read_label(row[1])
    except LookupError:
        return None


def _facts_of(
    name: str, facts: Mapping[str, int], table: str
) -> tuple[int | None, frozenset[str] | None]:
    """Return label and types of an image; the label is None if it might be negative but rows are
    missing.
    """
    types = frozenset(kind for kind in BLEEDING_TYPES if facts.get(kind))
    is_complete = all(kind in facts for kind in BLEEDING_TYPES)
    label = facts.get("any", 1 if types else 0 if is_complete else None)
    if types and not label:
        raise DatasetError(
            f"{table}: {name} shows {', '.join(sorted(types))}, but its row for any hemorrhage"
            " says 0."
        )
    if label == 0:
        return 0, frozenset()
    return label, types if types and is_complete else None


def _scans(headers: list[Header]) -> Iterator[tuple[str, str, list[Header]]]:
    """Yield patient, name of the scan among the patient's scans, and its slices from foot to
    head.
    """
    series: dict[str, dict[str, list[Header]]] = defaultdict(lambda: defaultdict(list))
    for header in headers:
        series[header.patient or header.study][f"{header.study} {header.series}"].append(header)
    for patient in sorted(series):
        for number, (_, slices) in enumerate(sorted(series[patient].items()), start=1):
            yield patient, "" if number == 1 else str(number), from_foot_to_head(slices)
