"""Put the slices of a scan in order: by their place along the normal where the files know it, and
say what is odd about them.

Each property of a slice that its file lacks is taken from the next best source: the direction from
the other slices, the place from the slice location or the instance number. Two slices of one place
are a copy only if their pixels are equal; else they belong to two passes over the head, of which
the more complete one is read. Nothing depends on the order in which the files came, unless they say
nothing about it themselves, and what is left out is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ml.errors import ImageError
from ml.scans.geometry import in_square_pixels, turned_upright
from ml.scans.hounsfield import Claim, Stored, scale_of
from ml.scans.slices import Series, Slice

Vector = NDArray[np.float64]

AXIAL = 0.7  # the least cosine between a slice's normal and the body's axis
SAME_PLACE_MM = 0.05
FURTHEST_MM = 1e5  # what a file says of places and sizes beyond this, it does not know
TILTED_DEG = 1.0
TURNED_DEG = 20.0  # slices that lie so differently are not of one scan
GAP = 1.6  # times the usual step around it
AROUND = 5  # steps to each side are "around"
EVEN = 1.25  # the largest step over the smallest
NAMED = 3  # gaps and files that are named
OVERLAP = 0.2  # of the places of an acquisition may be those of others that it continues
NOT_AXIAL = "not axial (coronal, sagittal or oblique); the models know axial slices only."
LIES_UNKNOWN = (
    "The DICOM file does not give the patient's orientation; the forehead is assumed to be at the"
    " top."
)


@dataclass(frozen=True)
class Plane:
    """A slice as it is stored, and what its file says about it; None and "" where it says nothing.

    Attributes:
        stored: the numbers of its pixels (rows, columns).
        claim: what they are said to mean.
        padding: where nothing was scanned (rows, columns).
        spacing_mm: distance of neighboring rows and columns.
        position_mm: a corner in patient coordinates (x to the left, y to the back, z to the head).
        directions: unit vectors along a row and a column (2, 3), in the same coordinates.
        location_mm: its place along the table.
        number: the instance number, or that of a frame.
        acquisition: the number of the acquisition.
        time: of the acquisition, as written.
        step_mm: how far it lies from the next slice, or else how thick it is.
        study_uid, series_uid, series_number: of the file.
        name: what the user calls the file.
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
    step_mm: float | None = None
    study_uid: str = ""
    series_uid: str = ""
    series_number: float | None = None
    name: str = ""
    notes: tuple[str, ...] = ()

    @property
    def normal(self) -> Vector | None:
        """The unit vector across the slice, toward the head."""
        if self.directions is None:
            return None
        normal = np.cross(*self.directions)
        return np.asarray(normal / np.linalg.norm(normal) * (1 if normal[2] >= 0 else -1))


def arrange(planes: Sequence[Plane]) -> Series:
    """Return the slices of one series from foot to head. Left out, with a sentence each: other
    directions, other sizes, other kinds of pixels, copies, other passes over the same places.

    Raises:
        ImageError: the slices belong to different series, none of them is axial, or their numbers
            cannot be read as Hounsfield units.
    """
    said: list[str] = []
    _require_one_series(planes, said)
    planes = _with_directions(_without_pages(planes, said), said)
    axial = [plane for plane in planes if plane.normal is None or plane.normal[2] >= AXIAL]
    if not axial:
        raise ImageError(f"The {'slice is' if len(planes) == 1 else 'slices are'} {NOT_AXIAL}")
    if others := _others(planes, axial):
        _say(others, NOT_AXIAL, said)
    alike = of_one_size([_size(plane) for plane in axial], _names(axial), said)
    found = [axial[at] for at in alike]
    steps_mm: tuple[float, ...] = ()
    distance_mm = None
    if len(found) > 1:  # one slice needs no order
        found, steps_mm, distance_mm = _in_order(found, said)
    notes = [note for plane in found for note in plane.notes]
    if any(plane.directions is None for plane in found):
        notes.append(LIES_UNKNOWN)
    slices, of_values = slices_of(found)
    if len({slice.spacing_mm for slice in slices}) > 1:
        said.append("The pixels of some slices are larger than those of others.")
    return Series(
        tuple(slices), tuple(dict.fromkeys([*of_values, *notes, *said])), distance_mm, steps_mm
    )


def slices_of(planes: Sequence[Plane]) -> tuple[list[Slice], list[str]]:
    """Return the slices of one scan upright, in square pixels and on one scale, and sentences about
    what was assumed.

    Raises:
        ImageError: their numbers cannot be read.
    """
    claims = Counter(plane.claim for plane in planes)
    usual = max(claims, key=lambda claim: (claim.intercept is not None, claims[claim]))
    scale, notes = scale_of(
        [plane.stored for plane in planes], [plane.padding for plane in planes], usual
    )
    is_as_said = (scale.slope, scale.intercept) == (usual.slope or 1.0, usual.intercept)
    slices = []
    for plane in planes:
        slope, intercept = plane.claim.slope, plane.claim.intercept
        own = scale
        if (
            is_as_said
            and scale.unit == "hu"
            and (slope, intercept) != (usual.slope, usual.intercept)
        ):
            own = replace(
                scale,
                slope=scale.slope if slope is None else slope,
                intercept=scale.intercept if intercept is None else intercept,
            )
        pixels, spacing_mm = own.pixels(plane.stored, plane.padding), plane.spacing_mm
        if plane.directions is not None:
            pixels, spacing_mm = turned_upright(pixels, spacing_mm, plane.directions)
        pixels, spacing_mm = in_square_pixels(pixels, spacing_mm)
        slices.append(Slice(pixels, scale.unit, spacing_mm))
    return slices, notes


def of_one_size(
    sizes: Sequence[tuple[int, int]], names: Sequence[str], said: list[str]
) -> list[int]:
    """Return the indices of the slices of the commonest size (height, width), the larger of two as
    common; a sentence that names the others goes to `said`.
    """
    counts = Counter(sizes)
    height, width = max(counts, key=lambda size: (counts[size], size))
    others = [name for size, name in zip(sizes, names, strict=True) if size != (height, width)]
    if others:
        said.append(
            f"{_slices(others)} left out:"
            f" {'its size differs' if len(others) == 1 else 'their sizes differ'} from {width} x"
            f" {height} pixels."
        )
    return [index for index, size in enumerate(sizes) if size == (height, width)]


def tilt_note(step: Vector, normal: Vector) -> list[str]:
    """Return a sentence if neighboring slices lie aside of each other, `step` (mm) apart, as they
    do after a tilt of the gantry.
    """
    cosine = abs(float(np.dot(step, normal))) / max(float(np.linalg.norm(step)), 1e-9)
    tilt_deg = float(np.degrees(np.arccos(min(cosine, 1.0))))
    return (
        [f"The gantry was tilted by {tilt_deg:.3g}°; the slices are shown as they were scanned."]
        if tilt_deg > TILTED_DEG
        else []
    )


def _require_one_series(planes: Sequence[Plane], said: list[str]) -> None:
    """Refuse slices of several studies or series, unless each has a UID of its own and all else
    says that they are one.
    """
    series = {(plane.study_uid, plane.series_uid) for plane in planes if plane.series_uid}
    if len(series) < 2:
        return
    one_each = len(series) == sum(bool(plane.series_uid) for plane in planes) > 2
    studies = {plane.study_uid for plane in planes}
    numbers = {plane.series_number for plane in planes}
    if one_each and len(studies) == len(numbers) == 1 and "" not in studies and None not in numbers:
        said.append(
            "Each slice has its own series UID; they were read as one series, since study and"
            " series number are the same."
        )
        return
    raise ImageError(
        f"The files belong to {len(series)} different series; a scan is a single series."
    )


def _with_directions(planes: Sequence[Plane], said: list[str]) -> list[Plane]:
    """Return the planes, those without directions with the commonest ones; left out are those that
    lie quite differently, if they are fewer.
    """
    known = [plane.directions for plane in planes if plane.directions is not None]
    if not known:
        return list(planes)
    usual = known[
        max(range(len(known)), key=lambda at: sum(_is_parallel(known[at], one) for one in known))
    ]
    without = [plane for plane in planes if plane.directions is None]
    if without:
        said.append(
            f"{_files(without)} not give an orientation; that of the other slices was assumed."
        )
    filled = [
        replace(plane, directions=usual) if plane.directions is None else plane for plane in planes
    ]
    turned = [
        plane
        for plane in filled
        if plane.normal is not None
        and plane.normal[2] >= AXIAL
        and not _is_parallel(usual, plane.directions)  # type: ignore[arg-type]
    ]
    if turned and 2 * len(turned) < len(filled):
        _say(turned, "oriented differently from the rest.", said)
        return _others(filled, turned)
    return filled


def _is_parallel(one: Vector, other: Vector) -> bool:
    """True if rows and columns of two slices run the same way."""
    cosines = (one * other).sum(axis=1) / np.maximum(
        np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1), 1e-9
    )
    return bool((cosines >= np.cos(np.radians(TURNED_DEG))).all())


def _without_pages(planes: Sequence[Plane], said: list[str]) -> list[Plane]:
    """Return the planes without pages of text among slices: those of another kind of pixels, and
    those that alone say nothing of where they lie.

    Raises:
        ImageError: as many have 8 bits as have more.
    """
    grays = [plane for plane in planes if plane.claim.bits <= 8]
    rest = [plane for plane in planes if plane.claim.bits > 8]
    if len(grays) == len(rest):
        raise ImageError(
            "Some slices of the scan have Hounsfield units and some do not; please send them as"
            " separate scans."
        )
    found, odd = (rest, grays) if len(rest) > len(grays) else (grays, rest)
    if odd:
        _say(odd, f"of another type, with {odd[0].claim.bits}-bit pixels.", said)
    lost = [
        plane
        for plane in found
        if plane.position_mm is None and plane.location_mm is None and plane.directions is None
    ]
    if not lost or 2 * len(lost) >= len(found):
        return found
    _say(lost, "without a position, which the others have.", said)
    return _others(found, lost)


def _others(planes: Sequence[Plane], some: Sequence[Plane]) -> list[Plane]:
    there = {id(plane) for plane in some}
    return [plane for plane in planes if id(plane) not in there]


def _in_order(
    planes: Sequence[Plane], said: list[str]
) -> tuple[list[Plane], tuple[float, ...], float | None]:
    """Return planes from foot to head, how far each lies from the next in mm, and how far they
    usually do; nothing where no file knows.
    """
    places, source = _places_of(planes)
    unplaced = [plane for plane, place in zip(planes, places, strict=True) if place is None]
    if source == "order":
        said.append(
            "The files do not give the positions of their slices; they were read in the order"
            " given."
        )
        return list(planes), (), _usual_step(planes)
    if unplaced:
        _say(unplaced, "without a position, and none could be derived from the others.", said)
    placed = [
        (plane, place) for plane, place in zip(planes, places, strict=True) if place is not None
    ]
    kept = _one_pass([plane for plane, _ in placed], [place for _, place in placed], said)
    ordered = [placed[at][0] for at in kept]
    if source == "number":
        said.append(
            "The files do not give the positions of their slices; they were ordered by instance"
            " number."
        )
        _say_missing_numbers(ordered, said)
        return ordered, (), _usual_step(ordered)
    if source == "location":
        said.append(
            "The files do not give the positions of their slices in the patient; they were ordered"
            " by slice location."
        )
    steps_mm = np.diff([placed[at][1] for at in kept])
    if not len(steps_mm):
        return ordered, (), None
    _say_angles(ordered, said)
    first, last = ordered[0].position_mm, ordered[-1].position_mm
    if source == "position" and first is not None and last is not None:
        said += tilt_note(last - first, _mean_normal(ordered))
    said += _oddities(steps_mm)
    return ordered, tuple(float(step) for step in steps_mm), float(np.median(steps_mm))


def _places_of(planes: Sequence[Plane]) -> tuple[list[float | None], str]:
    """Return the place of each slice in mm toward the head, or its rank where only numbers are
    known; None where it cannot be told; and which source tells: "position", "location", "number" or
    "order".
    """
    normal = _mean_normal(planes)
    positions = [
        None if plane.position_mm is None else float(np.dot(normal, plane.position_mm))
        for plane in planes
    ]
    locations = [plane.location_mm for plane in planes]
    numbers = [None if plane.number is None else float(plane.number) for plane in planes]
    if _distinct(positions) >= max(_distinct(locations), 2):
        for other in (locations, numbers):
            positions = _filled(positions, other)
        return positions, "position"
    if _distinct(locations) >= 2:
        return _filled(locations, numbers), "location"
    if _distinct(numbers) == len(planes) or (
        _distinct(numbers) >= 2 and sum(number is None for number in numbers) * 2 < len(planes)
    ):
        return numbers, "number"
    return [None] * len(planes), "order"


def _distinct(places: Sequence[float | None]) -> int:
    """Return how many places there are that are not the same."""
    known = sorted(place for place in places if place is not None)
    return sum(np.diff(known) > SAME_PLACE_MM) + 1 if known else 0


def _filled(places: list[float | None], other: Sequence[float | None]) -> list[float | None]:
    """Return the places, those that are not known put between the others by another property that
    runs evenly with them.
    """
    if None not in places:
        return places
    known = sorted(
        {
            (by, place)
            for by, place in zip(other, places, strict=True)
            if by is not None and place is not None
        }
    )
    by, at = np.array([pair[0] for pair in known]), np.array([pair[1] for pair in known])
    if len(known) < 2 or (np.diff(by) <= 0).any():
        return places
    steps = np.diff(at)
    if not ((steps > 0).all() or (steps < 0).all()):
        return places

    def place_at(value: float) -> float:
        if by[0] <= value <= by[-1]:
            return float(np.interp(value, by, at))
        end, inner = (0, 1) if value < by[0] else (-1, -2)
        return float(at[end] + (value - by[end]) * (at[inner] - at[end]) / (by[inner] - by[end]))

    return [
        place_at(value) if place is None and value is not None else place
        for place, value in zip(places, other, strict=True)
    ]


def _one_pass(planes: Sequence[Plane], places: Sequence[float], said: list[str]) -> list[int]:
    """Return the indices of the slices of one pass over the head, from foot to head: copies are
    left out, and slices where others lie that belong to the other passes.

    A pass is made of whole acquisitions as far as they continue each other.
    """

    def by_what_the_files_say(at: int) -> tuple[float, float, str, str]:
        plane = planes[at]
        return (
            np.inf if plane.acquisition is None else plane.acquisition,
            np.inf if plane.number is None else plane.number,
            plane.time,
            plane.name,
        )

    spots = _spots(places)
    lying: dict[int, list[int]] = {}
    copies: list[Plane] = []
    for at in sorted(range(len(planes)), key=by_what_the_files_say):
        here = lying.setdefault(spots[at], [])
        if any(np.array_equal(planes[at].stored, planes[other].stored) for other in here):
            copies.append(planes[at])
        else:
            here.append(at)
    if copies:
        _say(copies, "a copy of another slice.", said)
    if all(len(here) == 1 for here in lying.values()):
        return [here[0] for _, here in sorted(lying.items())]
    # by acquisition, and by how often one of them comes past a place
    units: dict[tuple[float, int], dict[int, int]] = {}
    for spot, here in lying.items():
        times = Counter[float]()
        for at in here:
            acquisition = by_what_the_files_say(at)[0]
            units.setdefault((acquisition, times[acquisition]), {})[spot] = at
            times[acquisition] += 1
    passes: list[dict[int, int]] = []
    for _, unit in sorted(units.items()):
        for one in passes:
            shared = len(unit.keys() & one.keys())
            if shared <= OVERLAP * min(len(unit), len(one)):
                one.update({spot: at for spot, at in unit.items() if spot not in one})
                break
        else:
            passes.append(dict(unit))
    fullest = max(passes, key=len)
    kept = set(fullest.values())
    others = [planes[at] for here in lying.values() for at in here if at not in kept]
    _say(others, "from another pass over the same positions.", said)
    return [at for _, at in sorted(fullest.items())]


def _spots(places: Sequence[float]) -> list[int]:
    """Return for each place the rank of the spot that it shares with those at the same place."""
    spots, spot, start = [0] * len(places), -1, -np.inf
    for at in sorted(range(len(places)), key=lambda at: places[at]):
        if places[at] - start > SAME_PLACE_MM:
            spot, start = spot + 1, places[at]
        spots[at] = spot
    return spots


def _mean_normal(planes: Sequence[Plane]) -> Vector:
    normals = [plane.normal for plane in planes if plane.normal is not None]
    mean = np.mean(normals, axis=0) if normals else np.array([0.0, 0.0, 1.0])
    return np.asarray(mean / np.linalg.norm(mean))


def _usual_step(planes: Sequence[Plane]) -> float | None:
    """Return how far slices lie from each other by what they say of that, or of how thick they
    are.
    """
    steps = [plane.step_mm for plane in planes if plane.step_mm is not None and plane.step_mm > 0]
    return float(np.median(steps)) if len(steps) == len(planes) else None


def _say_angles(planes: Sequence[Plane], said: list[str]) -> None:
    normal = _mean_normal(planes)
    cosines = [float(np.dot(normal, one.normal)) for one in planes if one.normal is not None]
    if cosines and min(cosines) < np.cos(np.radians(TILTED_DEG)):
        said.append("The slices are at different angles to each other.")


def _say_missing_numbers(ordered: Sequence[Plane], said: list[str]) -> None:
    numbers = [plane.number for plane in ordered if plane.number is not None]
    steps = np.diff(numbers)
    if len(steps) and np.median(steps) == 1:
        said += [
            f"Slices are missing: after number {numbers[at]} comes number {numbers[at + 1]}."
            for at in np.flatnonzero(steps > 1)[:NAMED]
        ]


def is_gap(steps_mm: Vector) -> NDArray[np.bool_]:
    """Return for each step from a slice to the next whether a part of the scan is missing there."""
    return np.asarray(steps_mm > GAP * _usual(steps_mm))


def _usual(steps_mm: Vector) -> Vector:
    """Return the median of the steps around each."""
    return np.array(
        [np.median(steps_mm[max(i - AROUND, 0) : i + AROUND + 1]) for i in range(len(steps_mm))]
    )


def _oddities(steps_mm: Vector) -> list[str]:
    """Return sentences about gaps and uneven spacing. Scanners change their step within a head, so
    a step is judged by those around it.
    """
    usual = _usual(steps_mm)
    missing = is_gap(steps_mm)
    gaps = np.flatnonzero(missing)
    said = [
        f"A part of the scan is missing between slices {i + 1} and {i + 2}: they are"
        f" {steps_mm[i]:.3g} mm apart, neighboring slices {usual[i]:.3g} mm."
        for i in gaps[:NAMED]
    ]
    if len(gaps) > NAMED:
        said.append(f"Parts are missing in {len(gaps) - NAMED} further places.")
    rest = steps_mm[~missing]
    if len(rest) and rest.max() > EVEN * rest.min():
        said.append(
            f"The slices are unevenly spaced: {rest.min():.3g} to {rest.max():.3g} mm apart."
        )
    return said


def _size(plane: Plane) -> tuple[int, int]:
    """Return the (height, width) that a slice has upright."""
    rows, columns = plane.stored.shape
    lies_across = plane.directions is not None and abs(plane.directions[0, 1]) > abs(
        plane.directions[0, 0]
    )
    return (columns, rows) if lies_across else (rows, columns)


def _say(planes: Sequence[Plane], what: str, said: list[str]) -> None:
    """Add a sentence that these were left out, and what they are."""
    said.append(
        f"{_slices(_names(planes))} left out: {'it is' if len(planes) == 1 else 'they are'} {what}"
    )


def _names(planes: Sequence[Plane]) -> list[str]:
    return [plane.name for plane in planes]


def _slices(names: Sequence[str]) -> str:
    """Return who was left out, the first of them by name."""
    shown = list(dict.fromkeys(name for name in names if name))
    listed = ", ".join(shown[:NAMED]) + (", …" if len(shown) > NAMED else "")
    named = f" ({listed})" if listed else ""
    return f"One slice{named} was" if len(names) == 1 else f"{len(names)} slices{named} were"


def _files(planes: Sequence[Plane]) -> str:
    names = ", ".join(name for name in _names(planes)[:NAMED] if name)
    if len(planes) == 1:
        return f"One file{f' ({names})' if names else ''} does"
    more = ", …" if len(planes) > NAMED else ""
    return f"{len(planes)} files{f' ({names}{more})' if names else ''} do"
