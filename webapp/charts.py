"""Charts that pages render as SVG: every coordinate is computed here, templates only print them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml.named_points import point_at
from webapp.display import is_proportion, number, percent, percentage

FALSE_POSITIVE_RATE = "False positive rate (1 − specificity), %"
TRUE_POSITIVE_RATE = "True positive rate (sensitivity), %"
TICKS = (0, 0.25, 0.5, 0.75, 1)
LOWEST_TOP = 0.001
"""The minimum upper end of a histogram's axis, so that a class without pixels has one too."""
Curve = Sequence[Mapping[str, float]]
"""The performance at each threshold, in ascending order: `ml.figures.CurvePoint` as JSON."""
BAR_WIDTH = 0.9
"""Fraction of a slice's place that its bar fills in the strip of probabilities; the rest is the gap
to the next bar.
"""


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


@dataclass(frozen=True)
class OperatingPoint:
    """The point of a threshold on the ROC curve of a model."""

    x: float
    y: float
    sensitivity: float
    false_positive_rate: float


@dataclass(frozen=True)
class RocChart:
    """An ROC curve with chance as a dashed line; `operating_point` is None if a class is
    missing.
    """

    axes: Axes
    curve: str
    ticks: tuple[Tick, ...]
    operating_point: OperatingPoint | None
    chance: str = DIAGONAL
    across: str = FALSE_POSITIVE_RATE
    up: str = TRUE_POSITIVE_RATE


def roc_chart(card: Mapping[str, Any]) -> RocChart:
    """Return the ROC curve of a model card, with the operating point of its confusion matrix."""
    axes = SQUARE
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
        ticks=_percent_ticks(axes),
        operating_point=point,
    )


def roc_at_chart(curve: Curve, threshold: float) -> RocChart:
    """Return the ROC curve of a list of thresholds, and the point of one of them on it."""
    axes = SQUARE
    point = point_at(curve, threshold)
    rate = 1 - point["specificity"]
    return RocChart(
        axes=axes,
        curve=axes.points((1 - point["specificity"], point["sensitivity"]) for point in curve),
        ticks=_percent_ticks(axes),
        operating_point=OperatingPoint(
            axes.x(rate), axes.y(point["sensitivity"]), point["sensitivity"], rate
        ),
    )


@dataclass(frozen=True)
class Overlay:
    """Curves of several runs on the same axes, each with values from 0 to 1; the dashed line is
    chance.
    """

    axes: Axes
    ticks: tuple[Tick, ...]
    lines: Mapping[str, str]
    chance: str
    across: str
    up: str


def roc_overlay(curves: Mapping[str, Curve]) -> Overlay:
    """Return the ROC curves of runs, each given as a list of `ml.figures.CurvePoint`."""
    axes = SQUARE
    return Overlay(
        axes,
        _percent_ticks(axes),
        {
            name: axes.points((1 - point["specificity"], point["sensitivity"]) for point in curve)
            for name, curve in curves.items()
        },
        DIAGONAL,
        FALSE_POSITIVE_RATE,
        TRUE_POSITIVE_RATE,
    )


def precision_overlay(curves: Mapping[str, Curve], positive: int, negative: int) -> Overlay:
    """Return the precision-recall curves of runs, given the numbers of images or patients with and
    without hemorrhage.
    """
    axes = SQUARE
    prevalence = positive / max(positive + negative, 1)
    return Overlay(
        axes,
        _percent_ticks(axes),
        {
            name: axes.points(_precisions(curve, positive, negative))
            for name, curve in curves.items()
        },
        axes.points(((0, prevalence), (1, prevalence))),
        "Recall (sensitivity), %",
        "Precision (positive predictive value), %",
    )


def _precisions(curve: Curve, positive: int, negative: int) -> Iterator[tuple[float, float]]:
    """Yield recall and precision at each threshold that calls something positive."""
    for point in curve:
        detected = point["sensitivity"] * positive
        flagged = detected + (1 - point["specificity"]) * negative
        if flagged > 0:
            yield point["sensitivity"], detected / flagged


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
class CalibrationMark:
    """A tenth of the probabilities: the observed share, its interval, and a sentence."""

    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True)
class CalibrationChart:
    """How often each predicted probability was a hemorrhage; the dashed line is perfect
    calibration.
    """

    axes: Axes
    ticks: tuple[Tick, ...]
    line: str
    marks: tuple[CalibrationMark, ...]
    chance: str


def calibration_chart(bins: Sequence[Mapping[str, Any]]) -> CalibrationChart:
    """Return the calibration plot of `ml.evaluation.curves.CalibrationBin` as JSON."""
    axes = SQUARE
    return CalibrationChart(
        axes,
        _ticks(axes),
        axes.points((bin_["probability"], bin_["observed"]["value"]) for bin_ in bins),
        tuple(
            CalibrationMark(
                axes.x(bin_["probability"]),
                axes.y(bin_["observed"]["value"]),
                axes.y(bin_["observed"]["low"]),
                axes.y(bin_["observed"]["high"]),
                f"Probability {bin_['probability']:.2f}: {bin_['observed']['value']:.2f} of"
                f" {bin_['observed']['n']} with hemorrhage",
            )
            for bin_ in bins
        ),
        DIAGONAL,
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
        tuple((percentage(tick, 0) if is_share else f"{tick:g}", place(tick)) for tick in ticks),
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


def _ticks(axes: Axes) -> tuple[Tick, ...]:
    return tuple(Tick(f"{value:g}", axes.x(value), axes.y(value)) for value in TICKS)


def _percent_ticks(axes: Axes) -> tuple[Tick, ...]:
    return tuple(Tick(percentage(value, 0), axes.x(value), axes.y(value)) for value in TICKS)


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
