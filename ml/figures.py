"""Result types: an estimate with its interval, the metrics of one level (slices or scans), and the
performance at a threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval.

    Attributes:
        value: the estimate; None if undefined.
        low, high: ends of the interval; None if there is none.
        n: number of images, scans or samples on which it is based.
        reason: why the estimate is undefined; None if it is defined.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str | None = None


def undefined(reason: str, n: int = 0) -> Estimate:
    """Return an undefined estimate with this reason."""
    return Estimate(None, None, None, n, reason)


@dataclass(frozen=True)
class Metrics:
    """The metrics for slices or for scans, or the differences between two models."""

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
    """A proportion of n; None if n is 0."""

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
    """The performance at a threshold.

    Attributes:
        sensitivity, specificity: with their intervals.
        ppv, npv: the predictive values at each prevalence, keyed by percentage as text ("2", "10"
            and "50").
    """

    sensitivity: Estimate
    specificity: Estimate
    ppv: dict[str, Estimate]
    npv: dict[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class PointFigures(ThresholdFigures):
    """A named operating point: its threshold, and the performance there."""

    threshold: float


@dataclass(frozen=True)
class CurvePoint:
    """A threshold, and the sensitivity and specificity (0..1) that it has among held-out
    answers.
    """

    threshold: float
    sensitivity: float
    specificity: float


@dataclass(frozen=True, kw_only=True)
class LocalFigures(ThresholdFigures):
    """The performance of a threshold at one site, and the Brier score there with both classes
    weighted equally.
    """

    brier: float
