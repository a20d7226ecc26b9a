"""The most complete pass over the head, where several slices lie at the same positions: copies, and
acquisitions that repeat or continue each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ml.scans.planes import SAME_PLACE_MM, Plane, note_left_out

OVERLAP = 0.2  # maximum share of overlapping positions for two acquisitions to form one pass


def one_pass(planes: Sequence[Plane], positions: Sequence[float], notes: list[str]) -> list[int]:
    """Return the indices of the slices of the most complete pass over the head, from foot to head;
    copies and the slices of other passes at the same positions are left out.
    """
    by_position = _without_copies(planes, positions, notes)
    if all(len(indices) == 1 for indices in by_position.values()):
        return [indices[0] for _, indices in sorted(by_position.items())]
    longest = max(_passes(planes, by_position), key=len)
    used = set(longest.values())
    others = [
        planes[index] for indices in by_position.values() for index in indices if index not in used
    ]
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
    """Return the passes over the head, each as the index of the slice at each position. Those of
    different techniques are one pass only if they continue each other.
    """
    of_techniques: dict[tuple[str, ...], dict[int, list[int]]] = {}
    for position, indices in by_position.items():
        for index in indices:
            by_technique = of_techniques.setdefault(planes[index].technique, {})
            by_technique.setdefault(position, []).append(index)
    return _merged_passes(
        [
            single_pass
            for _, positions in sorted(of_techniques.items())
            for single_pass in _merged_passes(_split_acquisitions(planes, positions))
        ]
    )


def _split_acquisitions(
    planes: Sequence[Plane], by_position: Mapping[int, Sequence[int]]
) -> list[dict[int, int]]:
    """Return the acquisitions, each as the index of the slice at each position; one that covers a
    position several times is split, so that each part covers it once.
    """
    parts: dict[tuple[float, int], dict[int, int]] = {}
    for position, indices in by_position.items():
        repeats = Counter[float]()
        for index in indices:
            acquisition = _acquisition_key(planes[index])[0]
            parts.setdefault((acquisition, repeats[acquisition]), {})[position] = index
            repeats[acquisition] += 1
    return [part for _, part in sorted(parts.items())]


def _merged_passes(acquisitions: Sequence[Mapping[int, int]]) -> list[dict[int, int]]:
    """Return passes over the head: each acquisition continues the first pass with which it shares
    at most `OVERLAP` of its positions (the pass keeps its own slices there), or begins another.
    """
    passes: list[dict[int, int]] = []
    for acquisition in acquisitions:
        for merged in passes:
            shared = len(acquisition.keys() & merged.keys())
            if shared <= OVERLAP * min(len(acquisition), len(merged)):
                merged.update({**acquisition, **merged})
                break
        else:
            passes.append(dict(acquisition))
    return passes


def _position_ranks(positions: Sequence[float]) -> list[int]:
    """Return the rank of each position; positions within `SAME_PLACE_MM` share a rank."""
    ranks, rank, start = [0] * len(positions), -1, -np.inf
    for index in sorted(range(len(positions)), key=lambda index: positions[index]):
        if positions[index] - start > SAME_PLACE_MM:
            rank, start = rank + 1, positions[index]
        ranks[index] = rank
    return ranks
