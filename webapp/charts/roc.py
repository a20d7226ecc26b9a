"""Receiver operating characteristic and precision-recall curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ml.named_points import point_at
from webapp.charts.axes import DIAGONAL, SQUARE, Axes, Curve, Tick, percent_ticks

FALSE_POSITIVE_RATE = "False positive rate (1 − specificity), %"
TRUE_POSITIVE_RATE = "True positive rate (sensitivity), %"


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
        ticks=percent_ticks(axes),
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
        ticks=percent_ticks(axes),
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
        percent_ticks(axes),
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
        percent_ticks(axes),
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
