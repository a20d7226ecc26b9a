"""The layout of CQ500 (S. Chilamkurthy et al., The Lancet 2018): scans with scan-level labels by
three radiologists.

`reads.csv` has a row for each scan, CQ500-CT-0 and so on, with the columns R1:ICH, R1:IPH, R1:IVH,
R1:SDH, R1:EDH, R1:SAH, and the same of R2 and R3. A scan's label is the majority vote. Its files
lie in a folder such as "CQ500CT0 CQ500CT0/Unknown Study/CT Thin Plain", possibly nested, with one
folder per series.

One series per patient is used: axial, at least ten slices, unenhanced, no bone kernel; of several,
the one with slice thickness closest to 5 mm, as in training. Thin slices are averaged into slabs of
5 mm, as in serving.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from pathlib import Path

import numpy as np

from ml.datasets.dicom_headers import Header, from_foot_to_head, read_header
from ml.datasets.examples import Example
from ml.datasets.tables import (
    MOST_IMAGES,
    first_rows,
    read_label,
    read_table,
    require_no_formula,
)
from ml.errors import DatasetError, ImageError
from ml.files.same_scan import SAME_PLACE_MM
from ml.scans.files import is_named_as_image, place_in_series
from ml.scans.slabs import SLAB_MM, slab_starts

TYPES = {
    "edh": "epidural",
    "sdh": "subdural",
    "sah": "subarachnoid",
    "iph": "intraparenchymal",
    "ivh": "intraventricular",
}
READERS = ("r1", "r2", "r3")
SCAN = re.compile(r"CQ500[ _-]?CT[ _-]?([0-9]{1,6})(?![0-9])", re.IGNORECASE)
DICOM_SUFFIXES = (".dcm", ".dicom", "")
FEWEST_SLICES = 10
PLAIN = re.compile(r"\bplain\b|\bpre\b|non[ _-]?con|without|\bunenhanced\b", re.IGNORECASE)
CONTRAST = re.compile(
    r"contrast|\bpost\b|\bcect\b|\bc\+?(?!\w)|\bcta\b|angio|\b[0-9]+"
    r" ?cc\b|\boral\b|\biv\b|arterial|venous|perfusion",
    re.IGNORECASE,
)
BONE_WORD = re.compile(r"bone|hi ?-?res|\bhrct\b|sharp|edge|detail", re.IGNORECASE)
BONE_KERNEL = re.compile(
    r"BONE|EDGE|LUNG|ULTRA|SHARP|[BHJU][a-z]?[67][0-9]|FC[358][0-9]", re.IGNORECASE
)


def is_cq500(table: Path) -> bool:
    """Return whether a table has this layout."""
    header = [word.lower() for word in next(iter(first_rows(table)), [])]
    return {"name", "r1:ich"} <= set(header)


def from_cq500(
    base: Path, table: Path, dataset: str, on_header: Callable[[int], None] = lambda total: None
) -> tuple[str, list[Example], list[str]]:
    """Return the layout's name, an example for each slice or slab, and notes about excluded scans.

    `on_header` is as in `ml.datasets.layouts.find_examples`.

    Raises:
        DatasetError: a row is invalid, there are too many files, or no scan is left.
    """
    labels_of = _read(table)
    problems = []
    folders: dict[int, list[Path]] = {}
    for number, folder in _scan_folders(base):
        folders.setdefault(number, []).append(folder)
    if absent := len(set(labels_of) - set(folders)):
        problems.append(
            f"{absent:,} scans of {table.name} are not in this data set; their rows were ignored."
        )
    if unlabeled := sorted(set(folders) - set(labels_of)):
        problems.append(
            f"{len(unlabeled):,} scans have no label in {table.name} and are left out; the first is"
            f" CQ500-CT-{unlabeled[0]}."
        )
    examples: list[Example] = []
    labeled = sorted(set(labels_of) & set(folders))
    for number in labeled:
        on_header(len(labeled))
        label, types = labels_of[number]
        examples += _of_scan(base, dataset, number, folders[number], label, types, problems)
        if len(examples) > MOST_IMAGES:
            raise DatasetError(
                f"{dataset} holds more than {MOST_IMAGES:,} slices; keep a part of the scans."
            )
    if not examples:
        why = f" {problems[0]}" if problems else ""
        raise DatasetError(
            f"No scan of {table.name} can be taken from folders such as CQ500CT0 CQ500CT0.{why}"
        )
    return "CQ500", examples, problems


def _of_scan(
    base: Path,
    dataset: str,
    number: int,
    folders: Sequence[Path],
    label: int | None,
    types: frozenset[str] | None,
    problems: list[str],
) -> Iterator[Example]:
    """Yield an example for each slice or slab of a scan; append its problems to `problems`."""
    name = f"CQ500-CT-{number}"
    if label is None:
        problems.append(
            f"{name} is left out: the readers disagree about hemorrhage without a majority, or"
            " gave no label."
        )
        return
    chosen = _chosen_series([series for folder in folders for series in _series_in(folder)])
    if chosen is None:
        problems.append(
            f"{name} is left out: it has no unenhanced axial series with a soft-tissue kernel."
        )
        return
    slabs, damaged = _slabs_of(chosen)
    if damaged:
        problems.append(
            f"{name}: {damaged} files of {chosen.folder.relative_to(base).as_posix()} cannot be"
            " read."
        )
    for place, paths in enumerate(slabs, start=1):
        file = paths[0].relative_to(base).as_posix()
        require_no_formula({"filename": file}, ("filename",), dataset)
        yield Example(
            paths[0],
            file,
            None,
            name,
            place,
            f"patient {name}",
            dataset,
            scan_label=label,
            scan_types=types,
            beside=tuple(paths[1:]),
        )


@dataclass(frozen=True)
class _Series:
    """A folder of slices, with the header of one of them."""

    folder: Path
    files: Sequence[Path]
    header: Header

    @property
    def is_plain(self) -> bool:
        """Whether folder name and header indicate neither a contrast agent nor a bone kernel."""
        words = re.sub("[_-]", " ", f"{self.folder.name} {self.header.description}")
        has_contrast = not PLAIN.search(words) and bool(
            CONTRAST.search(words) or self.header.contrast
        )
        return not (
            has_contrast or BONE_WORD.search(words) or BONE_KERNEL.match(self.header.kernel)
        )

    @property
    def from_usual_mm(self) -> float:
        """Absolute log ratio of its slice thickness to the usual one; infinite if unknown."""
        thickness_mm = self.header.thickness_mm
        return (
            abs(log(thickness_mm / SLAB_MM)) if thickness_mm and thickness_mm > 0 else float("inf")
        )


def _read(table: Path) -> dict[int, tuple[int | None, frozenset[str] | None]]:
    """Return label and types of each scan by its number, both None where there is no majority about
    hemorrhage.
    """
    header, rows = read_table(table)
    labels_of: dict[int, tuple[int | None, frozenset[str] | None]] = {}
    for row in rows:
        line = row.line
        match = SCAN.match(row.get("name", ""))
        if match is None:
            raise DatasetError(
                f"{table.name}, line {line}: {row.get('name', '')[:60]!r} is not a name such as"
                " CQ500-CT-0."
            )
        number = int(match.group(1))
        if number in labels_of:
            raise DatasetError(
                f"{table.name}, line {line}: CQ500-CT-{number} is in the table twice."
            )
        where = f"{table.name}, line {line} (CQ500-CT-{number})"
        label = _majority(row, "ich", where)
        types = frozenset(
            name
            for column, name in TYPES.items()
            if f"r1:{column}" in header and _majority(row, column, where) == 1
        )
        labels_of[number] = (
            label,
            None if label is None else (types or None) if label else frozenset(),
        )
    return labels_of


def _majority(row: Mapping[str, str], fact: str, where: str) -> int | None:
    """Return the majority vote, None if there is none."""
    votes = []
    for reader in READERS:
        text = row.get(f"{reader}:{fact}", "")
        try:
            votes.append(read_label(text))
        except KeyError as err:
            raise DatasetError(
                f"{where}: {reader.upper()}:{fact.upper()} is {text[:60]!r}, neither 0 nor 1 nor"
                " empty."
            ) from err
    counted = Counter(vote for vote in votes if vote is not None)
    return next((vote for vote, times in counted.items() if 2 * times > counted.total()), None)


def _scan_folders(base: Path) -> Iterator[tuple[int, Path]]:
    """Yield the number and the folder of each scan, at any depth."""
    for folder, inside, _ in os.walk(base):
        deeper = []
        for name in sorted(inside):
            if match := SCAN.match(name):
                yield int(match.group(1)), Path(folder) / name
            elif not name.startswith((".", "__")):
                deeper.append(name)
        inside[:] = deeper


def _series_in(folder: Path) -> Iterator[_Series]:
    """Yield the series in a scan's folder that have enough axial slices, one per file."""
    for inside, _, names in os.walk(folder):
        paths = [
            Path(inside) / name
            for name in names
            if not name.startswith(".") and is_named_as_image(Path(name), DICOM_SUFFIXES)
        ]
        files = sorted(paths, key=place_in_series)
        if len(files) < FEWEST_SLICES:
            continue
        for file in (files[len(files) // 2], files[0], files[-1]):
            try:
                header = read_header(file)
            except ImageError:
                continue
            if header.is_axial_ct:
                yield _Series(Path(inside), files, header)
            break


def _chosen_series(series: Sequence[_Series]) -> _Series | None:
    """Return the series to use for a scan; see the module docstring."""
    plain = [candidate for candidate in series if candidate.is_plain]
    return min(
        plain,
        key=lambda candidate: (candidate.from_usual_mm, candidate.folder.as_posix()),
        default=None,
    )


def _slabs_of(series: _Series) -> tuple[list[list[Path]], int]:
    """Return the files of each slab (usually one) from foot to head, and the number of files
    without a readable header.
    """
    headers, damaged = [], 0
    for file in series.files:
        try:
            headers.append(read_header(file))
        except ImageError:
            damaged += 1
    ordered = from_foot_to_head(
        [
            header
            for header in headers
            if header.is_axial_ct and header.series == series.header.series
        ]
    )
    places = [header.place_mm for header in ordered if header.place_mm is not None]
    if len(places) < len(ordered):
        return [[header.path] for header in ordered], damaged
    apart = [
        at for at in range(len(ordered)) if at == 0 or places[at] - places[at - 1] > SAME_PLACE_MM
    ]
    starts = slab_starts(np.diff([places[at] for at in apart]))
    paths = [ordered[at].path for at in apart]
    return [paths[first:end] for first, end in pairwise(starts)], damaged
