"""Histograms and distributions of gray values and other measurements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from webapp.charts.axes import Axes

LOWEST_TOP = 0.001
"""The minimum upper end of a histogram's axis, so that a class without pixels has one too."""


@dataclass(frozen=True)
class HistogramChart:
    """Gray levels of both classes; `highest` is the fraction at the top of the axis."""

    axes: Axes
    highest: float
    curves: Mapping[str, str]


def histogram_chart(histograms: Mapping[str, Sequence[float]]) -> HistogramChart:
    """Return the curves of `negative` and `positive`, one for each class that has pixels.

    Args:
        histograms: for each class the fraction of its pixels in each bin, from black to white.
    """
    axes = Axes(left=52, top=20, width=460, height=170)
    classes = {name: histograms[name] for name in ("negative", "positive") if histograms[name]}
    highest = max(LOWEST_TOP, *(share for shares in classes.values() for share in shares), 0)
    return HistogramChart(
        axes=axes,
        highest=highest,
        curves={
            name: axes.points(
                ((bin_index + 0.5) / len(shares), share / highest)
                for bin_index, share in enumerate(shares)
            )
            for name, shares in classes.items()
        },
    )


@dataclass(frozen=True)
class Distribution:
    """The distribution of images, with one line for each series of values; `highest` is the
    fraction at the top of the axis, `low` and `high` are the ends of the horizontal axis.
    """

    axes: Axes
    highest: float
    low: float
    high: float
    curves: tuple[tuple[str, str], ...]


def distribution_chart(
    series: Mapping[str, Sequence[float]], low: float, high: float, *, cuts_ends: bool = False
) -> Distribution | None:
    """Return a chart of fractions by bin; None if there is no series.

    Args:
        series: for each name the fraction of its images in each of equal bins from `low` to `high`.
        low, high: the ends of the axis.
        cuts_ends: whether the bins at both ends, such as black and white, may rise above the axis,
            so that they do not flatten the others.
    """
    if not series:
        return None
    axes = Axes(left=52, top=12, width=400, height=150)
    inner = [shares[1:-1] if cuts_ends else shares for shares in series.values()]
    highest = max([LOWEST_TOP, *(share for shares in inner for share in shares)])
    return Distribution(
        axes,
        highest,
        low,
        high,
        tuple((name, axes.points(_steps_of(shares, highest))) for name, shares in series.items()),
    )


def _steps_of(shares: Sequence[float], highest: float) -> Iterator[tuple[float, float]]:
    """Yield the corners of a histogram's outline, as fractions of both axes."""
    yield 0, 0
    for at, share in enumerate(shares):
        up = min(share / highest, 1.0)
        yield at / len(shares), up
        yield (at + 1) / len(shares), up
    yield 1, 0
