"""Put the slices of a scan in order: by their place along the normal where the files know it, and
say what is odd about them.

Nothing depends on the order in which the files came, unless they say nothing about it themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml.errors import ImageError
from ml.scans.slices import Series, Slice

Vector = NDArray[np.float64]

AXIAL = 0.7  # the least cosine between a slice's normal and the body's axis
SAME_PLACE_MM = 0.05
FURTHEST_MM = 1e5  # what a file says of places and sizes beyond this, it does not know
TILTED_DEG = 1.0
GAP = 1.6  # times the usual step around it
AROUND = 5  # steps to each side are "around"
EVEN = 1.25  # the largest step over the smallest
NAMED = 3  # gaps that get a sentence of their own
NOT_AXIAL = "not axial (coronal, sagittal or oblique); the models know axial slices only."


@dataclass(frozen=True)
class Plane:
    """A slice and what its file says about its place.

    Attributes:
        slice: upright, if it is axial.
        position_mm: a corner in patient coordinates (x to the left, y to the back, z to the head),
            None where the file does not say.
        normal: the unit vector across the slice, toward the head; None where the file does not
            say.
        number: the instance number, or that of a frame.
        series_uid, instance_uid: of the file.
        notes: sentences for the user.
    """

    slice: Slice
    position_mm: Vector | None
    normal: Vector | None
    number: int | None
    series_uid: str
    instance_uid: str
    notes: tuple[str, ...]


def arrange(planes: Sequence[Plane]) -> Series:
    """Return the slices of one series from foot to head. Left out, with a sentence each: other
    directions, other sizes, doubles.

    Raises:
        ImageError: the slices belong to different series, or none of them is axial.
    """
    uids = {plane.series_uid for plane in planes}
    if len(uids) > 1:
        raise ImageError(
            f"The files belong to {len(uids)} different series; one scan is one series."
        )
    axial = [plane for plane in planes if plane.normal is None or plane.normal[2] >= AXIAL]
    if not axial:
        raise ImageError(f"The {'slice is' if len(planes) == 1 else 'slices are'} {NOT_AXIAL}")
    said: list[str] = []
    if others := len(planes) - len(axial):
        said.append(
            f"{_slices(others)} left out: {'it is' if others == 1 else 'they are'} {NOT_AXIAL}"
        )
    kept = of_one_size([plane.slice for plane in axial], said)
    found = [axial[index] for index in kept]
    notes = [note for plane in found for note in plane.notes]
    if len(found) == 1:  # one slice needs no order
        return Series((found[0].slice,), tuple(dict.fromkeys([*notes, *said])))
    ordered, steps_mm = _in_order(found, said)
    if len({plane.slice.unit for plane in ordered}) > 1:
        raise ImageError(
            "Some slices of the scan hold Hounsfield units and some do not; one scan is of one"
            " kind."
        )
    if len({plane.slice.spacing_mm for plane in ordered}) > 1:
        said.append("The pixels of some slices are larger than those of others.")
    distance_mm = float(np.median(steps_mm)) if steps_mm else None
    return Series(
        tuple(plane.slice for plane in ordered),
        tuple(dict.fromkeys([*notes, *said])),
        distance_mm,
        steps_mm,
    )


def of_one_size(slices: Sequence[Slice], said: list[str]) -> list[int]:
    """Return the indices of the slices of the commonest size, the larger of two as common; a
    sentence about the others goes to `said`.
    """
    counts = Counter(slice.pixels.shape for slice in slices)
    height, width = max(counts, key=lambda shape: (counts[shape], shape))
    if others := len(slices) - counts[height, width]:
        said.append(
            f"{_slices(others)} left out:"
            f" {'its size differs' if others == 1 else 'their sizes differ'} from {width} x"
            f" {height} pixels."
        )
    return [index for index, slice in enumerate(slices) if slice.pixels.shape == (height, width)]


def tilt_note(step: Vector, normal: Vector) -> list[str]:
    """Return a sentence if neighboring slices lie aside of each other, `step` (mm) apart, as they
    do after a tilt of the gantry.
    """
    cosine = abs(float(np.dot(step, normal))) / max(float(np.linalg.norm(step)), 1e-9)
    tilt_deg = float(np.degrees(np.arccos(min(cosine, 1.0))))
    return (
        [f"The gantry was tilted by {tilt_deg:.3g}°; the slices stay as they were scanned."]
        if tilt_deg > TILTED_DEG
        else []
    )


def _in_order(planes: Sequence[Plane], said: list[str]) -> tuple[list[Plane], tuple[float, ...]]:
    """Return planes from foot to head and how far each lies from the next in mm, nothing where no
    file knows.
    """
    normals = [plane.normal for plane in planes if plane.normal is not None]
    corners = [plane.position_mm for plane in planes if plane.position_mm is not None]
    numbers = [plane.number for plane in planes if plane.number is not None]
    if len(normals) == len(corners) == len(planes):
        normal = np.mean(normals, axis=0)
        normal /= np.linalg.norm(normal)
        if min(float(np.dot(normal, one)) for one in normals) < np.cos(np.radians(TILTED_DEG)):
            said.append("The slices lie at different angles to each other.")
        places = [float(np.dot(normal, corner)) for corner in corners]
        return _by_place(planes, places, normal, said)
    if len(numbers) == len(planes):
        said.append(
            "The files do not say where their slices lie; they were ordered by instance number."
        )
        ordered = [planes[i] for i in np.argsort(numbers, kind="stable")]
        steps = np.diff(sorted(numbers))
        if np.median(steps) == 1:
            said += [
                f"Slices are missing: after number {sorted(numbers)[i]} comes number"
                f" {sorted(numbers)[i + 1]}."
                for i in np.flatnonzero(steps > 1)[:NAMED]
            ]
        return ordered, ()
    said.append("The files do not say where their slices lie; they were read in the order given.")
    return list(planes), ()


def _by_place(
    planes: Sequence[Plane], places: Sequence[float], normal: Vector, said: list[str]
) -> tuple[list[Plane], tuple[float, ...]]:
    def key(i: int) -> tuple[float, float, str]:
        number = planes[i].number
        return places[i], np.inf if number is None else number, planes[i].instance_uid

    ordered: list[int] = []
    for i in sorted(range(len(planes)), key=key):
        if not ordered or places[i] - places[ordered[-1]] > SAME_PLACE_MM:
            ordered.append(i)
    if doubles := len(planes) - len(ordered):
        said.append(
            f"{_slices(doubles)} left out: {'it lies' if doubles == 1 else 'they lie'} where"
            " another one lies."
        )
    if len(ordered) == 1:
        return [planes[ordered[0]]], ()
    first, last = planes[ordered[0]].position_mm, planes[ordered[-1]].position_mm
    if first is not None and last is not None:
        said += tilt_note(last - first, normal)
    steps_mm = np.diff([places[i] for i in ordered])
    said += _oddities(steps_mm)
    return [planes[i] for i in ordered], tuple(float(step) for step in steps_mm)


def _oddities(steps_mm: Vector) -> list[str]:
    """Return sentences about gaps and uneven spacing. Scanners change their step within a head, so
    a step is judged by those around it.
    """
    usual = np.array(
        [np.median(steps_mm[max(i - AROUND, 0) : i + AROUND + 1]) for i in range(len(steps_mm))]
    )
    is_gap = steps_mm > GAP * usual
    gaps = np.flatnonzero(is_gap)
    said = [
        f"A part of the scan is missing between slices {i + 1} and {i + 2}: they lie"
        f" {steps_mm[i]:.3g} mm apart, their neighbors {usual[i]:.3g} mm."
        for i in gaps[:NAMED]
    ]
    if len(gaps) > NAMED:
        said.append(f"Parts are missing in {len(gaps) - NAMED} further places.")
    rest = steps_mm[~is_gap]
    if len(rest) and rest.max() > EVEN * rest.min():
        said.append(
            f"The slices are unevenly spaced: {rest.min():.3g} to {rest.max():.3g} mm apart."
        )
    return said


def _slices(count: int) -> str:
    return "One slice was" if count == 1 else f"{count} slices were"
