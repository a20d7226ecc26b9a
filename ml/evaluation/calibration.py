"""Calibration, thresholds and the inconclusive band: how raw decisions on held-out images become
probabilities and verdicts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ml.figures import BandFigures, Share
from ml.verdict import NARROWEST_BAND


@dataclass(frozen=True)
class Platt:
    """Platt scaling, which maps a raw decision d to a probability: 1 / (1 + exp(-(slope * d +
    offset))). The slope is positive.
    """

    slope: float
    offset: float

    def __call__(self, decisions: np.ndarray) -> np.ndarray:
        """Return the probabilities of raw decisions, float64, of the same shape."""
        linear = self.slope * np.asarray(decisions, np.float64) + self.offset
        probabilities: np.ndarray = 0.5 * (1 + np.tanh(linear / 2))
        return probabilities


PRIOR_SPREAD = np.array([0.25, 0.5])
"""Standard deviations of the prior: relative for the slope, absolute for the offset."""


def fit_platt(
    labels: np.ndarray,
    decisions: np.ndarray,
    prior: Platt | None = None,
    weights: np.ndarray | None = None,
) -> Platt:
    """Fit the calibration to decisions of models that did not see these images.

    `weights` (n,) are sample weights; by default all samples count equally. With a `prior`, the
    result is the maximum a posteriori estimate: a handful of scans shifts it slightly, hundreds can
    shift it freely.

    Newton's method on the cross entropy with Platt's smoothed targets (J. Platt 1999; Lin, Lin,
    Weng 2007), which keeps the fit finite when the classes are separable. The slope is kept
    positive, so that a calibration never reverses a ranking.
    """
    labels, decisions = np.asarray(labels), np.asarray(decisions, np.float64)
    positive, negative = int((labels == 1).sum()), int((labels == 0).sum())
    targets = np.where(labels == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))
    counts = np.ones(len(labels)) if weights is None else weights * (len(labels) / weights.sum())
    center, scale = float(decisions.mean()), float(decisions.std()) or 1.0
    inputs = np.stack([(decisions - center) / scale, np.ones_like(decisions)], axis=1)
    of_positive, of_negative = counts[labels == 1].sum(), counts[labels == 0].sum()
    odds = np.log((of_positive + 1) / (of_negative + 1))
    expected, certainty = np.array([0.0, odds]), np.zeros((2, 2))
    if prior:  # on the same standardized decisions, so that the minimum slope means the same
        expected = np.array([prior.slope * scale, prior.offset + prior.slope * center])
        deviations = (
            np.array([[1 / scale, 0.0], [-center / scale, 1.0]])
            / (PRIOR_SPREAD * np.array([prior.slope, 1.0]))[:, None]
        )
        certainty = deviations.T @ deviations

    def loss(line: np.ndarray) -> float:
        linear, deviation = inputs @ line, line - expected
        return float(
            counts @ (np.logaddexp(0, linear) - targets * linear)
            + 0.5 * deviation @ certainty @ deviation
        )

    line = expected
    for _ in range(100):
        predicted = 0.5 * (1 + np.tanh(inputs @ line / 2))
        gradient = inputs.T @ (counts * (predicted - targets)) + certainty @ (line - expected)
        curvature = (
            inputs.T @ (inputs * (counts * predicted * (1 - predicted))[:, None])
            + certainty
            + 1e-9 * np.eye(2)
        )
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while size > 1e-10 and loss(line - size * step) > loss(line) - 1e-4 * size * float(
            gradient @ step
        ):
            size /= 2
        line = line - size * step
        if np.abs(gradient).max() < 1e-8 * len(labels):
            break
    slope = max(float(line[0]), 1e-3) / scale
    return Platt(slope, float(line[1]) - slope * center)


SPECIFICITY = 0.95
"""That of "specific"."""
PROMISE = 0.9
"""The predictive value that an answer outside the inconclusive band must reach at a prevalence of
50%.
"""
MOST_INCONCLUSIVE = 0.15
"""Maximum share of the fitted answers in the band, so that it takes at most a quarter elsewhere."""


def balanced_weights(labels: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Return weights (n,) that sum to 1: both classes have equal weight, and within each class all
    sources have equal weight.

    A threshold then does not depend on which hospital or class contributed more data.
    """
    labels, sources = np.asarray(labels), np.asarray(sources)
    weights = np.zeros(len(labels))
    for label in np.unique(labels):
        of_class = np.unique(sources[labels == label])
        for source in of_class:
            chosen = (labels == label) & (sources == source)
            weights[chosen] = 1 / chosen.sum() / len(of_class)
    normalized: np.ndarray = weights / weights.sum()
    return normalized


@dataclass(frozen=True)
class Sample:
    """The answers that thresholds are fitted to: labels, probabilities and weights, each (n,)."""

    labels: np.ndarray
    probabilities: np.ndarray
    weights: np.ndarray

    def candidates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return thresholds between the answers (k,), ascending, and the sensitivity and
        specificity at each.

        The first threshold calls everything positive, the last nothing.
        """
        values = np.unique(self.probabilities)
        middles = (values[1:] + values[:-1]) / 2
        thresholds = np.concatenate([[0.0], middles, [np.nextafter(values[-1], 2)]])
        order = np.argsort(self.probabilities, kind="stable")
        ascending, rates = self.probabilities[order], []
        for label in (1, 0):
            of_class = np.where(self.labels == label, self.weights, 0)[order]
            below = np.concatenate([[0.0], np.cumsum(of_class)]) / of_class.sum()
            rates.append(below[np.searchsorted(ascending, thresholds)])
        return thresholds, 1 - rates[0], rates[1]


def threshold_at(sample: Sample, point: str, target: float = 0.95) -> float:
    """Return the threshold of a named operating point.

    Args:
        sample: answers of both classes that were not used in any part of the model's training.
        point: a name of `ml.named_points.POINTS`. "balanced" maximizes sensitivity + specificity
            (W. Youden 1950, "Index for rating diagnostic tests"); if several thresholds are equally
            good, the middle one is used. "sensitive" lies at or below it, "specific" at or above
            it.
        target: the sensitivity of "sensitive".
    """
    thresholds, sensitivity, specificity = sample.candidates()
    youden = sensitivity + specificity
    best = np.flatnonzero(youden >= youden.max() - 1e-9)
    balanced = float(thresholds[best[len(best) // 2]])
    if point == "sensitive":
        reached = thresholds[np.flatnonzero(sensitivity >= target - 1e-9)[-1]]
        return min(float(reached), balanced)
    if point == "specific":
        reached = thresholds[np.flatnonzero(specificity >= SPECIFICITY - 1e-9)[0]]
        return max(float(reached), balanced)
    return balanced


def inconclusive_band(sample: Sample, threshold: float) -> tuple[float, float]:
    """Return (low, high) around the threshold: low <= p < high is inconclusive.

    At a prevalence of 50%, the positive predictive value at or above `high` and the negative
    predictive value below `low` reach `PROMISE`. At most `MOST_INCONCLUSIVE` of the sample is in
    the band; if `PROMISE` would require more, the band is narrowed equally on both sides.
    """
    thresholds, sensitivity, specificity = sample.candidates()
    with np.errstate(invalid="ignore", divide="ignore"):
        ppv = sensitivity / (sensitivity + 1 - specificity)
        npv = specificity / (specificity + 1 - sensitivity)
    holds = np.flatnonzero((thresholds >= threshold) & (ppv >= PROMISE))
    high = max(float(thresholds[holds[0]]) if len(holds) else float(thresholds[-1]), threshold)
    holds = np.flatnonzero((thresholds <= threshold) & (npv >= PROMISE))
    low = min(float(thresholds[holds[-1]]) if len(holds) else 0.0, threshold)
    between = (sample.probabilities >= low) & (sample.probabilities < high)
    share = float(sample.weights[between].sum() / sample.weights.sum())
    if share > MOST_INCONCLUSIVE:
        share_left = MOST_INCONCLUSIVE / share
        low = _nearer(sample, threshold, low, share_left)
        high = _nearer(sample, threshold, high, share_left)
    if high - low < NARROWEST_BAND:
        return threshold, threshold
    return low, min(high, 1.0)


def _nearer(sample: Sample, threshold: float, end: float, share_left: float) -> float:
    """Return the end of a narrower band on one side of the threshold, which keeps the share
    `share_left` of the samples on that side of the wider band.
    """
    first, last = min(threshold, end), max(threshold, end)
    between = (sample.probabilities >= first) & (sample.probabilities < last)
    if not between.any():
        return end
    distances = np.abs(sample.probabilities[between] - threshold)
    order = np.argsort(distances)
    counted = np.cumsum(sample.weights[between][order])
    reach = float(
        distances[order][np.flatnonzero(counted <= share_left * counted[-1] + 1e-12)[-1:]].sum()
    )
    return threshold - reach if end < threshold else float(np.nextafter(threshold + reach, 2))


@dataclass(frozen=True)
class OperatingPoint:
    """How raw decisions at one level (slices or scans) become verdicts: calibration, threshold, and
    inconclusive band.
    """

    platt: Platt
    threshold: float
    low: float
    high: float


def operating_point(
    labels: np.ndarray,
    decisions: np.ndarray,
    sources: np.ndarray,
    *,
    point: str = "balanced",
    target: float = 0.95,
    prior: Platt | None = None,
) -> OperatingPoint:
    """Return calibration, threshold and band fitted to raw decisions of models that did not see
    these slices or scans.

    Both classes and all sources have equal weight (`balanced_weights`), so probabilities refer to a
    prevalence of 50%.

    Args:
        labels, decisions, sources: (n,) of both classes.
        point: a name of `ml.named_points.POINTS`, or "one half": a probability of at least 0.5 is
            positive.
        target: the sensitivity of "sensitive".
        prior: of the calibration, if any.
    """
    weights = balanced_weights(labels, sources)
    platt = fit_platt(labels, decisions, prior, weights)
    sample = Sample(np.asarray(labels), platt(decisions), weights)
    threshold = 0.5 if point == "one half" else min(threshold_at(sample, point, target), 1.0)
    return OperatingPoint(platt, threshold, *inconclusive_band(sample, threshold))


BELOW, UNCERTAIN, ABOVE = -1, 0, 1


def zones(probabilities: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return whether each probability is below, in or above the inconclusive band: -1, 0 or 1, in
    the same shape.
    """
    values = np.asarray(probabilities)
    return np.where(values < low, BELOW, np.where(values >= high, ABOVE, UNCERTAIN))


def predictive_values_outside_band(labels: np.ndarray, zone: np.ndarray) -> BandFigures:
    """Return the predictive values outside the inconclusive band; None if there are no predictions.

    `labels` (n,), `zone` (n,) or (repeats, n).
    """
    zone = np.atleast_2d(zone)
    truth = np.broadcast_to(np.asarray(labels), zone.shape)

    def share(among: np.ndarray, holds: np.ndarray) -> Share:
        value = float(holds[among].mean()) if among.any() else None
        return Share(value, round(float(among.sum()) / len(zone)))

    return BandFigures(
        npv=share(zone == BELOW, truth == 0),
        ppv=share(zone == ABOVE, truth == 1),
        uncertain=share(np.ones(zone.shape, bool), zone == UNCERTAIN),
    )
