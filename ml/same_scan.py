"""Whether slices that lie at or between the positions of others continue their pass over the head,
or belong to another scan.

The web application, which reads headers only, and the workers, which read the files, share this
rule. It needs the standard library only.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from statistics import median

SAME_PLACE_MM = 0.05
OVERLAP = 0.2
"""Maximum share of positions that an acquisition may have in common with the one that it continues.
"""
THICKER = 1.5
"""Minimum ratio of the slice thicknesses of two reconstructions."""
UNEVEN = 0.25
"""Of the typical step: maximum difference between most neighboring steps of one scan."""
CROWDED = 0.75
"""Of the slice thickness: slices closer than that overlap, so one pass does not alternate them."""
MOST_RUNS = 4
"""Numbers that turn back more often say nothing about the order of acquisition."""
COVERED = 0.6
"""Minimum share of the positions' extent that each of several runs covers."""


@dataclass(frozen=True)
class SliceFacts:
    """What distinguishes the slices of two scans; missing values contradict nothing.

    Attributes:
        acquisition: the acquisition number.
        technique: kernel, tube voltage and kind of reconstruction; "" for missing ones.
        thickness_mm: of the slice.
        number: the instance number.
        folder: of the file; None if it is unknown.
    """

    acquisition: float | None
    technique: tuple[str, ...]
    thickness_mm: float | None
    number: float | None = None
    folder: str | None = None


def continues(
    part: Collection[float],
    other: Collection[float],
    facts: Sequence[SliceFacts],
    facts_of_other: Sequence[SliceFacts],
) -> bool:
    """Return whether slices at the positions of `part` continue a pass at those of `other`: they
    share few positions, and do not alternate with its slices if the two are marked as different
    scans.
    """
    few = OVERLAP * min(len(part), len(other))
    if len(set(part) & set(other)) > few:
        return False
    if _times_parted(part, other) <= few:
        return True
    positions = [*part, *other]
    if _are_uneven(positions) and _are_numbered_apart(facts, facts_of_other):
        return False
    are_crowded = _are_uneven(positions) or _overlap(positions, [*facts, *facts_of_other])
    return not (are_crowded and _are_two_scans(facts, facts_of_other))


def runs_over_the_head(positions: Sequence[float], numbers: Sequence[float | None]) -> list[int]:
    """Return the number of the run to which each slice belongs, from 0. A scan that was repeated
    has several runs, even if nothing else distinguishes its slices: their positions turn back in
    the order of the instance numbers, or every number occurs as often at other positions. All are 0
    where the numbers say nothing.

    Args:
        positions: along the axis, in mm.
        numbers: instance numbers of the same slices; None for unknown ones.
    """
    runs = [0] * len(positions)
    if not positions or None in numbers:
        return runs
    in_order = sorted(range(len(positions)), key=lambda at: (numbers[at], positions[at]))
    parts: list[list[int]] = []
    times = set(Counter(numbers).values())
    if times == {1}:
        for at in in_order:
            if not parts or _turns_back(positions, parts[-1], at):
                parts.append([])
            parts[-1].append(at)
    elif len(times) == 1 and len(set(positions)) == len(positions):
        (repeats,) = times
        parts = [in_order[rank::repeats] for rank in range(repeats)]
    extents = [abs(positions[part[-1]] - positions[part[0]]) for part in parts]
    whole = max(positions) - min(positions)
    if len(parts) <= MOST_RUNS and all(extent >= COVERED * whole for extent in extents):
        for number, part in enumerate(parts):
            for at in part:
                runs[at] = number
    return runs


def _turns_back(positions: Sequence[float], run: Sequence[int], at: int) -> bool:
    """Return whether a slice lies before the last one of a run, in the run's direction."""
    first, last = positions[run[0]], positions[run[-1]]
    return len(run) > 1 and (last > first) != (positions[at] > last)


def _times_parted(part: Collection[float], other: Collection[float]) -> int:
    """Return how many pairs of neighboring slices of a part have slices of the other between
    them.
    """
    of_other = sorted(other)
    return sum(
        bisect_right(of_other, lower) < bisect_left(of_other, upper)
        for lower, upper in pairwise(sorted(part))
    )


def _overlap(positions: Sequence[float], facts: Sequence[SliceFacts]) -> bool:
    """Return whether slices at these positions overlap."""
    steps = [upper - lower for lower, upper in pairwise(sorted(set(positions)))]
    return median(steps) < CROWDED * max(
        (slice_.thickness_mm or 0.0 for slice_ in facts), default=0
    )


def _are_uneven(positions: Sequence[float]) -> bool:
    """Return whether the positions are unevenly spaced; interleaved acquisitions of one scan fill
    each other's gaps evenly, although their step may be smaller at the base of the skull.
    """
    steps = [upper - lower for lower, upper in pairwise(sorted(set(positions)))]
    changes = sorted(abs(after - before) for before, after in pairwise(steps))
    return changes[-1 - len(changes) // 4] > UNEVEN * median(steps)


def _are_numbered_apart(facts: Sequence[SliceFacts], others: Sequence[SliceFacts]) -> bool:
    """Return whether the numbers of two runs are the same, or follow each other."""
    some, rest = (
        {slice_.number for slice_ in one if slice_.number is not None} for one in (facts, others)
    )
    return bool(some and rest) and (some == rest or max(some) < min(rest) or max(rest) < min(some))


def _are_two_scans(facts: Sequence[SliceFacts], others: Sequence[SliceFacts]) -> bool:
    """Return whether slices contradict others in acquisition, technique, thickness or, if both have
    the same numbers, folder.
    """
    acquisitions, of_others = (
        {slice_.acquisition for slice_ in some} - {None} for some in (facts, others)
    )
    if acquisitions and of_others and not acquisitions & of_others:
        return True
    thin, thick = sorted(
        median([slice_.thickness_mm for slice_ in some if slice_.thickness_mm] or [0.0])
        for some in (facts, others)
    )
    if 0 < THICKER * thin < thick:
        return True
    numbers, of_others_numbers = (
        {slice_.number for slice_ in some} - {None} for some in (facts, others)
    )
    if numbers & of_others_numbers and not (
        {slice_.folder for slice_ in facts} & {slice_.folder for slice_ in others}
    ):
        return True
    parts, of_others_parts = (
        [
            set(values) - {""}
            for values in zip_longest(*(slice_.technique for slice_ in some), fillvalue="")
        ]
        for some in (facts, others)
    )
    return any(
        part and of_other and not part & of_other
        for part, of_other in zip(parts, of_others_parts, strict=False)
    )
