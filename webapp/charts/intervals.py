"""Estimates with their intervals, one above the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from webapp.charts.axes import Axes


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval on an axis from 0 to 1, as a separate line."""

    name: str
    x: float
    low: float
    high: float
    y: float


@dataclass(frozen=True)
class Intervals:
    """Estimates below each other in an SVG of this height; the dashed line is chance."""

    axes: Axes
    height: float
    chance: float
    rows: tuple[Interval, ...]


def interval_chart(estimates: Sequence[tuple[str, Mapping[str, Any]]]) -> Intervals:
    """Return a chart of estimates (`ml.figures.Estimate` as JSON) that have a value."""
    known = [(name, estimate) for name, estimate in estimates if estimate["value"] is not None]
    axes = Axes(left=150, top=10, width=300, height=28 * max(len(known), 1))
    return Intervals(
        axes,
        axes.bottom + 24,
        axes.x(0.5),
        tuple(
            Interval(
                name,
                axes.x(estimate["value"]),
                axes.x(estimate["value"] if estimate["low"] is None else estimate["low"]),
                axes.x(estimate["value"] if estimate["high"] is None else estimate["high"]),
                axes.y(1 - (number + 0.5) / len(known)),
            )
            for number, (name, estimate) in enumerate(known)
        ),
    )
