"""Sort the slices of a scan by their position along the normal, and note irregularities for the
user.

A property that a file lacks is taken from the next best source: the orientation from the other
slices, the position from the slice location or the instance number. Two slices at the same position
are copies only if their pixels are equal; otherwise they belong to two passes over the head, and
the more complete pass is read. The order of the files matters only if they contain no information
about their order. Slices that are left out are named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ml.errors import ImageError
from ml.files.same_scan import SAME_PLACE_MM
from ml.scans.geometry import (
    factor_of_sizes,
    in_square_pixels,
    scaled,
    spacing_notes,
    turned_upright,
)
from ml.scans.passes import one_pass
from ml.scans.planes import (
    MAX_LISTED,
    Plane,
    Vector,
    files_named,
    names_of,
    note_left_out,
    slices_named,
)
from ml.scans.slice_scales import scales_of
from ml.scans.slices import Series, Slice

UNEVEN_MM = 0.1  # maximum deviation of the steps between the slices of one stack
AXIAL = 0.7  # minimum cosine between the normal of an axial slice and the body's axis
TILTED_DEG = 1.0
TURNED_DEG = 20.0  # slices at larger angles to each other do not belong to the same scan
NOT_AXIAL = "not axial (coronal, sagittal or oblique); the models know axial slices only."
ORIENTATION_UNKNOWN = (
    "The DICOM file does not give the patient's orientation; the forehead is assumed to be at the"
    " top."
)


def arrange(planes: Sequence[Plane]) -> Series:
    """Return the slices of one series from foot to head. Slices are left out, with a note, if their
    orientation, size or pixel type differs, if they are copies, or if they belong to another pass
    over the same positions.

    Raises:
        ImageError: the slices belong to different series, none of them is axial, or their values
            cannot be converted to Hounsfield units.
    """
    notes: list[str] = []
    _require_one_series(planes, notes)
    planes = _with_directions(_without_pages(planes, notes), notes)
    axial = [plane for plane in planes if plane.normal is None or plane.normal[2] >= AXIAL]
    if not axial:
        raise ImageError(f"The {'slice is' if len(planes) == 1 else 'slices are'} {NOT_AXIAL}")
    if not_axial := _without(planes, axial):
        note_left_out(not_axial, NOT_AXIAL, notes)
    same_size = of_one_size([_size(plane) for plane in axial], names_of(axial), notes)
    ordered = _with_spacing([axial[index] for index in same_size], notes)
    steps_mm: tuple[float, ...] = ()
    distance_mm = None
    if len(ordered) > 1:  # one slice needs no order
        ordered, steps_mm, distance_mm = _in_order(ordered, notes)
    plane_notes = [note for plane in ordered for note in plane.notes]
    if any(plane.directions is None for plane in ordered):
        plane_notes.append(ORIENTATION_UNKNOWN)
    slices, scale_notes = slices_of(ordered)
    factor, size_notes = factor_of_sizes(
        "DICOM file", slices[0].spacing_mm, slices[0].pixels.shape, distance_mm, len(slices)
    )
    if factor is None:
        slices = [replace(slice_, spacing_mm=None) for slice_ in slices]
        distance_mm, steps_mm = None, ()
    elif factor != 1:
        slices = [
            replace(slice_, spacing_mm=scaled(slice_.spacing_mm, factor)) for slice_ in slices
        ]
        distance_mm = None if distance_mm is None else factor * distance_mm
        steps_mm = scaled(steps_mm, factor)
    notes += size_notes
    if len({slice_.spacing_mm for slice_ in slices}) > 1:
        notes.append("The pixels of some slices are larger than those of others.")
    warnings = tuple(dict.fromkeys([*scale_notes, *plane_notes, *notes]))
    return Series(tuple(slices), warnings, distance_mm, steps_mm)


def slices_of(planes: Sequence[Plane]) -> tuple[list[Slice], list[str]]:
    """Return the slices of one scan upright, with square pixels and on one scale, and notes about
    assumptions.

    Raises:
        ImageError: their values cannot be converted to Hounsfield units.
    """
    scales, notes = scales_of(
        [plane.stored for plane in planes],
        [plane.padding for plane in planes],
        [plane.claim for plane in planes],
    )
    slices = []
    for plane, scale in zip(planes, scales, strict=True):
        pixels = scale.pixels(plane.stored, plane.padding)
        sides = plane.spacing_mm or plane.aspect
        if plane.directions is not None:
            pixels, sides = turned_upright(pixels, sides, plane.directions)
        pixels, sides = in_square_pixels(pixels, sides)
        slices.append(Slice(pixels, scale.unit, sides if plane.spacing_mm else None))
    return slices, notes


def of_one_size(
    sizes: Sequence[tuple[int, int]], names: Sequence[str], notes: list[str]
) -> list[int]:
    """Return the indices of the slices of the most common size (height, width), or of the larger
    size if two are equally common; append a note that names the other slices.
    """
    counts = Counter(sizes)
    height, width = max(counts, key=lambda size: (counts[size], size))
    others = [name for size, name in zip(sizes, names, strict=True) if size != (height, width)]
    if others:
        notes.append(
            f"{slices_named(others)} left out:"
            f" {'its size differs' if len(others) == 1 else 'their sizes differ'} from {width} x"
            f" {height} pixels."
        )
    return [index for index, size in enumerate(sizes) if size == (height, width)]


def tilt_note(step: Vector, normal: Vector) -> list[str]:
    """Return a note if neighboring slices, `step` (mm) apart, are offset within the slice plane, as
    they are after a tilt of the gantry.
    """
    cosine = abs(float(np.dot(step, normal))) / max(float(np.linalg.norm(step)), 1e-9)
    tilt_deg = float(np.degrees(np.arccos(min(cosine, 1.0))))
    return (
        [f"The gantry was tilted by {tilt_deg:.3g}°; the slices are shown as they were scanned."]
        if tilt_deg > TILTED_DEG
        else []
    )


def _require_one_series(planes: Sequence[Plane], notes: list[str]) -> None:
    """Refuse slices of several studies or series, unless each has its own UIDs and all other
    identifiers agree.
    """
    named = {(plane.study_uid, plane.series_uid) for plane in planes if plane.series_uid}
    series = {
        uids
        for uids in named
        if uids[0] or not any(uids[1] == other[1] for other in named - {uids})
    }
    if len(series) < 2:
        return
    uid_per_slice = len(series) == sum(bool(plane.series_uid) for plane in planes) > 2
    studies = {plane.study_uid for plane in planes}
    numbers = {plane.series_number for plane in planes}
    if uid_per_slice and len(numbers) == 1 and None not in numbers:
        if len(studies) == 1 and "" not in studies:
            notes.append(
                "Each slice has its own series UID; they were read as one series because study and"
                " series number are the same."
            )
            return
        if len(studies) == len(planes) and _is_one_stack(planes):
            notes.append(
                "Each slice has its own study UID; they were read as one series because they are"
                " evenly spaced."
            )
            return
    raise ImageError(
        f"The files belong to {len(series)} different series; a scan is a single series."
    )


def _is_one_stack(planes: Sequence[Plane]) -> bool:
    """Return whether the slices are evenly stacked, like those of one scan."""
    if any(plane.position_mm is None for plane in planes):
        return False
    positions = np.array(sorted(tuple(plane.position_mm[::-1]) for plane in planes))  # type: ignore[index]
    steps = np.diff(positions, axis=0)
    usual = np.median(steps, axis=0)
    return bool(usual[0] > SAME_PLACE_MM and np.abs(steps - usual).max() <= UNEVEN_MM)


def _with_directions(planes: Sequence[Plane], notes: list[str]) -> list[Plane]:
    """Return the planes, with the most common directions for those that have none, and without the
    planes with a clearly different orientation if these are a minority.
    """
    known = [plane.directions for plane in planes if plane.directions is not None]
    if not known:
        return list(planes)
    usual = _most_common_directions(known)
    unoriented = [plane for plane in planes if plane.directions is None]
    if unoriented:
        notes.append(
            f"{files_named(unoriented)} not give an orientation; that of the other slices was"
            " assumed."
        )
    oriented = [
        replace(plane, directions=usual) if plane.directions is None else plane for plane in planes
    ]
    turned = [
        plane
        for plane in oriented
        if plane.normal is not None
        and plane.normal[2] >= AXIAL
        and not _is_parallel(usual, plane.directions)  # type: ignore[arg-type]
    ]
    if turned and 2 * len(turned) < len(oriented):
        note_left_out(turned, "oriented differently from the rest.", notes)
        return _without(oriented, turned)
    return oriented


def _with_spacing(planes: Sequence[Plane], notes: list[str]) -> list[Plane]:
    """Return the planes, with the most common pixel size for those that have none."""
    known = Counter(plane.spacing_mm for plane in planes if plane.spacing_mm is not None)
    unsized = [plane for plane in planes if plane.spacing_mm is None]
    if not known or not unsized:
        return list(planes)
    [(usual, _)] = known.most_common(1)
    notes.append(
        f"{files_named(unsized)} not give a pixel size; that of the other slices was assumed."
    )
    return [
        replace(plane, spacing_mm=usual) if plane.spacing_mm is None else plane for plane in planes
    ]


def _most_common_directions(directions: Sequence[Vector]) -> Vector:
    """Return the first of the directions (2, 3) that are parallel to the most others."""
    parallels = [
        sum(_is_parallel(candidate, other) for other in directions) for candidate in directions
    ]
    return directions[int(np.argmax(parallels))]


def _is_parallel(directions: Vector, others: Vector) -> bool:
    """Return whether the rows and the columns of two slices have the same directions."""
    cosines = (directions * others).sum(axis=1) / np.maximum(
        np.linalg.norm(directions, axis=1) * np.linalg.norm(others, axis=1), 1e-9
    )
    return bool((cosines >= np.cos(np.radians(TURNED_DEG))).all())


def _without_pages(planes: Sequence[Plane], notes: list[str]) -> list[Plane]:
    """Return the planes without what is no slice of the scan: a minority with another pixel type,
    the few without a position if the others have one, and the few that were made from the others.

    Raises:
        ImageError: exactly half of the slices are 8-bit.
    """
    eight_bit = [plane for plane in planes if plane.claim.bits <= 8]
    deeper = [plane for plane in planes if plane.claim.bits > 8]
    if len(eight_bit) == len(deeper):
        raise ImageError(
            "Some slices of the scan have Hounsfield units and some do not; please send them as"
            " separate scans."
        )
    majority, outliers = (
        (deeper, eight_bit) if len(deeper) > len(eight_bit) else (eight_bit, deeper)
    )
    if outliers:
        note_left_out(
            outliers, f"of another type, with {outliers[0].claim.bits}-bit pixels.", notes
        )
    unpositioned = [
        plane
        for plane in majority
        if plane.position_mm is None and plane.location_mm is None and plane.directions is None
    ]
    made = [plane for plane in majority if plane.is_made]
    for few, reason in (
        (unpositioned, "without a position, which the others have."),
        (made, "made from other slices (reformatted, or a secondary capture)."),
    ):
        left = [plane for plane in majority if any(plane is other for other in few)]
        if left and 2 * len(left) < len(majority):
            note_left_out(left, reason, notes)
            majority = _without(majority, left)
    return majority


def _without(planes: Sequence[Plane], removed: Sequence[Plane]) -> list[Plane]:
    removed_ids = {id(plane) for plane in removed}
    return [plane for plane in planes if id(plane) not in removed_ids]


def _in_order(
    planes: Sequence[Plane], notes: list[str]
) -> tuple[list[Plane], tuple[float, ...], float | None]:
    """Return the planes from foot to head, the steps from each to the next in mm, and the usual
    step; without steps if the files do not give positions.
    """
    positions, source = _positions_of(planes)
    if source == "order":
        notes.append(
            "The files do not give the positions of their slices; they were read in the order"
            " given."
        )
        return list(planes), (), _usual_step(planes)
    known = [
        (plane, position)
        for plane, position in zip(planes, positions, strict=True)
        if position is not None
    ]
    if unknown := [plane for plane, at in zip(planes, positions, strict=True) if at is None]:
        note_left_out(
            unknown, "without a position, and none could be derived from the others.", notes
        )
    indices = one_pass([plane for plane, _ in known], [position for _, position in known], notes)
    ordered = [known[index][0] for index in indices]
    if source == "number":
        notes.append(
            "The files do not give the positions of their slices; they were ordered by instance"
            " number."
        )
        _note_missing_numbers(ordered, notes)
        return ordered, (), _usual_step(ordered)
    if source == "location":
        notes.append(
            "The files do not give the positions of their slices in the patient; they were ordered"
            " by slice location."
        )
    steps_mm = np.diff([known[index][1] for index in indices])
    if not len(steps_mm):
        return ordered, (), None
    _note_angles(ordered, notes)
    first, last = ordered[0].position_mm, ordered[-1].position_mm
    if source == "position" and first is not None and last is not None:
        notes += tilt_note(last - first, _mean_normal(ordered))
    notes += spacing_notes(steps_mm)
    return ordered, tuple(float(step) for step in steps_mm), float(np.median(steps_mm))


def _positions_of(planes: Sequence[Plane]) -> tuple[list[float | None], str]:
    """Return the position of each slice in mm toward the head, or its rank if only numbers are
    known, or None if unknown; and the source used: "position", "location", "number" or "order".
    """
    normal = _mean_normal(planes)
    placeholder = _placeholder_in(planes)
    positions = [
        None
        if plane.position_mm is None or tuple(plane.position_mm) == placeholder
        else float(np.dot(normal, plane.position_mm))
        for plane in planes
    ]
    locations = [plane.location_mm for plane in planes]
    numbers = [None if plane.number is None else float(plane.number) for plane in planes]
    # Files without a position do not count here: they must not decide for the others.
    of_positioned = [
        location
        for location, position in zip(locations, positions, strict=True)
        if position is not None
    ]
    are_usual = 2 * len(of_positioned) > len(planes)
    if _distinct(positions) >= max(_distinct(of_positioned if are_usual else locations), 2):
        for other in (locations, numbers):
            positions = _interpolated(positions, other)
        return positions, "position"
    if _distinct(locations) >= 2:
        return _interpolated(locations, numbers), "location"
    if _distinct(numbers) == len(planes) or (
        _distinct(numbers) >= 2 and sum(number is None for number in numbers) * 2 < len(planes)
    ):
        return numbers, "number"
    return [None] * len(planes), "order"


def _placeholder_in(planes: Sequence[Plane]) -> tuple[float, ...] | None:
    """Return the position that some files have instead of their own; None if there is none.

    Some programs write zeros: the other slices, at least two, have other positions within the
    plane, too. Others repeat the position of one slice: most slices have it, under different
    numbers.
    """
    known = [tuple(plane.position_mm) for plane in planes if plane.position_mm is not None]
    elsewhere = [position for position in known if any(position)]
    if 2 <= len(elsewhere) < len(known) and all(any(position[:2]) for position in elsewhere):
        return (0.0, 0.0, 0.0)
    for position, times in Counter(known).most_common(1):
        numbers = {
            plane.number
            for plane in planes
            if plane.position_mm is not None and tuple(plane.position_mm) == position
        } - {None}
        if 2 * times > len(planes) and len(numbers) == times < len(known):
            return position
    return None


def _distinct(positions: Sequence[float | None]) -> int:
    """Return the number of distinct positions."""
    known = sorted(position for position in positions if position is not None)
    return sum(np.diff(known) > SAME_PLACE_MM) + 1 if known else 0


def _interpolated(
    positions: list[float | None], other: Sequence[float | None]
) -> list[float | None]:
    """Return the positions, missing ones interpolated from another property that is monotonic in
    position, or extrapolated at the ends by as many steps as there are missing ones.
    """
    if None not in positions:
        return positions
    pairs = sorted(
        {
            (value, position)
            for value, position in zip(other, positions, strict=True)
            if value is not None and position is not None
        }
    )
    x, y = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    if len(pairs) < 2 or (np.diff(x) <= 0).any():
        return positions
    steps = np.diff(y)
    if not ((steps > 0).all() or (steps < 0).all()):
        return positions

    def position_at(value: float) -> float | None:
        if x[0] <= value <= x[-1]:
            return float(np.interp(value, x, y))
        end, inner = (0, 1) if value < x[0] else (-1, -2)
        if abs(value - x[end]) > positions.count(None) * abs(x[inner] - x[end]):
            return None
        return float(y[end] + (value - x[end]) * (y[inner] - y[end]) / (x[inner] - x[end]))

    return [
        position_at(value) if position is None and value is not None else position
        for position, value in zip(positions, other, strict=True)
    ]


def _mean_normal(planes: Sequence[Plane]) -> Vector:
    normals = [plane.normal for plane in planes if plane.normal is not None]
    mean = np.mean(normals, axis=0) if normals else np.array([0.0, 0.0, 1.0])
    return np.asarray(mean / np.linalg.norm(mean))


def _usual_step(planes: Sequence[Plane]) -> float | None:
    """Return the median distance between slices according to their tags; None if any lacks it."""
    steps = [plane.step_mm for plane in planes if plane.step_mm is not None and plane.step_mm > 0]
    return float(np.median(steps)) if len(steps) == len(planes) else None


def _note_angles(planes: Sequence[Plane], notes: list[str]) -> None:
    normal = _mean_normal(planes)
    cosines = [float(np.dot(normal, plane.normal)) for plane in planes if plane.normal is not None]
    if cosines and min(cosines) < np.cos(np.radians(TILTED_DEG)):
        notes.append("The slices are at different angles to each other.")


def _note_missing_numbers(ordered: Sequence[Plane], notes: list[str]) -> None:
    numbers = [plane.number for plane in ordered if plane.number is not None]
    steps = np.diff(numbers)
    if len(steps) and np.median(steps) == 1:
        notes += [
            f"Slices are missing: after number {numbers[i]} comes number {numbers[i + 1]}."
            for i in np.flatnonzero(steps > 1)[:MAX_LISTED]
        ]


def _size(plane: Plane) -> tuple[int, int]:
    """Return the (height, width) of a slice after it is turned upright."""
    rows, columns = plane.stored.shape
    is_sideways = plane.directions is not None and abs(plane.directions[0, 1]) > abs(
        plane.directions[0, 0]
    )
    return (columns, rows) if is_sideways else (rows, columns)
