"""Whether slices that lie at or between the positions of others continue their pass over the head,
or belong to another scan; `ml.files.runs` finds the passes of a series.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from statistics import median

from ml.files.runs import are_numbered_apart

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
FEWEST_EVEN = 4
SAME_STEP = 0.1
"""Maximum difference between the steps of two passes with one protocol."""


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
    scans. Slices with the same marks that alternate unevenly, although either part is even, are
    two passes with one protocol.
    """
    few = OVERLAP * min(len(part), len(other))
    if len(set(part) & set(other)) > few:
        return False
    if _times_parted(part, other) <= few:
        return True
    positions = [*part, *other]
    is_uneven = _are_uneven(positions)
    if is_uneven and _are_alike(part, other) and _marks(facts) == _marks(facts_of_other):
        return False
    are_crowded = is_uneven or _overlap(positions, [*facts, *facts_of_other])
    return not (
        are_crowded
        and (_are_numbered_apart(facts, facts_of_other) or _are_two_scans(facts, facts_of_other))
    )


def may_be_two(
    part: Collection[float],
    other: Collection[float],
    facts: Sequence[SliceFacts],
    facts_of_other: Sequence[SliceFacts],
) -> bool:
    """Return whether a part that `continues` the other may be another scan all the same: their
    slices alternate, and their numbers repeat or follow each other.
    """
    return _times_parted(part, other) > OVERLAP * min(len(part), len(other)) and (
        _are_numbered_apart(facts, facts_of_other)
    )


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


def _are_uneven(positions: Collection[float]) -> bool:
    """Return whether the positions are unevenly spaced; interleaved acquisitions of one scan fill
    each other's gaps evenly, although their step may be smaller at the base of the skull.
    """
    steps = [upper - lower for lower, upper in pairwise(sorted(set(positions)))]
    changes = sorted(abs(after - before) for before, after in pairwise(steps))
    return changes[-1 - len(changes) // 4] > UNEVEN * median(steps)


def _are_alike(part: Collection[float], other: Collection[float]) -> bool:
    """Return whether two parts are evenly spaced, with the same step."""
    steps = []
    for positions in (part, other):
        if len(positions) < FEWEST_EVEN or _are_uneven(positions):
            return False
        steps.append(median(upper - lower for lower, upper in pairwise(sorted(positions))))
    return abs(steps[0] - steps[1]) <= SAME_STEP * max(steps)


def _marks(facts: Sequence[SliceFacts]) -> set[tuple[object, ...]]:
    return {(slice_.acquisition, slice_.technique, slice_.thickness_mm) for slice_ in facts}


def _are_numbered_apart(facts: Sequence[SliceFacts], others: Sequence[SliceFacts]) -> bool:
    """Return whether the numbers of two runs are the same, as far as the shorter one reaches, or
    follow each other.
    """
    some, rest = ({slice_.number for slice_ in one} for one in (facts, others))
    return are_numbered_apart(some, rest)


def _are_two_scans(facts: Sequence[SliceFacts], others: Sequence[SliceFacts]) -> bool:
    """Return whether slices contradict others in acquisition, technique, thickness or, if both have
    the same numbers or none, folder.
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
    if (numbers & of_others_numbers or not numbers | of_others_numbers) and not (
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
