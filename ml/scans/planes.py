"""Slices as files store them, before they are put in order, and notes about those left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml.scans.hounsfield import Claim, Stored

Vector = NDArray[np.float64]

FURTHEST_MM = 1e5  # coordinates and sizes beyond this count as missing
MAX_LISTED = 3  # gaps and files listed individually in a note


@dataclass(frozen=True)
class Plane:
    """A slice as stored, with the metadata of its file; None or "" for missing metadata.

    Attributes:
        stored: the stored pixel values (rows, columns).
        claim: the tags that describe these values.
        padding: mask of the pixels that were not scanned (rows, columns).
        spacing_mm: distance between neighboring rows and between neighboring columns.
        position_mm: a corner in patient coordinates (x to the left, y to the back, z to the head).
        directions: unit vectors along a row and a column (2, 3), in the same coordinates.
        location_mm: position along the table.
        number: the instance number, or the number of a frame.
        acquisition: the acquisition number.
        time: the acquisition time as written in the file.
        technique: kernel, tube voltage and kind of reconstruction.
        aspect: height and width of a pixel relative to each other if the spacing is missing.
        step_mm: distance to the next slice, or the slice thickness if that is missing.
        thickness_mm: the slice thickness.
        study_uid, series_uid, series_number: identifiers in the file.
        is_made: made from other slices, by its image type: a reformation or a capture.
        name: the file's name as the user knows it.
        notes: sentences for the user.
    """

    stored: Stored
    claim: Claim
    padding: NDArray[np.bool_] | None = None
    spacing_mm: tuple[float, float] | None = None
    position_mm: Vector | None = None
    directions: Vector | None = None
    location_mm: float | None = None
    number: int | None = None
    acquisition: float | None = None
    time: str = ""
    technique: tuple[str, ...] = ()
    aspect: tuple[float, float] | None = None
    step_mm: float | None = None
    thickness_mm: float | None = None
    study_uid: str = ""
    series_uid: str = ""
    series_number: float | None = None
    is_made: bool = False
    name: str = ""
    notes: tuple[str, ...] = ()

    @property
    def normal(self) -> Vector | None:
        """The unit vector perpendicular to the slice, toward the head."""
        if self.directions is None:
            return None
        normal = np.cross(*self.directions)
        return np.asarray(normal / np.linalg.norm(normal) * (1 if normal[2] >= 0 else -1))


def note_left_out(planes: Sequence[Plane], reason: str, notes: list[str]) -> None:
    """Append a note that these slices were left out, and why."""
    pronoun = "it is" if len(planes) == 1 else "they are"
    notes.append(f"{slices_named(names_of(planes))} left out: {pronoun} {reason}")


def names_of(planes: Sequence[Plane]) -> list[str]:
    return [plane.name for plane in planes]


def slices_named(names: Sequence[str]) -> str:
    """Return the subject of a note about these slices, with the first few names."""
    shown = list(dict.fromkeys(name for name in names if name))
    listed = ", ".join(shown[:MAX_LISTED]) + (", …" if len(shown) > MAX_LISTED else "")
    named = f" ({listed})" if listed else ""
    return f"One slice{named} was" if len(names) == 1 else f"{len(names)} slices{named} were"


def files_named(planes: Sequence[Plane]) -> str:
    names = ", ".join(name for name in names_of(planes)[:MAX_LISTED] if name)
    if len(planes) == 1:
        return f"One file{f' ({names})' if names else ''} does"
    more = ", …" if len(planes) > MAX_LISTED else ""
    return f"{len(planes)} files{f' ({names}{more})' if names else ''} do"
