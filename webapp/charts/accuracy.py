"""The accuracy graph: versions and architectures on one data set, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from webapp.charts.axes import Axes
from webapp.display import is_proportion, number, percent


@dataclass(frozen=True)
class AccuracyRow:
    """A model in the accuracy graph.

    Attributes:
        model: its name.
        source: the source of its figures.
        link: the page with details.
        honest, leaked: `ml.figures.Estimate` as JSON; None if there is none.
    """

    model: str
    source: str
    link: str
    honest: Mapping[str, Any] | None
    leaked: Mapping[str, Any] | None


@dataclass(frozen=True)
class AccuracyMark:
    """A figure in the accuracy graph: its position, the ends of its interval, and a sentence."""

    protocol: str
    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True)
class AccuracyLine:
    """A model in the accuracy graph with the position of its name and its figures."""

    row: AccuracyRow
    y: float
    marks: tuple[AccuracyMark, ...]


@dataclass(frozen=True)
class AccuracyChart:
    """Figures of models with their intervals, one row each; the axis starts at `lowest`."""

    axes: Axes
    width: float
    height: float
    ticks: tuple[tuple[str, float], ...]
    lines: tuple[AccuracyLine, ...]


ROW_PX, NAME_PX, HONEST_PX, LEAKED_PX = 48, 15, 26, 36
"""The height of a row, and the positions of name and figures in it."""


def accuracy_chart(rows: Sequence[AccuracyRow], metric: str) -> AccuracyChart:
    """Return the graph of a metric of models, in percent if it is a proportion; each has at least
    one figure.
    """
    axes = Axes(left=16, top=4, width=400, height=ROW_PX * len(rows))
    figures = [figure for row in rows for figure in (row.honest, row.leaked) if figure]
    least = min(_end(figure, "low") for figure in figures)
    lowest = max(min(int(least * 10) / 10, 0.5), 0.0)
    steps = round((1 - lowest) * 10)

    def place(value: float) -> float:
        return axes.x((value - lowest) / (1 - lowest))

    is_share = is_proportion(metric)
    lines = []
    for at, row in enumerate(rows):
        top = axes.top + at * ROW_PX
        marks = [
            AccuracyMark(
                protocol,
                place(figure["value"]),
                top + below,
                place(_end(figure, "low")),
                place(_end(figure, "high")),
                _of_row(row, protocol, figure, is_share),
            )
            for protocol, figure, below in (
                ("honest", row.honest, HONEST_PX),
                ("leaked", row.leaked, LEAKED_PX),
            )
            if figure
        ]
        lines.append(AccuracyLine(row, top + NAME_PX, tuple(marks)))
    ticks = [round(lowest + step / 10, 1) for step in range(steps + 1)]
    return AccuracyChart(
        axes,
        axes.right + 20,
        axes.bottom + 30,
        tuple((percent(tick, 0) if is_share else f"{tick:g}", place(tick)) for tick in ticks),
        tuple(lines),
    )


def _end(figure: Mapping[str, Any], name: str) -> float:
    """Return an end of a figure's interval, or the figure itself if it has no interval."""
    return float(figure["value"] if figure.get(name) is None else figure[name])


def _of_row(row: AccuracyRow, protocol: str, figure: Mapping[str, Any], is_share: bool) -> str:
    form = percent if is_share else number
    ends = ""
    if figure.get("low") is not None:
        ends = f" ({form(figure['low'])} to {form(figure['high'])})"
    return (
        f"{row.model}, {protocol}, {row.source}: {form(figure['value'])}{ends}, n = {figure['n']}"
    )
