"""Find the most complete pass over the head if several slices lie at the same positions: copies,
and acquisitions that repeat or continue each other.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise, zip_longest

import numpy as np

from ml.scans.planes import SAME_PLACE_MM, Plane, note_left_out

OVERLAP = 0.2  # maximum share of overlapping positions for two acquisitions to form one pass
THICKER = 1.5  # minimum ratio of thicknesses of two reconstructions
UNEVEN = 0.25  # of the typical step: maximum spread of the steps of one scan
CROWDED = 0.75  # of the slice thickness: closer slices overlap, so one pass does not alternate them


def one_pass(planes: Sequence[Plane], positions: Sequence[float], notes: list[str]) -> list[int]:
    """Return the indices of the slices of the most complete pass over the head, from foot to head;
    copies, and the slices of other passes at or between the same positions, are left out.
    """
    by_position = _without_copies(planes, positions, notes)
    longest = max(_passes(planes, by_position), key=len)
    used = set(longest.values())
    others = [
        planes[index] for indices in by_position.values() for index in indices if index not in used
    ]
    if others:
        note_left_out(others, "from another pass over the same positions.", notes)
    return [index for _, index in sorted(longest.items())]


def _without_copies(
    planes: Sequence[Plane], positions: Sequence[float], notes: list[str]
) -> dict[float, list[int]]:
    """Return the indices of the slices at each position, without slices whose pixels equal those of
    another slice at that position.
    """
    places = _places(positions)
    by_position: dict[float, list[int]] = {}
    copies: list[Plane] = []
    for index in sorted(range(len(planes)), key=lambda index: _acquisition_key(planes[index])):
        distinct = by_position.setdefault(places[index], [])
        if any(np.array_equal(planes[index].stored, planes[other].stored) for other in distinct):
            copies.append(planes[index])
        else:
            distinct.append(index)
    if copies:
        reason = "a copy of another slice." if len(copies) == 1 else "copies of other slices."
        note_left_out(copies, reason, notes)
    return by_position


def _acquisition_key(plane: Plane) -> tuple[float, float, str, str]:
    """Return a sort key that does not depend on the order of the files."""
    return (
        np.inf if plane.acquisition is None else plane.acquisition,
        np.inf if plane.number is None else plane.number,
        plane.time,
        plane.name,
    )


def _passes(
    planes: Sequence[Plane], by_position: Mapping[float, Sequence[int]]
) -> list[dict[float, int]]:
    """Return the passes over the head, each as a mapping from position to the index of the slice
    there. Acquisitions of different techniques or thicknesses form one pass only if they continue
    each other.
    """
    of_techniques: dict[tuple[tuple[str, ...], float], dict[float, list[int]]] = {}
    for position, indices in by_position.items():
        for index in indices:
            technique = planes[index].technique, round(planes[index].thickness_mm or 0.0, 1)
            of_techniques.setdefault(technique, {}).setdefault(position, []).append(index)
    return _merged_passes(
        planes,
        [
            single_pass
            for _, positions in sorted(of_techniques.items())
            for single_pass in _merged_passes(planes, _split_acquisitions(planes, positions))
        ],
    )


def _split_acquisitions(
    planes: Sequence[Plane], by_position: Mapping[float, Sequence[int]]
) -> list[dict[float, int]]:
    """Return the acquisitions, each as a mapping from position to the index of the slice there; one
    that covers a position several times is split, so that each part covers it once.
    """
    parts: dict[tuple[float, int], dict[float, int]] = {}
    for position, indices in by_position.items():
        repeats = Counter[float]()
        for index in indices:
            acquisition = _acquisition_key(planes[index])[0]
            parts.setdefault((acquisition, repeats[acquisition]), {})[position] = index
            repeats[acquisition] += 1
    return [part for _, part in sorted(parts.items())]


def _merged_passes(
    planes: Sequence[Plane], acquisitions: Sequence[Mapping[float, int]]
) -> list[dict[float, int]]:
    """Return passes over the head: each acquisition continues the first pass with which it shares
    at most `OVERLAP` of its positions (the pass keeps its own slices there), or starts another. It
    does not continue a pass with whose slices it alternates, if the two are marked as different
    scans.
    """
    passes: list[dict[float, int]] = []
    for acquisition in acquisitions:
        for merged in passes:
            few = OVERLAP * min(len(acquisition), len(merged))
            if len(acquisition.keys() & merged.keys()) > few:
                continue
            some, others = ([planes[at] for at in one.values()] for one in (acquisition, merged))
            if (
                _times_parted(acquisition, merged) <= few
                or not _are_crowded([*acquisition, *merged], [*some, *others])
                or not _are_two_scans(some, others)
            ):
                merged.update({**acquisition, **merged})
                break
        else:
            passes.append(dict(acquisition))
    return passes


def _times_parted(acquisition: Mapping[float, int], other: Mapping[float, int]) -> int:
    """Return the number of neighboring slices of an acquisition with slices of the other between
    them.
    """
    of_other = sorted(other)
    return sum(
        bisect_right(of_other, lower) < bisect_left(of_other, upper)
        for lower, upper in pairwise(sorted(acquisition))
    )


def _are_crowded(positions: Sequence[float], planes: Sequence[Plane]) -> bool:
    """Return whether slices at these positions overlap or are unevenly spaced; interleaved
    acquisitions of one scan fill each other's gaps evenly.
    """
    steps = np.diff(sorted(set(positions)))
    typical, spread = float(np.median(steps)), float(np.ptp(np.quantile(steps, [0.25, 0.75])))
    thickest = max((plane.thickness_mm or 0.0 for plane in planes), default=0.0)
    return typical < CROWDED * thickest or spread > UNEVEN * typical


def _are_two_scans(planes: Sequence[Plane], others: Sequence[Plane]) -> bool:
    """Return whether the slices contradict the others in acquisition, technique or thickness;
    missing values contradict nothing.
    """
    acquisitions, of_others = (
        {plane.acquisition for plane in some} - {None} for some in (planes, others)
    )
    if acquisitions and of_others and not acquisitions & of_others:
        return True
    thin, thick = sorted(
        float(np.median([plane.thickness_mm for plane in some if plane.thickness_mm] or [0.0]))
        for some in (planes, others)
    )
    if 0 < THICKER * thin < thick:
        return True
    parts, of_others_parts = (
        [
            set(values) - {""}
            for values in zip_longest(*(plane.technique for plane in some), fillvalue="")
        ]
        for some in (planes, others)
    )
    return any(
        part and of_other and not part & of_other
        for part, of_other in zip(parts, of_others_parts, strict=False)
    )


def _places(positions: Sequence[float]) -> list[float]:
    """Return the first of the positions within `SAME_PLACE_MM` of each other, for each of them."""
    places, place = [0.0] * len(positions), -np.inf
    for index in sorted(range(len(positions)), key=lambda index: positions[index]):
        if positions[index] - place > SAME_PLACE_MM:
            place = positions[index]
        places[index] = place
    return places
