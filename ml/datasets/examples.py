"""What a data set consists of: labeled slices, each of one scan of one patient."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ml.errors import ImageError
from ml.scans.read import read_series
from ml.scans.slabs import mean_of
from ml.scans.slices import Series, Slice


@dataclass(frozen=True)
class Example:
    """One labeled slice.

    `name` is the path inside the data set, `label` 1 for hemorrhage, 0 for none, None for unknown.
    Images with the same `group` never stand on both sides of a split. `sha256` and `dhash` identify
    file and picture. `mask` is a picture of
    the same size in which somebody has outlined the blood: the column `mask` of the table, or the
    file of that name in `masks/`. `types` are those of `ml.catalogue.BLEEDING_TYPES` that the slice
    shows, None where nobody said: the column `subtypes` of the table. `scan_label` and `scan_types`
    are what was said of the patient's scan as a whole, None where nobody did or its slices say it
    all. `scan` tells a patient's scans apart, empty for the first. `beside` are thin neighbors,
    averaged with it to a slab (`ml.scans.slabs`). `place_mm` is how far toward the head it lies,
    known for all readable slices of a scan or for none.
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
    scan: str = ""
    beside: tuple[Path, ...] = ()
    place_mm: float | None = None

    @property
    def scan_name(self) -> str:
        """What tables of answers call its scan: the patient, and which one, where that has several;
        empty without a patient.
        """
        return (
            f"{self.patient} scan {self.scan}" if self.patient and self.scan else self.patient or ""
        )


def scan_key(example: Example) -> tuple[str, str, str]:
    """Return what the slices of one scan share: data set, patient and scan; an image without a
    patient shares nothing.
    """
    return example.dataset, example.patient or "", example.scan if example.patient else example.name


def slice_of(
    example: Example, *, may_be_bare: bool = False, decode: Callable[..., Series] = read_series
) -> Slice:
    """Read an example by `decode`: its file's slice, or the mean of a slab's.

    Raises:
        ImageError: it cannot be read, or is a file of several slices.
    """
    slices = decode([example.path, *example.beside], may_be_bare=may_be_bare, crops=False).slices
    if len(slices) > 1 and not example.beside:
        raise ImageError(f"it holds {len(slices)} slices, and a data set has one file a slice.")
    return mean_of(slices) if example.beside else slices[0]


def sha256_of(example: Example) -> str:
    """Return the SHA-256 (hex) of an example's file, or of its files one after the other."""
    found = hashlib.sha256()
    for path in (example.path, *example.beside):
        found.update(path.read_bytes())
    return found.hexdigest()


UNKNOWN = -1
"""The label of a slice whose label nobody knows: it never trains and never tests, but it stands in
its scan.
"""
