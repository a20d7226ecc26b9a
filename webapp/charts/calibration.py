"""Predicted probabilities compared with observed shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from webapp.charts.axes import DIAGONAL, SQUARE, Axes, Tick, ticks_of


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
        ticks_of(axes),
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
