"""Whether slices that lie at or between the positions of others continue their pass over the head,
or belong to another scan.

The web application, which reads headers only, and the workers, which read the files, share this
rule. It needs the standard library only.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
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
"""Of the typical step: maximum spread of the steps of one scan."""
CROWDED = 0.75
"""Of the slice thickness: slices closer than that overlap, so one pass does not alternate them."""


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
    return (
        _times_parted(part, other) <= few
        or not _are_crowded([*part, *other], [*facts, *facts_of_other])
        or not _are_two_scans(facts, facts_of_other)
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


def _are_crowded(positions: Sequence[float], facts: Sequence[SliceFacts]) -> bool:
    """Return whether slices at these positions overlap or are unevenly spaced; interleaved
    acquisitions of one scan fill each other's gaps evenly.
    """
    steps = sorted(upper - lower for lower, upper in pairwise(sorted(set(positions))))
    typical, quarter = median(steps), len(steps) // 4
    thickest = max((slice_.thickness_mm or 0.0 for slice_ in facts), default=0.0)
    return typical < CROWDED * thickest or steps[-1 - quarter] - steps[quarter] > UNEVEN * typical


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
