"""Find the most complete pass over the head if several slices lie at the same positions: copies,
and acquisitions that repeat or continue each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ml.files.runs import runs_over_the_head
from ml.files.same_scan import SAME_PLACE_MM, SliceFacts, continues, may_be_two
from ml.scans.planes import Plane, note_left_out

MAY_BE_TWO = (
    "By their instance numbers, the slices may be of two scans that lie between each other; they"
    " were read as one."
)


def one_pass(planes: Sequence[Plane], positions: Sequence[float], notes: list[str]) -> list[int]:
    """Return the indices of the slices of the most complete pass over the head, from foot to head;
    copies, and the slices of other passes at or between the same positions, are left out.
    """
    by_position = _without_copies(planes, positions, notes)
    are_doubtful: list[bool] = []
    longest = max(_passes(planes, by_position, are_doubtful), key=len)
    if any(are_doubtful):
        notes.append(MAY_BE_TWO)
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
    planes: Sequence[Plane],
    by_position: Mapping[float, Sequence[int]],
    are_doubtful: list[bool],
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
            for single_pass in _merged_passes(
                planes, _split_acquisitions(planes, positions), are_doubtful
            )
        ],
        are_doubtful,
    )


def _split_acquisitions(
    planes: Sequence[Plane], by_position: Mapping[float, Sequence[int]]
) -> list[dict[float, int]]:
    """Return the acquisitions, each as a mapping from position to the index of the slice there; one
    that covers a position, or the whole head, several times is split, so that each part covers it
    once.
    """
    places = [(place, index) for place, indices in by_position.items() for index in indices]
    runs = runs_over_the_head(
        [place for place, _ in places],
        [planes[index].number for _, index in places],
        [planes[index].time for _, index in places],
        names=[planes[index].name for _, index in places],
    )
    parts: dict[tuple[float, int, int], dict[float, int]] = {}
    repeats = Counter[tuple[float, float, int]]()
    for (place, index), run in zip(places, runs, strict=True):
        acquisition = _acquisition_key(planes[index])[0]
        parts.setdefault((acquisition, run, repeats[place, acquisition, run]), {})[place] = index
        repeats[place, acquisition, run] += 1
    return [part for _, part in sorted(parts.items())]


def _merged_passes(
    planes: Sequence[Plane],
    acquisitions: Sequence[Mapping[float, int]],
    are_doubtful: list[bool],
) -> list[dict[float, int]]:
    """Return passes over the head: each acquisition continues the first pass that it may, by
    `ml.files.same_scan`, which keeps its own slices at positions of both, or starts another.
    Whether it might be another scan all the same is added to `are_doubtful`.
    """
    passes: list[dict[float, int]] = []
    for acquisition in acquisitions:
        for merged in passes:
            some, others = (
                [_facts_of(planes[at]) for at in one.values()] for one in (acquisition, merged)
            )
            if continues(acquisition, merged, some, others):
                are_doubtful.append(may_be_two(acquisition, merged, some, others))
                merged.update({**acquisition, **merged})
                break
        else:
            passes.append(dict(acquisition))
    return passes


def _facts_of(plane: Plane) -> SliceFacts:
    return SliceFacts(plane.acquisition, plane.technique, plane.thickness_mm, plane.number)


def _places(positions: Sequence[float]) -> list[float]:
    """Return the first of the positions within `SAME_PLACE_MM` of each other, for each of them."""
    places, place = [0.0] * len(positions), -np.inf
    for index in sorted(range(len(positions)), key=lambda index: positions[index]):
        if positions[index] - place > SAME_PLACE_MM:
            place = positions[index]
        places[index] = place
    return places
