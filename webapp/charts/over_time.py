"""What changes over time: the metrics of a training run, and the probabilities of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from webapp.charts.axes import TICKS, Axes
from webapp.display import is_proportion, number, percent

USUAL_SHARE, OUTLYING = 0.9, 3.0
"""If the largest value is this many times the value below which this share of the values lies, the
chart is cut off at half of that multiple.
"""


@dataclass(frozen=True)
class TrainingChart:
    """A metric during a training run: a line for each of its stages, such as folds; a single point
    if a stage has only one.

    Attributes:
        validation: for these stages, the loss on images that are held out from training.
        is_cut: whether a few values above `highest` are drawn at the upper edge: the loss of the
            first batches is often many times that of all others, which would become one flat line.
    """

    axes: Axes
    metric: str
    lowest: float
    highest: float
    lines: Mapping[str, str]
    dots: tuple[tuple[float, float, str], ...]
    is_cut: bool = False
    validation: Mapping[str, str] = field(default_factory=dict)


LOSS, VALIDATION_LOSS = "loss", "validation_loss"


def training_charts(
    points: Iterable[tuple[str, int, float, str]], steps: int
) -> tuple[TrainingChart, ...]:
    """Return a chart for each metric of a training run, the loss first; it includes the loss on
    held-out images.

    Args:
        points: metric, step, value and stage, ordered by step.
        steps: the number of steps in a whole training run.
    """
    of_metric: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for metric, step, value, stage in points:
        of_metric.setdefault(metric, {}).setdefault(stage, []).append((step, value))
    held_back = of_metric.pop(VALIDATION_LOSS, {})
    return tuple(
        _training_chart(metric, stages, held_back if metric == LOSS else {}, steps)
        for metric, stages in sorted(of_metric.items(), key=lambda each: each[0] != LOSS)
    )


Points = Mapping[str, Sequence[tuple[int, float]]]
"""Steps and values of each stage."""


def _training_chart(metric: str, stages: Points, held_back: Points, steps: int) -> TrainingChart:
    axes = Axes(left=58, top=12, width=460, height=170)
    both = [*stages.items(), *((f"{stage}, held back", held_back[stage]) for stage in held_back)]
    values = [value for points in stages.values() for _, value in points]
    held_back_values = [value for points in held_back.values() for _, value in points]
    lowest, highest = min(0.0, *values, *held_back_values), max(values)
    usual = sorted(values)[int(USUAL_SHARE * (len(values) - 1))]
    if is_cut := highest > OUTLYING * usual > 0:
        highest = OUTLYING * usual / 2
    # Never cut off: where it rises above the loss of training, the network overfits.
    highest = max(highest, *held_back_values, lowest)
    is_cut = is_cut and highest < max(values)
    span = (highest - lowest) or 1.0
    form = percent if is_proportion(metric) else number

    def place(step: int, value: float) -> tuple[float, float]:
        return step / steps, min((value - lowest) / span, 1.0)

    def lines(of_stages: Points) -> dict[str, str]:
        return {
            stage: axes.points(place(*point) for point in points)
            for stage, points in of_stages.items()
            if len(points) > 1
        }

    return TrainingChart(
        axes,
        metric,
        lowest,
        highest,
        lines(stages),
        tuple(
            (axes.x(across), axes.y(up), f"{stage}: {form(points[0][1])}")
            for stage, points in both
            if len(points) == 1
            for across, up in [place(*points[0])]
        ),
        is_cut,
        lines(held_back),
    )


@dataclass(frozen=True)
class DriftMark:
    """The probabilities of one version in a period: the positions of the median and of the ends of
    its line, and a sentence.
    """

    whose: str
    x: float
    low: float
    median: float
    high: float
    title: str


@dataclass(frozen=True)
class DriftChart:
    """The probabilities of live version and candidate by period, from `first` to `last`."""

    axes: Axes
    marks: tuple[DriftMark, ...]
    grid: tuple[tuple[float, float], ...]
    first: str
    last: str


def drift_chart(periods: Sequence[Any]) -> DriftChart | None:
    """Return the chart of `webapp.learning.shadow_figures.Period`s in order; None without any."""
    if not periods:
        return None
    axes = Axes(left=52, top=12, width=560, height=190)
    apart = 0.18  # Fraction of a period's width, from its middle to either line.

    def mark(number: int, whose: str) -> DriftMark:
        period = periods[number]
        spread = getattr(period, whose)
        aside = -apart if whose == "live" else apart
        return DriftMark(
            whose,
            axes.x((number + 0.5 + aside) / len(periods)),
            axes.y(spread.low),
            axes.y(spread.median),
            axes.y(spread.high),
            f"{period.begins}, {whose}: median {spread.median:.2f}, 80% of {period.n} scans from"
            f" {spread.low:.2f} to {spread.high:.2f}",
        )

    return DriftChart(
        axes,
        tuple(mark(n, whose) for n in range(len(periods)) for whose in ("live", "candidate")),
        tuple((tick, axes.y(tick)) for tick in TICKS),
        str(periods[0].begins),
        str(periods[-1].begins),
    )
