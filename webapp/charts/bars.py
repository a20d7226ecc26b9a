"""The probabilities of the slices of a scan, as bars."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

BAR_WIDTH = 0.9
"""Fraction of a slice's place that its bar fills in the strip of probabilities; the rest is the gap
to the next bar.
"""


@dataclass(frozen=True)
class Bar:
    """A slice's probability, in a chart one unit high and one unit wide for each slice."""

    x: float
    y: float
    width: float
    height: float
    is_first: bool


def probability_bars(
    probabilities: Iterable[float], first_slices: Collection[int]
) -> tuple[Bar, ...]:
    """Return a bar for each slice; those of `first_slices`, to be looked at first, are
    highlighted.
    """
    margin = (1 - BAR_WIDTH) / 2
    return tuple(
        Bar(
            round(index + margin, 2),
            round(1 - probability, 3),
            BAR_WIDTH,
            round(probability, 3),
            index in first_slices,
        )
        for index, probability in enumerate(probabilities)
    )
