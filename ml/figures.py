"""Figures as results hold them: an estimate with its interval, the metrics of one level, slices or
scans, and what a threshold means.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval.

    Attributes:
        value: the figure; None where it is undefined.
        low, high: ends of the interval; None where there is none.
        n: how many images, scans or samples the figure is of.
        reason: why the figure is undefined; None where it is defined.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str | None = None


def undefined(reason: str, n: int = 0) -> Estimate:
    """Return a figure that cannot be computed, for that reason."""
    return Estimate(None, None, None, n, reason)


@dataclass(frozen=True)
class Metrics:
    """The metrics of slices or of scans, or the differences of two models in them."""

    accuracy: Estimate
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate
    f1: Estimate
    auroc: Estimate
    auprc: Estimate
    brier: Estimate
    ece: Estimate

    def items(self) -> Iterator[tuple[str, Estimate]]:
        """Yield name and figure, in the order of the fields."""
        return ((item.name, getattr(self, item.name)) for item in fields(self))


@dataclass(frozen=True)
class Confusion:
    """Counts of true and false positives and negatives."""

    tp: int
    fp: int
    tn: int
    fn: int


@dataclass(frozen=True)
class Share:
    """A share of n; None where n is 0."""

    value: float | None
    n: int


@dataclass(frozen=True)
class BandFigures:
    """Predictive values outside the inconclusive band.

    Attributes:
        npv: of predictions below the band.
        ppv: of predictions above it.
        uncertain: the share of predictions inside.
    """

    npv: Share
    ppv: Share
    uncertain: Share


@dataclass(frozen=True, kw_only=True)
class StateCounts:
    """How many verdicts are in each state (`ml.verdict.State`)."""

    suspected: int
    inconclusive: int
    not_found: int


@dataclass(frozen=True, kw_only=True)
class ThresholdFigures:
    """What a threshold means.

    Attributes:
        sensitivity, specificity: with their intervals.
        ppv, npv: the predictive values that these have where so many bleed, by the prevalence in
            percent as text ("2", "10" and "50").
    """

    sensitivity: Estimate
    specificity: Estimate
    ppv: dict[str, Estimate]
    npv: dict[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class PointFigures(ThresholdFigures):
    """A named operating point: its threshold and what that means."""

    threshold: float


@dataclass(frozen=True)
class CurvePoint:
    """What a threshold found among held-out answers; sensitivity and specificity, 0..1."""

    threshold: float
    sensitivity: float
    specificity: float


@dataclass(frozen=True, kw_only=True)
class LocalFigures(ThresholdFigures):
    """What a threshold means at one site, and the Brier score there, both classes alike."""

    brier: float
