"""The passes over the head in one series, told apart by what its files say, never by pixels.

A scan that was repeated has several passes, even if nothing but their order, their times or their
positions distinguishes their slices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence, Set
from itertools import pairwise
from statistics import median
from typing import Any

MOST_RUNS = 4
"""Numbers that turn back more often say nothing about the order of acquisition."""
COVERED = 0.6
"""Minimum share of the positions' extent that each of several runs covers."""
COVERED_BY_STEPS = 0.4
"""The same share if the positions of each run are evenly spaced, apart from those of the others."""
MOST_UNKNOWN = 0.25
"""Maximum share of slices without a number, if the numbers count."""
UNEVEN = 0.25
"""Of the typical step: minimum difference between neighboring steps of which every other one is of
another pass.
"""
SAME_STEP = 0.1
"""Of the step of a pass: maximum deviation of its slices from even positions."""
FEWEST = 3


def runs_over_the_head(
    positions: Sequence[float],
    numbers: Sequence[float | None],
    times: Sequence[str] = (),
    folders: Sequence[str | None] = (),
    names: Sequence[Any] = (),
) -> list[int]:
    """Return the number of the pass to which each slice belongs, from 0; all are 0 where nothing
    tells passes apart.

    These are tried in turn: every other position has another distance to the next, or other
    numbers; the positions turn back in the order of the numbers, or every number occurs as often at
    other positions; there are a few times or folders, each for a whole pass. If several slices lie
    at a position, so that there must be several passes, also the order of the names.

    Args:
        positions: along the axis, in mm.
        numbers: instance numbers of the same slices; None for unknown ones.
        times: of the acquisition; "" for unknown ones.
        folders: of the files.
        names: keys that sort the files by name.
    """
    if not positions:
        return []
    are_repeated = len(set(positions)) < len(positions)
    runs = (
        _by_steps(positions, numbers)
        or _by_order(positions, numbers)
        or _by_labels(positions, times)
        or _by_labels(positions, folders)
        or (_by_order(positions, names) if are_repeated and names else None)
    )
    return runs or [0] * len(positions)


def _by_order(positions: Sequence[float], numbers: Sequence[Any]) -> list[int] | None:
    """Return the runs by the order of numbers; a slice without one belongs to the only run that
    lacks its position.
    """
    known = [at for at in range(len(positions)) if numbers[at] is not None]
    if len(known) < max(2, (1 - MOST_UNKNOWN) * len(positions)):
        return None
    in_order = sorted(known, key=lambda at: (numbers[at], positions[at]))
    parts: list[list[int]] = []
    times = set(Counter(numbers[at] for at in known).values())
    if times == {1}:
        for at in in_order:
            if not parts or _turns_back(positions, parts[-1], at):
                parts.append([])
            parts[-1].append(at)
    elif len(times) == 1 and len({positions[at] for at in known}) == len(known):
        (repeats,) = times
        parts = [in_order[rank::repeats] for rank in range(repeats)]
    for at in sorted(set(range(len(positions))) - set(known)):
        lacking = [part for part in parts if positions[at] not in {positions[i] for i in part}]
        if len(lacking) != 1:
            return None
        lacking[0].append(at)
    return _labels(positions, parts, COVERED)


def _by_steps(positions: Sequence[float], numbers: Sequence[float | None]) -> list[int] | None:
    """Return two runs of evenly spaced slices whose positions alternate, if every other step
    differs, or if the numbers of the runs are the same or follow each other.
    """
    places = sorted(set(positions))
    if len(places) < 2 * FEWEST or len(places) < len(positions):
        return None
    step = median(upper - lower for lower, upper in zip(places, places[2:], strict=False))
    offsets = {place: (place - places[0] + SAME_STEP * step) % step for place in places}
    first = [place for place in places if offsets[place] <= 2 * SAME_STEP * step]
    rest = [place for place in places if offsets[place] > 2 * SAME_STEP * step]
    if min(len(first), len(rest)) < FEWEST:
        return None
    apart = [offsets[place] - SAME_STEP * step for place in rest]
    if max(apart) - min(apart) > 2 * SAME_STEP * step:
        return None
    is_half = abs(median(apart) - step / 2) <= UNEVEN * step / 4
    parts = [
        [at for at, place in enumerate(positions) if place in set(one)] for one in (first, rest)
    ]
    if not all(_is_even(one, step) for one in (first, rest)):
        return None
    if is_half and not are_numbered_apart(*({numbers[at] for at in part} for part in parts)):
        return None
    return _labels(positions, parts, COVERED_BY_STEPS)


def are_numbered_apart(some: Set[float | None], rest: Set[float | None]) -> bool:
    """Return whether the numbers of two runs are the same, as far as the shorter one reaches, or
    follow each other; unknown ones do not count.
    """
    one, other = sorted(
        [sorted(number for number in numbers if number is not None) for numbers in (some, rest)],
        key=len,
    )
    if not one:
        return False
    common = len(set(one) & set(other))
    return common >= (1 - MOST_UNKNOWN) * len(one) or one[-1] < other[0] or other[-1] < one[0]


def _is_even(places: Sequence[float], step: float) -> bool:
    """Return whether most of the places are a step apart."""
    steps = [upper - lower for lower, upper in pairwise(places)]
    return sum(abs(one - step) <= 2 * SAME_STEP * step for one in steps) >= 0.75 * len(steps)


def _by_labels(positions: Sequence[float], labels: Sequence[Hashable]) -> list[int] | None:
    """Return a run for each of a few labels; None if they do not stand for whole passes."""
    distinct = dict.fromkeys(labels)
    if not 2 <= len(distinct) <= MOST_RUNS or "" in distinct:
        return None
    parts = [
        [at for at, label in enumerate(labels) if label == one] for one in sorted(distinct, key=str)
    ]
    return _labels(positions, parts, COVERED)


def _labels(
    positions: Sequence[float], parts: Sequence[Sequence[int]], covered: float
) -> list[int] | None:
    """Return the number of the part of each slice; None if one covers too little of the head."""
    whole = max(positions) - min(positions)
    if not 2 <= len(parts) <= MOST_RUNS:
        return None
    runs = [0] * len(positions)
    for number, part in enumerate(parts):
        places = [positions[at] for at in part]
        if max(places) - min(places) < covered * whole:
            return None
        for at in part:
            runs[at] = number
    return runs


def _turns_back(positions: Sequence[float], run: Sequence[int], at: int) -> bool:
    """Return whether a slice lies before the last one of a run, in the run's direction."""
    first, last = positions[run[0]], positions[run[-1]]
    return len(run) > 1 and (last > first) != (positions[at] > last)
