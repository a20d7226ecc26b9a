"""Labeled slices, the elements of a data set."""

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

    `name` is the path inside the data set; `label` is 1 for hemorrhage, 0 for none, None for
    unknown. Images with the same `group` are never on both sides of a split. `sha256` and `dhash`
    identify the file and the image content. `mask` is an image of the same size with the
    segmentation of the hemorrhage: the column `mask` of the table, or the file of that name in
    `masks/`. `types` are those of `ml.catalogue.BLEEDING_TYPES` that the slice shows, None if not
    annotated: the column `subtypes` of the table. `scan_label` and `scan_types` are scan-level
    labels, None if there are none or if all slices are labeled. `scan` distinguishes a patient's
    scans; empty if they are not distinguished. `beside` are neighboring thin slices that are
    averaged with it into a slab (`ml.scans.slabs`). `place_mm` is its position toward the head,
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
        """The scan's name in tables of predictions: the patient, with the scan if there are
        several; empty without a patient.
        """
        return (
            f"{self.patient} scan {self.scan}" if self.patient and self.scan else self.patient or ""
        )


def scan_key(example: Example) -> tuple[str, str, str]:
    """Return a key shared by the slices of one scan: data set, patient and scan; an image without a
    patient has its own key.
    """
    return example.dataset, example.patient or "", example.scan if example.patient else example.name


def slice_of(
    example: Example, *, may_be_bare: bool = False, decode: Callable[..., Series] = read_series
) -> Slice:
    """Read an example with `decode`: the slice in its file, or the mean of the slices of a slab.

    Raises:
        ImageError: it cannot be read, or is a file of several slices.
    """
    slices = decode([example.path, *example.beside], may_be_bare=may_be_bare, crops=False).slices
    if len(slices) > 1 and not example.beside:
        raise ImageError(f"it holds {len(slices)} slices, but a data set needs one file per slice.")
    return mean_of(slices) if example.beside else slices[0]


def sha256_of(example: Example) -> str:
    """Return the SHA-256 (hex) of an example's file, or of its files concatenated."""
    digest = hashlib.sha256()
    for path in (example.path, *example.beside):
        digest.update(path.read_bytes())
    return digest.hexdigest()


UNKNOWN = -1
"""The label of an unlabeled slice: it is part of its scan, but is not used for training or
testing.
"""
