"""From raw decisions to probabilities, thresholds and an uncertain band: all fitted to what a model
had not seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ml.figures import BandFigures, Share


@dataclass(frozen=True)
class Platt:
    """Turns a raw decision d into a probability: 1 / (1 + exp(-(slope * d + offset))). The slope is
    positive.
    """

    slope: float
    offset: float

    def __call__(self, decisions: np.ndarray) -> np.ndarray:
        """Return the probabilities of raw decisions, float64, of the same shape."""
        linear = self.slope * np.asarray(decisions, np.float64) + self.offset
        probabilities: np.ndarray = 0.5 * (1 + np.tanh(linear / 2))
        return probabilities


PRIOR_SPREAD = np.array([0.25, 0.5])
"""How far a calibration may lie from its prior: of the slope as a share of it, of the offset as it
is; one standard deviation each.
"""


def fit_platt(labels: np.ndarray, decisions: np.ndarray, prior: Platt | None = None) -> Platt:
    """Fit the calibration to decisions of models that did not see these images.

    With a `prior` it is the most probable one given that prior: a handful of scans then moves it a
    little, hundreds move it at will.

    Newton's method on the cross entropy with Platt's smoothed targets (J. Platt 1999; Lin, Lin,
    Weng 2007), which keeps the fit finite when the classes are separable. The slope is kept
    positive: a calibration never turns a ranking round.
    """
    labels, decisions = np.asarray(labels), np.asarray(decisions, np.float64)
    positive, negative = int((labels == 1).sum()), int((labels == 0).sum())
    targets = np.where(labels == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))
    center, scale = float(decisions.mean()), float(decisions.std()) or 1.0
    inputs = np.stack([(decisions - center) / scale, np.ones_like(decisions)], axis=1)
    expected, certainty = np.array([0.0, np.log((positive + 1) / (negative + 1))]), np.zeros((2, 2))
    if prior:  # on the same standardized decisions, so that the least slope means the same
        expected = np.array([prior.slope * scale, prior.offset + prior.slope * center])
        deviations = (
            np.array([[1 / scale, 0.0], [-center / scale, 1.0]])
            / (PRIOR_SPREAD * np.array([prior.slope, 1.0]))[:, None]
        )
        certainty = deviations.T @ deviations

    def loss(weights: np.ndarray) -> float:
        linear, away = inputs @ weights, weights - expected
        return float(
            (np.logaddexp(0, linear) - targets * linear).sum() + 0.5 * away @ certainty @ away
        )

    weights = expected
    for _ in range(100):
        predicted = 0.5 * (1 + np.tanh(inputs @ weights / 2))
        gradient = inputs.T @ (predicted - targets) + certainty @ (weights - expected)
        curvature = (
            inputs.T @ (inputs * (predicted * (1 - predicted))[:, None])
            + certainty
            + 1e-9 * np.eye(2)
        )
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while size > 1e-10 and loss(weights - size * step) > loss(weights) - 1e-4 * size * float(
            gradient @ step
        ):
            size /= 2
        weights = weights - size * step
        if np.abs(gradient).max() < 1e-8 * len(labels):
            break
    slope = max(float(weights[0]), 1e-3) / scale
    return Platt(slope, float(weights[1]) - slope * center)


def threshold_at_sensitivity(labels: np.ndarray, probabilities: np.ndarray, target: float) -> float:
    """Return the highest threshold at which `probabilities >= threshold` still finds that share of
    the hemorrhages.
    """
    of_positives = np.sort(np.asarray(probabilities, np.float64)[np.asarray(labels) == 1])[::-1]
    needed = int(np.ceil(target * len(of_positives) - 1e-9))
    return float(of_positives[max(needed, 1) - 1])


def uncertain_band(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float, target: float
) -> tuple[float, float]:
    """Return (low, high) around the threshold: low <= p < high should be read by a person before
    anyone relies on it.

    Below `low` at most half of the misses allowed by the target sensitivity remain; from `high` on
    at most 5 % of the images without hemorrhage are called positive.
    """
    low = threshold_at_sensitivity(labels, probabilities, (1 + target) / 2)
    of_negatives = np.sort(np.asarray(probabilities, np.float64)[np.asarray(labels) == 0])
    above = float(np.quantile(of_negatives, 0.95, method="higher"))
    return min(low, threshold), min(max(float(np.nextafter(above, 2)), threshold), 1.0)


@dataclass(frozen=True)
class OperatingPoint:
    """How raw decisions of one level (slices or scans) become answers: calibration, threshold,
    uncertain band.
    """

    platt: Platt
    threshold: float
    low: float
    high: float


def operating_point(
    labels: np.ndarray, decisions: np.ndarray, target: float | None, prior: Platt | None = None
) -> OperatingPoint:
    """Return calibration, threshold and band fitted to raw decisions of models that did not see
    these slices or scans.

    The threshold reaches the sensitivity `target`; None calls what is likelier than not positive,
    and the band is that of 0.95. `prior` is that of the calibration.
    """
    platt = fit_platt(labels, decisions, prior)
    probabilities = platt(decisions)
    threshold = 0.5 if target is None else threshold_at_sensitivity(labels, probabilities, target)
    target = 0.95 if target is None else target
    return OperatingPoint(
        platt, threshold, *uncertain_band(labels, probabilities, threshold, target)
    )


BELOW, UNCERTAIN, ABOVE = -1, 0, 1


def zones(probabilities: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return for each probability whether it lies below, in or above the uncertain band: -1, 0 or
    1.
    """
    given = np.asarray(probabilities)
    return np.where(given < low, BELOW, np.where(given >= high, ABOVE, UNCERTAIN))


def predictive_values_outside_band(labels: np.ndarray, zone: np.ndarray) -> BandFigures:
    """Return how often answers outside the uncertain band are right.

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
