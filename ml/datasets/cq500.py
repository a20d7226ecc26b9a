"""The layout of CQ500 (S. Chilamkurthy et al., The Lancet 2018): scans that three radiologists read
as wholes.

`reads.csv` has a row for each scan, CQ500-CT-0 and so on, with the columns R1:ICH, R1:IPH, R1:IVH,
R1:SDH, R1:EDH, R1:SAH, and the same of R2 and R3. A scan has the label that most of them gave. Its
files lie in a folder such as "CQ500CT0 CQ500CT0/Unknown Study/CT Thin Plain", perhaps within
another one, one folder a series.

Of a patient's series one is taken: axial, at least ten slices, without contrast agent, not
reconstructed for bone; of several the one whose slices are nearest to 5 mm, as models learned them.
Where only thin ones are, neighbors are averaged to slabs of 5 mm, as in serving.
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
from ml.datasets.tables import LABELS, MOST_IMAGES, read_table, require_no_formula
from ml.errors import DatasetError, ImageError
from ml.scans.files import place_in_series
from ml.scans.ordering import SAME_PLACE_MM
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
    """True if a table has this layout."""
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        header = [word.strip().lower() for word in file.readline(10_000).split(",")]
    return {"name", "r1:ich"} <= set(header)


def from_cq500(
    base: Path, table: Path, dataset: str, on_header: Callable[[int], None] = lambda total: None
) -> tuple[str, list[Example], list[str]]:
    """Return the layout's name, an example for each slice or slab of a scan, and sentences about
    scans that are left out.

    `on_header` is as in `ml.datasets.layouts.find_examples`.

    Raises:
        DatasetError: a row is wrong, there are too many files, or no scan is left.
    """
    told = _read(table)
    problems = []
    folders: dict[int, list[Path]] = {}
    for number, folder in _scan_folders(base):
        folders.setdefault(number, []).append(folder)
    if absent := len(set(told) - set(folders)):
        problems.append(
            f"{absent:,} scans of {table.name} are not here; their rows were passed over."
        )
    if strangers := sorted(set(folders) - set(told)):
        problems.append(
            f"{len(strangers):,} scans have no label in {table.name} and are left out; the first is"
            f" CQ500-CT-{strangers[0]}."
        )
    examples: list[Example] = []
    here = sorted(set(told) & set(folders))
    for number in here:
        on_header(len(here))
        label, types = told[number]
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
    """Yield an example for each slice or slab of a scan; what is wrong with it is added to
    `problems`.
    """
    name = f"CQ500-CT-{number}"
    if label is None:
        problems.append(
            f"{name} is left out: as many readers see a hemorrhage as do not, or nobody told."
        )
        return
    chosen = _chosen_series([series for folder in folders for series in _series_in(folder)])
    if chosen is None:
        problems.append(
            f"{name} is left out: it has no axial series without contrast agent that is not made"
            " for bone."
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
    """A folder of slices, and what one of them says of all."""

    folder: Path
    files: Sequence[Path]
    header: Header

    @property
    def is_plain(self) -> bool:
        """True if it was made without contrast agent, and not for bone, as far as the name of its
        folder and the header say.
        """
        words = re.sub("[_-]", " ", f"{self.folder.name} {self.header.description}")
        has_contrast = not PLAIN.search(words) and bool(
            CONTRAST.search(words) or self.header.contrast
        )
        return not (
            has_contrast or BONE_WORD.search(words) or BONE_KERNEL.match(self.header.kernel)
        )

    @property
    def from_usual_mm(self) -> float:
        """How far the thickness of its slices is from the usual one, in powers of e; unknown is
        furthest.
        """
        thickness_mm = self.header.thickness_mm
        return (
            abs(log(thickness_mm / SLAB_MM)) if thickness_mm and thickness_mm > 0 else float("inf")
        )


def _read(table: Path) -> dict[int, tuple[int | None, frozenset[str] | None]]:
    """Return label and types of each scan by its number, both None where readers do not agree about
    a hemorrhage.
    """
    header, rows = read_table(table)
    told: dict[int, tuple[int | None, frozenset[str] | None]] = {}
    for line, row in enumerate(rows, start=2):
        found = SCAN.match(row.get("name", ""))
        if found is None:
            raise DatasetError(
                f"{table.name}, line {line}: {row.get('name', '')[:60]!r} is no name such as"
                " CQ500-CT-0."
            )
        number = int(found.group(1))
        if number in told:
            raise DatasetError(
                f"{table.name}, line {line}: CQ500-CT-{number} stands in the table twice."
            )
        where = f"{table.name}, line {line} (CQ500-CT-{number})"
        label = _majority(row, "ich", where)
        types = frozenset(
            name
            for column, name in TYPES.items()
            if f"r1:{column}" in header and _majority(row, column, where) == 1
        )
        told[number] = label, None if label is None else (types or None) if label else frozenset()
    return told


def _majority(row: Mapping[str, str], fact: str, where: str) -> int | None:
    """Return what most readers said, None where no answer has more than half."""
    votes = []
    for reader in READERS:
        text = row.get(f"{reader}:{fact}", "")
        if text.lower() not in LABELS:
            raise DatasetError(
                f"{where}: {reader.upper()}:{fact.upper()} is {text[:60]!r}, neither 0 nor 1 nor"
                " empty."
            )
        votes.append(LABELS[text.lower()])
    counted = Counter(vote for vote in votes if vote is not None)
    return next((vote for vote, times in counted.items() if 2 * times > counted.total()), None)


def _scan_folders(base: Path) -> Iterator[tuple[int, Path]]:
    """Yield the number and the folder of each scan, at any depth."""
    for folder, inside, _ in os.walk(base):
        deeper = []
        for name in sorted(inside):
            if found := SCAN.match(name):
                yield int(found.group(1)), Path(folder) / name
            elif not name.startswith((".", "__")):
                deeper.append(name)
        inside[:] = deeper


def _series_in(folder: Path) -> Iterator[_Series]:
    """Yield the series of a scan's folder: those of enough axial slices, one file each."""
    for inside, _, names in os.walk(folder):
        paths = [
            Path(inside) / name
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in DICOM_SUFFIXES
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
    """Return the series that stands for a scan; see the head of this module."""
    plain = [one for one in series if one.is_plain]
    return min(plain, key=lambda one: (one.from_usual_mm, one.folder.as_posix()), default=None)


def _slabs_of(series: _Series) -> tuple[list[list[Path]], int]:
    """Return the files of each slab from foot to head, most often one, and how many files have no
    readable header.
    """
    headers, damaged = [], 0
    for file in series.files:
        try:
            headers.append(read_header(file))
        except ImageError:
            damaged += 1
    ordered = from_foot_to_head(
        [one for one in headers if one.is_axial_ct and one.series == series.header.series]
    )
    places = [one.place_mm for one in ordered if one.place_mm is not None]
    if len(places) < len(ordered):
        return [[one.path] for one in ordered], damaged
    apart = [
        at for at in range(len(ordered)) if at == 0 or places[at] - places[at - 1] > SAME_PLACE_MM
    ]
    starts = slab_starts(np.diff([places[at] for at in apart]))
    paths = [ordered[at].path for at in apart]
    return [paths[first:end] for first, end in pairwise(starts)], damaged
