"""Which DICOM files make one scan, by their headers alone.

A series is keyed by study and series, and split where size or direction differ, and where its files
cover the same positions more than once: by technique (kernel, tube voltage) and acquisition, never
by its number alone. A few odd files stay with the rest; the reader (`ml.scans.ordering`) leaves
them out with a note. Files are ordered by number, time and name, whatever order they were sent in.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, sqrt
from statistics import median
from typing import TypeAlias

from ml.files.runs import runs_over_the_head
from ml.files.same_scan import OVERLAP, SAME_PLACE_MM, SliceFacts, continues
from webapp.intake.clean_copy import Taken

FEWEST_FILES = 3
"""Minimum files for a separate scan; fewer count as odd files."""
AXIAL, SAME_WAY = 0.7, 0.94
"""Minimum cosine between a slice's normal and the body's axis, and between directions that count as
equal: the cosine of 20 degrees.
"""
UNEVEN_MM = 0.1
"""Maximum difference between the steps of one stack of slices."""

UNCERTAIN = (
    "The files do not say which slices belong to which pass; they were told apart by their names."
)

Pass: TypeAlias = dict[float, list[Taken]]
"""The files of one pass over the head, by position; several files at a position if they are
copies.
"""


@dataclass(frozen=True)
class Group:
    """The files of one scan in order, a suffix for its title, and sentences for its owner."""

    files: tuple[Taken, ...]
    part: str = ""
    notes: tuple[str, ...] = ()


def series_key(file: Taken) -> tuple[object, ...]:
    """Return the key shared by the files of a series.

    Without UIDs it is the series number. A file that states neither patient, study nor series, and
    shares its folder with no other, is a series by itself.
    """
    header = file.dicom
    if header.concatenation:
        return "concatenation", header.study, header.series, header.concatenation
    if file.slices > 1 and header.series and len(_places(file)) == file.slices:
        return "frames", header.study, header.patient, header.series
    if file.slices > 1:
        return "alone", file.number
    if header.series:
        return "series", header.study, header.series
    if header.study or header.patient or header.series_number or file.folder is not None:
        return "unnamed", header.study, header.patient, header.series_number, file.folder
    return "alone", file.number


def scans_of(groups: Sequence[Sequence[Taken]]) -> list[Group]:
    """Return the scans in groups of files; a group holds the DICOM files of one series, or other
    files.
    """
    scans: list[Group] = []
    for files in _with_series_of_one_joined(_with_unnamed_joined(groups)):
        if files[0].kind != "dicom" or len(files) < 2:
            scans.append(Group(tuple(files)))
            continue
        if any(file.slices > 1 and not file.dicom.concatenation for file in files):
            scans += _stacks(files)
            continue
        if any(file.slices > 1 for file in files):  # a concatenation
            scans.append(Group(tuple(sorted(files, key=_by_what_it_says))))
            continue
        for alike in _alike(sorted(files, key=_by_what_it_says)):
            scans += _passes(alike)
    return scans


def _stacks(files: Sequence[Taken]) -> list[Group]:
    """Return multi-frame files as one group if each continues the previous one at the same spacing,
    otherwise each as a separate group.
    """
    ordered = sorted(files, key=lambda file: (_places(file), file.number))
    places = [place for file in ordered for place in _places(file)]
    sizes = {(file.dicom.rows, file.dicom.columns) for file in files}
    if len(sizes) == 1 and places == sorted(places) and _are_even(places):
        return [Group(tuple(ordered))]
    return [Group((file,)) for file in ordered]


def _places(file: Taken) -> list[tuple[float, ...]]:
    """Return the known positions of a file's frames, z first, in ascending order."""
    return sorted(place[::-1] for place in file.dicom.frame_positions if place)


def by_numbers(name: str) -> list[tuple[int, str]]:
    """Return the key of natural sorting: slice 9 before slice 10."""
    return [
        (int(part), "") if part.isdigit() and part.isascii() else (0, part)
        for part in re.split(r"([0-9]{1,9})", name.lower())
    ]


def _by_what_it_says(file: Taken) -> tuple[object, ...]:
    header = file.dicom
    return (
        inf if header.number is None else header.number,
        header.time,
        by_numbers(f"{file.folder or ''}/{file.name}"),
        file.number,
    )


def _with_unnamed_joined(groups: Sequence[Sequence[Taken]]) -> list[list[Taken]]:
    """Return the groups; a group without a study or series UID is merged with the only series that
    it does not contradict, if there is exactly one.
    """
    merged = [list(files) for files in groups]
    named = [files for files in merged if _is_named(files[0])]
    joined: list[list[Taken]] = []
    for files in merged:
        if files[0].kind != "dicom" or files[0].slices > 1 or _is_named(files[0]):
            continue
        candidates = [other for other in named if _may_be_of_one_series(files[0], other[0])]
        if len(candidates) == 1:
            candidates[0].extend(files)
            joined.append(files)
    return [files for files in merged if not any(files is other for other in joined)]


def _is_named(file: Taken) -> bool:
    return file.kind == "dicom" and bool(file.dicom.study and file.dicom.series)


def _may_be_of_one_series(file: Taken, other: Taken) -> bool:
    """True if a file with missing identifiers does not contradict another in patient, study or
    series, and shares at least one of them, or the folder.
    """
    header, other_header = file.dicom, other.dicom
    if other.slices > 1 or (header.rows, header.columns) != (
        other_header.rows,
        other_header.columns,
    ):
        return False
    stated = [
        (first, second)
        for first, second in (
            (header.study, other_header.study),
            (header.series, other_header.series),
            (header.patient, other_header.patient),
            (header.series_number, other_header.series_number),
        )
        if first and second
    ]
    if any(first != second for first, second in stated):
        return False
    shares = (
        (header.study and other_header.study)
        or header.series
        or (header.patient and other_header.patient)
    )
    return bool(shares) or (file.folder is not None and file.folder == other.folder)


def _with_series_of_one_joined(groups: Sequence[Sequence[Taken]]) -> list[list[Taken]]:
    """Return the groups, merging groups of one slice whose scanner gave each slice its own series
    UID, or also its own study UID.

    Patient, series number, size and kernel are the same, and no two slices have the same number;
    slices of several studies are evenly spaced.
    """
    joined: dict[tuple[object, ...], list[Taken]] = {}
    for files in groups:
        header = files[0].dicom
        is_slice = len(files) == 1 and files[0].slices == 1
        if is_slice and header.series and header.study and header.series_number:
            size = header.rows, header.columns
            key = header.patient, header.series_number, size, header.technique
            joined.setdefault(("study", header.study, *key), []).extend(files)
            joined.setdefault(("studies", *key), []).extend(files)
    whole = {
        id(file): files
        for key, files in reversed(joined.items())
        if len(files) >= FEWEST_FILES
        and len({(file.dicom.number, file.dicom.position) for file in files}) == len(files)
        and (key[0] == "study" or _is_one_stack(files))
        for file in files
    }
    parts: list[list[Taken]] = []
    for files in groups:
        part = whole.get(id(files[0]), files)
        if not any(part is other for other in parts):
            parts.append(part if isinstance(part, list) else list(part))
    return parts


def _is_one_stack(files: Sequence[Taken]) -> bool:
    """True if each file has its own study, and the slices are evenly spaced."""
    places = sorted(file.dicom.position[::-1] for file in files)
    if len({file.dicom.study for file in files}) < len(files) or () in places:
        return False
    return _are_even(places)


def _are_even(places: Sequence[tuple[float, ...]]) -> bool:
    """True if these positions, z first, are evenly spaced."""
    steps = [
        tuple(after - before for before, after in zip(lower, upper, strict=True))
        for lower, upper in pairwise(places)
    ]
    usual = [median(step[axis] for step in steps) for axis in range(3)]
    return usual[0] > SAME_PLACE_MM and all(
        abs(part - of_all) <= UNEVEN_MM
        for step in steps
        for part, of_all in zip(step, usual, strict=True)
    )


def _alike(files: Sequence[Taken]) -> list[list[Taken]]:
    """Return the files of a series split by size and direction; a few odd files, and directions
    other than axial, stay with the largest part.
    """
    parts: list[list[Taken]] = []
    for file in files:
        for part in parts:
            if _is_like(part[0], file):
                part.append(file)
                break
        else:
            parts.append([file])
    parts.sort(key=len, reverse=True)
    large_enough = [part for part in parts if len(part) >= FEWEST_FILES and _is_axial(part[0])]
    main, *others = large_enough or [parts[0]]
    rest = [
        file
        for part in parts
        if not any(part is chosen for chosen in (main, *others))
        for file in part
    ]
    return [sorted([*main, *rest], key=_by_what_it_says), *others]


def _is_like(file: Taken, other: Taken) -> bool:
    if (file.dicom.rows, file.dicom.columns) != (other.dicom.rows, other.dicom.columns):
        return False
    a, b = file.dicom.orientation, other.dicom.orientation
    return not a or not b or (_cosine(a[:3], b[:3]) >= SAME_WAY <= _cosine(a[3:], b[3:]))


def _is_axial(file: Taken) -> bool:
    normal = _normal(file)
    return abs(normal[2]) >= AXIAL


def _passes(files: list[Taken]) -> list[Group]:
    """Return the files of a series as one group, or as several if they cover the same positions
    more than once; files with equal pixels count once.
    """
    spots = _spots(files)
    if spots is None:
        return [Group(tuple(files))]
    folders = _folders_of_scans(files)
    at_spot: dict[float, dict[bytes, list[Taken]]] = {}
    distinct: list[tuple[Taken, float]] = []
    unplaced: list[Taken] = []
    for file, spot in zip(files, spots, strict=True):
        if spot is None:
            unplaced.append(file)
            continue
        copies = at_spot.setdefault(spot, {}).setdefault(file.digest, [])
        copies.append(file)
        if len(copies) == 1:
            distinct.append((file, spot))
    runs = _runs(distinct)
    units: dict[tuple[tuple[str, ...], float, str, float, int, int], Pass] = {}
    times: Counter[tuple[object, ...]] = Counter()
    for file, spot in distinct:
        acquisition = inf if file.dicom.acquisition is None else file.dicom.acquisition
        folder = (file.folder or "") if file.folder in folders else ""
        unit = (*_technique_of(file), folder, acquisition, runs[file.number])
        units.setdefault((*unit, times[spot, unit]), {})[spot] = at_spot[spot][file.digest]
        times[spot, unit] += 1
    odd: list[Taken] = []
    of_techniques: dict[tuple[object, ...], list[Pass]] = {}
    for (*same_technique, _, _, _), part in sorted(units.items(), key=lambda item: item[0]):
        of_techniques.setdefault(tuple(same_technique), []).append(part)
    passes = _merged(
        [pass_ for parts in of_techniques.values() for pass_ in _merged(parts, odd)], odd
    )
    fullest = max(passes, key=len)
    whole = [pass_ for pass_ in passes if pass_ is fullest or len(pass_) >= FEWEST_FILES]
    for pass_ in passes:
        if not any(pass_ is other for other in whole):
            odd += _flat(pass_.values())
    if len(whole) == 1:
        return [Group(tuple(files))]
    notes = _notes_about(
        len(whole), [(file, spot) for file, spot in distinct if file.folder not in folders]
    )
    return [
        Group(
            tuple(
                sorted(
                    [*_flat(pass_.values()), *(unplaced + odd if pass_ is fullest else [])],
                    key=_by_what_it_says,
                )
            ),
            f", pass {number}",
            tuple(notes),
        )
        for number, pass_ in enumerate(whole, start=1)
    ]


def _notes_about(passes: int, files: Sequence[tuple[Taken, float]]) -> list[str]:
    """Return the notes about several passes, given the files that no folder tells apart, with their
    positions.
    """
    notes = [
        f"The series covers the same positions {passes} times; each pass became a separate scan."
    ]
    alike = Counter(
        (spot, _technique_of(file), file.dicom.acquisition, file.dicom.number, file.dicom.time)
        for file, spot in files
    )
    if sum(count > 1 for count in alike.values()) >= FEWEST_FILES:
        notes.append(UNCERTAIN)
    return notes


def _technique_of(file: Taken) -> tuple[tuple[str, ...], float]:
    return file.dicom.technique, round(file.dicom.thickness or 0.0, 1)


def _runs(files: Sequence[tuple[Taken, float]]) -> dict[int, int]:
    """Return the run over the head of each file, by its number in the upload, given positions."""
    of_techniques: dict[object, list[tuple[float, Taken]]] = {}
    for file, spot in files:
        of_techniques.setdefault(_technique_of(file), []).append((spot, file))
    return {
        file.number: run
        for placed in of_techniques.values()
        for (_, file), run in zip(
            placed,
            runs_over_the_head(
                [spot for spot, _ in placed],
                [file.dicom.number for _, file in placed],
                [file.dicom.time for _, file in placed],
                [file.folder for _, file in placed],
                [tuple(by_numbers(f"{file.folder or ''}/{file.name}")) for _, file in placed],
            ),
            strict=True,
        )
    }


def _merged(parts: Sequence[Pass], odd: list[Taken]) -> list[Pass]:
    """Return passes over the head: each part continues the first pass that it may, by
    `ml.files.same_scan`, or begins a new one. Files at shared positions are added to `odd`.
    """
    passes: list[Pass] = []
    for part in parts:
        for pass_ in passes:
            shared = part.keys() & pass_.keys()
            some, others = (list(map(_facts_of, _flat(one.values()))) for one in (part, pass_))
            if continues(part, pass_, some, others):
                pass_.update({spot: here for spot, here in part.items() if spot not in shared})
                odd += _flat(here for spot, here in part.items() if spot in shared)
                break
        else:
            passes.append(dict(part))
    return passes


def _facts_of(file: Taken) -> SliceFacts:
    header = file.dicom
    return SliceFacts(
        header.acquisition, header.technique, header.thickness, header.number, file.folder or ""
    )


def _numbers_of(files: Sequence[Taken]) -> set[float]:
    return {file.dicom.number for file in files if file.dicom.number is not None}


def _folders_of_scans(files: Sequence[Taken]) -> set[str | None]:
    """Return the folders that each contain a separate scan: their files have the same numbers as
    those of another folder.
    """
    by_folder: dict[str | None, list[Taken]] = {}
    for file in files:
        by_folder.setdefault(file.folder, []).append(file)
    numbers = {folder: _numbers_of(some) for folder, some in by_folder.items()}
    return {
        folder
        for folder, own in numbers.items()
        for other, others in numbers.items()
        if folder != other and len(own & others) > OVERLAP * min(len(own), len(others))
    }


def _flat(files: Iterable[Iterable[Taken]]) -> list[Taken]:
    return [file for some in files for file in some]


def _spots(files: Sequence[Taken]) -> list[float | None] | None:
    """Return the position of each file in mm, the same for files within `SAME_PLACE_MM` of each
    other, and None for a file without one. Returns None if the files do not distinguish positions
    at all.
    """
    x, y, z = next((_normal(file) for file in files if file.dicom.orientation), (0.0, 0.0, 1.0))
    placeholder = _placeholder_in(files)
    places_of = [
        () if file.dicom.position == placeholder else file.dicom.position for file in files
    ]
    positions = [
        sum(a * b for a, b in zip((x, y, z), place, strict=True)) if place else None
        for place in places_of
    ]
    locations = [file.dicom.location for file in files]
    # Files without a position do not count here: they must not decide for the others.
    of_placed = [
        location
        for location, position in zip(locations, positions, strict=True)
        if position is not None
    ]
    are_usual = 2 * len(of_placed) > len(files)
    places = locations
    if _distinct(positions) >= _distinct(of_placed if are_usual else locations):
        at_location = {
            location: position
            for location, position in zip(locations, positions, strict=True)
            if location is not None and position is not None
        }
        places = [
            at_location.get(location) if position is None and location is not None else position
            for location, position in zip(locations, positions, strict=True)
        ]
    if _distinct(places) < 2:
        return None
    spots: dict[float, float] = {}
    spot = -inf
    for place in sorted(place for place in places if place is not None):
        if place - spot > SAME_PLACE_MM:
            spot = place
        spots[place] = spot
    return [None if place is None else spots[place] for place in places]


def _placeholder_in(files: Sequence[Taken]) -> tuple[float, ...] | None:
    """Return the position that some files have instead of their own; None if there is none.

    Some programs write zeros: the other files, at least two, have other positions within the
    plane, too. Others repeat the position of one slice: most files have it, under different
    numbers.
    """
    known = [file.dicom.position for file in files if file.dicom.position]
    elsewhere = [place for place in known if any(place)]
    if 2 <= len(elsewhere) < len(known) and all(any(place[:2]) for place in elsewhere):
        return (0.0, 0.0, 0.0)
    for place, times in Counter(known).most_common(1):
        numbers = _numbers_of([file for file in files if file.dicom.position == place])
        if 2 * times > len(files) and len(numbers) == times < len(known):
            return place
    return None


def _distinct(places: Sequence[float | None]) -> int:
    known = sorted(place for place in places if place is not None)
    gaps = (after - before for before, after in pairwise(known))
    return sum(gap > SAME_PLACE_MM for gap in gaps) + 1 if known else 0


def _normal(file: Taken) -> tuple[float, float, float]:
    """Return the unit vector normal to a slice; along the body's axis if unknown."""
    if not file.dicom.orientation:
        return 0.0, 0.0, 1.0
    a, b, c, d, e, f = file.dicom.orientation
    normal = b * f - c * e, c * d - a * f, a * e - b * d
    length = sqrt(sum(part * part for part in normal)) or 1.0
    return normal[0] / length, normal[1] / length, normal[2] / length


def _cosine(first: Sequence[float], second: Sequence[float]) -> float:
    lengths = sqrt(sum(a * a for a in first)) * sqrt(sum(b * b for b in second))
    return sum(a * b for a, b in zip(first, second, strict=True)) / (lengths or 1.0)
