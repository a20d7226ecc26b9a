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
) -> dict[int, list[int]]:
    """Return the indices of the slices at each position (by rank), without slices whose pixels
    equal those of another slice at that position.
    """
    ranks = _position_ranks(positions)
    by_position: dict[int, list[int]] = {}
    copies: list[Plane] = []
    for index in sorted(range(len(planes)), key=lambda index: _acquisition_key(planes[index])):
        distinct = by_position.setdefault(ranks[index], [])
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
    planes: Sequence[Plane], by_position: Mapping[int, Sequence[int]]
) -> list[dict[int, int]]:
    """Return the passes over the head, each as a mapping from position to the index of the slice
    there. Acquisitions of different techniques or thicknesses form one pass only if they continue
    each other.
    """
    of_techniques: dict[tuple[tuple[str, ...], float], dict[int, list[int]]] = {}
    for position, indices in by_position.items():
        for index in indices:
            technique = planes[index].technique, planes[index].thickness_mm or 0.0
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
    planes: Sequence[Plane], by_position: Mapping[int, Sequence[int]]
) -> list[dict[int, int]]:
    """Return the acquisitions, each as a mapping from position to the index of the slice there; one
    that covers a position several times is split, so that each part covers it once.
    """
    parts: dict[tuple[float, int], dict[int, int]] = {}
    for position, indices in by_position.items():
        repeats = Counter[float]()
        for index in indices:
            acquisition = _acquisition_key(planes[index])[0]
            parts.setdefault((acquisition, repeats[acquisition]), {})[position] = index
            repeats[acquisition] += 1
    return [part for _, part in sorted(parts.items())]


def _merged_passes(
    planes: Sequence[Plane], acquisitions: Sequence[Mapping[int, int]]
) -> list[dict[int, int]]:
    """Return passes over the head: each acquisition continues the first pass with which it shares
    at most `OVERLAP` of its positions (the pass keeps its own slices there), or starts another. It
    does not continue a pass with whose slices it alternates, if the two are marked as different
    scans.
    """
    passes: list[dict[int, int]] = []
    for acquisition in acquisitions:
        for merged in passes:
            few = OVERLAP * min(len(acquisition), len(merged))
            if len(acquisition.keys() & merged.keys()) > few:
                continue
            if _times_parted(acquisition, merged) <= few or not _are_two_scans(
                [planes[index] for index in acquisition.values()],
                [planes[index] for index in merged.values()],
            ):
                merged.update({**acquisition, **merged})
                break
        else:
            passes.append(dict(acquisition))
    return passes


def _times_parted(acquisition: Mapping[int, int], other: Mapping[int, int]) -> int:
    """Return the number of neighboring slices of an acquisition with slices of the other between
    them.
    """
    of_other = sorted(other)
    return sum(
        bisect_right(of_other, lower) < bisect_left(of_other, upper)
        for lower, upper in pairwise(sorted(acquisition))
    )


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


def _position_ranks(positions: Sequence[float]) -> list[int]:
    """Return the rank of each position; positions within `SAME_PLACE_MM` share a rank."""
    ranks, rank, start = [0] * len(positions), -1, -np.inf
    for index in sorted(range(len(positions)), key=lambda index: positions[index]):
        if positions[index] - start > SAME_PLACE_MM:
            rank, start = rank + 1, positions[index]
        ranks[index] = rank
    return ranks
