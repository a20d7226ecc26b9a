"""Charts that pages draw as SVG: every coordinate is computed here, templates only print them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml.named_points import found_at

TICKS = (0, 0.25, 0.5, 0.75, 1)
LOWEST_TOP = 0.001
"""Of a histogram's axis, so that a class without pixels has one too."""
Curve = Sequence[Mapping[str, float]]
"""What thresholds found, ascending: `ml.figures.CurvePoint` as JSON."""
BAR_WIDTH = 0.9
"""Share of a slice's place in the strip of probabilities; the rest is the gap to the next bar."""


@dataclass(frozen=True)
class Axes:
    """The plotting area of a chart in pixels of its SVG, whose y axis points down."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """The x of the right edge."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """The y of the lower edge."""
        return self.top + self.height

    def x(self, share: float) -> float:
        """Return where `share` of the width lies, to a tenth of a pixel."""
        return round(self.left + share * self.width, 1)

    def y(self, share: float) -> float:
        """Return where `share` of the height lies, counted from below, to a tenth of a pixel."""
        return round(self.bottom - share * self.height, 1)

    def points(self, shares: Iterable[tuple[float, float]]) -> str:
        """Return pairs of such shares as the `points` of a polyline."""
        return " ".join(f"{self.x(across):.1f},{self.y(up):.1f}" for across, up in shares)


@dataclass(frozen=True)
class Tick:
    """A value on both axes of an ROC curve."""

    value: float
    x: float
    y: float


@dataclass(frozen=True)
class OperatingPoint:
    """Where the threshold puts a model on its ROC curve."""

    x: float
    y: float
    sensitivity: float
    false_positive_rate: float


@dataclass(frozen=True)
class RocChart:
    """An ROC curve; `operating_point` is None where a class is missing."""

    axes: Axes
    curve: str
    ticks: tuple[Tick, ...]
    operating_point: OperatingPoint | None


def roc_chart(card: Mapping[str, Any]) -> RocChart:
    """Return the ROC curve of a model card, with the operating point of its confusion matrix."""
    axes = Axes(left=52, top=20, width=280, height=280)
    confusion = card["confusion"]
    positive = confusion["tp"] + confusion["fn"]
    negative = confusion["fp"] + confusion["tn"]
    point = None
    if positive and negative:
        sensitivity, rate = confusion["tp"] / positive, confusion["fp"] / negative
        point = OperatingPoint(axes.x(rate), axes.y(sensitivity), sensitivity, rate)
    return RocChart(
        axes=axes,
        curve=axes.points(card["roc"]),
        ticks=_ticks(axes),
        operating_point=point,
    )


def scan_roc_chart(card: Mapping[str, Any], threshold: float) -> RocChart | None:
    """Return the ROC curve by scan of a card with curves, and where a threshold lies on it; None
    for other cards.
    """
    curve = (card.get("curves") or {}).get("patient")
    if not curve:
        return None
    axes = Axes(left=52, top=20, width=280, height=280)
    found = found_at(curve, threshold)
    rate = 1 - found["specificity"]
    return RocChart(
        axes=axes,
        curve=axes.points((1 - point["specificity"], point["sensitivity"]) for point in curve),
        ticks=_ticks(axes),
        operating_point=OperatingPoint(
            axes.x(rate), axes.y(found["sensitivity"]), found["sensitivity"], rate
        ),
    )


@dataclass(frozen=True)
class Overlay:
    """Curves of several runs on the same axes, each of shares from 0 to 1; the dashed line is
    chance.
    """

    axes: Axes
    ticks: tuple[Tick, ...]
    lines: Mapping[str, str]
    chance: str
    across: str
    up: str


def roc_overlay(curves: Mapping[str, Curve]) -> Overlay:
    """Return the ROC curves of runs, each given as what thresholds found
    (`ml.figures.CurvePoint`).
    """
    axes = Axes(left=52, top=20, width=280, height=280)
    return Overlay(
        axes,
        _ticks(axes),
        {
            name: axes.points((1 - point["specificity"], point["sensitivity"]) for point in curve)
            for name, curve in curves.items()
        },
        axes.points(((0, 0), (1, 1))),
        "False positive rate (1 − specificity)",
        "True positive rate (sensitivity)",
    )


def precision_overlay(curves: Mapping[str, Curve], positive: int, negative: int) -> Overlay:
    """Return the precision-recall curves of runs on that many images or patients with and without
    hemorrhage.
    """
    axes = Axes(left=52, top=20, width=280, height=280)
    prevalence = positive / max(positive + negative, 1)
    return Overlay(
        axes,
        _ticks(axes),
        {
            name: axes.points(_precisions(curve, positive, negative))
            for name, curve in curves.items()
        },
        axes.points(((0, prevalence), (1, prevalence))),
        "Recall (sensitivity)",
        "Precision (positive predictive value)",
    )


def _precisions(curve: Curve, positive: int, negative: int) -> Iterator[tuple[float, float]]:
    """Yield recall and precision at each threshold that calls something positive."""
    for point in curve:
        found = point["sensitivity"] * positive
        flagged = found + (1 - point["specificity"]) * negative
        if flagged > 0:
            yield point["sensitivity"], found / flagged


@dataclass(frozen=True)
class TrainingChart:
    """A metric over a training: a line for each of its stages, such as folds; single points where a
    stage has but one.
    """

    axes: Axes
    metric: str
    lowest: float
    highest: float
    lines: Mapping[str, str]
    dots: tuple[tuple[float, float, str], ...]


def training_charts(
    points: Iterable[tuple[str, int, float, str]], steps: int
) -> tuple[TrainingChart, ...]:
    """Return a chart for each metric of a training.

    Args:
        points: metric, step, value and stage, ordered by step.
        steps: how many there are in a whole training.
    """
    of_metric: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for metric, step, value, stage in points:
        of_metric.setdefault(metric, {}).setdefault(stage, []).append((step, value))
    return tuple(_training_chart(metric, found, steps) for metric, found in of_metric.items())


def _training_chart(
    metric: str, stages: Mapping[str, Sequence[tuple[int, float]]], steps: int
) -> TrainingChart:
    axes = Axes(left=58, top=12, width=460, height=170)
    values = [value for found in stages.values() for _, value in found]
    lowest, highest = min(0.0, *values), max(values)
    span = (highest - lowest) or 1.0

    def place(step: int, value: float) -> tuple[float, float]:
        return step / steps, (value - lowest) / span

    return TrainingChart(
        axes,
        metric,
        lowest,
        highest,
        {
            stage: axes.points(place(*point) for point in found)
            for stage, found in stages.items()
            if len(found) > 1
        },
        tuple(
            (axes.x(across), axes.y(up), f"{stage}: {found[0][1]:.3f}")
            for stage, found in stages.items()
            if len(found) == 1
            for across, up in [place(*found[0])]
        ),
    )


@dataclass(frozen=True)
class CalibrationMark:
    """A tenth of the probabilities: the observed share, its interval, and a sentence."""

    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True)
class CalibrationChart:
    """How often what was given a probability was a hemorrhage; the dashed line is perfect."""

    axes: Axes
    ticks: tuple[Tick, ...]
    line: str
    marks: tuple[CalibrationMark, ...]
    chance: str


def calibration_chart(bins: Sequence[Mapping[str, Any]]) -> CalibrationChart:
    """Return the calibration plot of `ml.evaluation.curves.CalibrationBin` as JSON."""
    axes = Axes(left=52, top=20, width=280, height=280)
    return CalibrationChart(
        axes,
        _ticks(axes),
        axes.points((one["probability"], one["observed"]["value"]) for one in bins),
        tuple(
            CalibrationMark(
                axes.x(one["probability"]),
                axes.y(one["observed"]["value"]),
                axes.y(one["observed"]["low"]),
                axes.y(one["observed"]["high"]),
                f"Probability {one['probability']:.2f}: {one['observed']['value']:.2f} of"
                f" {one['observed']['n']} with hemorrhage",
            )
            for one in bins
        ),
        axes.points(((0, 0), (1, 1))),
    )


def _ticks(axes: Axes) -> tuple[Tick, ...]:
    return tuple(Tick(value, axes.x(value), axes.y(value)) for value in TICKS)


@dataclass(frozen=True)
class HistogramChart:
    """Gray levels of both classes; `highest` is the share at the top of the axis."""

    axes: Axes
    highest: float
    curves: Mapping[str, str]


def histogram_chart(histograms: Mapping[str, Sequence[float]]) -> HistogramChart:
    """Return the curves of `negative` and `positive`, one for each class that has pixels.

    Args:
        histograms: for each class the share of its pixels in each bin, from black to white.
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
    """Return a bar for each slice; those of `first_slices`, to be looked at first, are marked."""
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
