"""The plotting areas of charts and their ticks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from webapp.display import percentage

TICKS = (0, 0.25, 0.5, 0.75, 1)
Curve = Sequence[Mapping[str, float]]
"""The performance at each threshold, in ascending order: `ml.figures.CurvePoint` as JSON."""


@dataclass(frozen=True)
class Axes:
    """The plotting area of a chart in pixels of its SVG, whose y axis points down."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """The x coordinate of the right edge."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """The y coordinate of the lower edge."""
        return self.top + self.height

    def x(self, share: float) -> float:
        """Return the x coordinate at `share` of the width, to a tenth of a pixel."""
        return round(self.left + share * self.width, 1)

    def y(self, share: float) -> float:
        """Return the y coordinate at `share` of the height from below, to a tenth of a pixel."""
        return round(self.bottom - share * self.height, 1)

    def points(self, shares: Iterable[tuple[float, float]]) -> str:
        """Return pairs of such shares as the `points` attribute of a polyline."""
        return " ".join(f"{self.x(across):.1f},{self.y(up):.1f}" for across, up in shares)


SQUARE = Axes(left=52, top=20, width=280, height=280)
"""The plotting area of all charts of one share against another."""
DIAGONAL = SQUARE.points(((0, 0), (1, 1)))


@dataclass(frozen=True)
class Tick:
    """A value on both axes of a chart of one share against another, as it is printed."""

    value: str
    x: float
    y: float


def ticks_of(axes: Axes) -> tuple[Tick, ...]:
    return tuple(Tick(f"{value:g}", axes.x(value), axes.y(value)) for value in TICKS)


def percent_ticks(axes: Axes) -> tuple[Tick, ...]:
    return tuple(Tick(percentage(value, 0), axes.x(value), axes.y(value)) for value in TICKS)
