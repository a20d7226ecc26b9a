"""Figures that a reviewer can check: metrics with intervals, thresholds, calibration.

Labels are 0 or 1, probabilities lie in 0..1, groups name what belongs together (a patient). All arrays have one entry for each
image that was scored by a model which never saw its group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 1000
CALIBRATION_BINS = 10
UNDEFINED = {
    "accuracy": "there is no image",
    "sensitivity": "there is no image with hemorrhage",
    "specificity": "there is no image without hemorrhage",
    "ppv": "nothing was called positive",
    "npv": "nothing was called negative",
    "f1": "there is neither a hemorrhage nor a positive call",
    "auroc": "one class is missing",
    "auprc": "there is no image with hemorrhage",
    "brier": "there is no image",
    "ece": "there is no image",
}


@dataclass(frozen=True)
class Platt:
    """Turns a raw decision d into a probability: 1 / (1 + exp(-(slope * d + offset))). The slope is positive."""

    slope: float
    offset: float

    def __call__(self, decisions: np.ndarray) -> np.ndarray:
        """Return the probabilities of raw decisions, float64, of the same shape."""
        linear = self.slope * np.asarray(decisions, np.float64) + self.offset
        probabilities: np.ndarray = 0.5 * (1 + np.tanh(linear / 2))
        return probabilities


def fit_platt(labels: np.ndarray, decisions: np.ndarray) -> Platt:
    """Fit the calibration to decisions of models that did not see these images.

    Newton's method on the cross entropy with Platt's smoothed targets (J. Platt 1999; Lin, Lin, Weng 2007), which keeps the
    fit finite when the classes are separable. The slope is kept positive: a calibration never turns a ranking round.
    """
    labels, decisions = np.asarray(labels), np.asarray(decisions, np.float64)
    positive, negative = int((labels == 1).sum()), int((labels == 0).sum())
    targets = np.where(labels == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))
    centre, scale = float(decisions.mean()), float(decisions.std()) or 1.0
    inputs = np.stack([(decisions - centre) / scale, np.ones_like(decisions)], axis=1)

    def loss(weights: np.ndarray) -> float:
        linear = inputs @ weights
        return float((np.logaddexp(0, linear) - targets * linear).sum())

    weights = np.array([0.0, np.log((positive + 1) / (negative + 1))])
    for _ in range(100):
        predicted = 0.5 * (1 + np.tanh(inputs @ weights / 2))
        gradient = inputs.T @ (predicted - targets)
        curvature = inputs.T @ (inputs * (predicted * (1 - predicted))[:, None]) + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while size > 1e-10 and loss(weights - size * step) > loss(weights) - 1e-4 * size * float(gradient @ step):
            size /= 2
        weights = weights - size * step
        if np.abs(gradient).max() < 1e-8 * len(labels):
            break
    slope = max(float(weights[0]), 1e-3) / scale
    return Platt(slope, float(weights[1]) - slope * centre)


def threshold_at_sensitivity(labels: np.ndarray, probabilities: np.ndarray, target: float) -> float:
    """Return the highest threshold at which `probabilities >= threshold` still finds that share of the hemorrhages."""
    of_positives = np.sort(np.asarray(probabilities, np.float64)[np.asarray(labels) == 1])[::-1]
    needed = int(np.ceil(target * len(of_positives) - 1e-9))
    return float(of_positives[max(needed, 1) - 1])


def uncertain_band(labels: np.ndarray, probabilities: np.ndarray, threshold: float, target: float) -> tuple[float, float]:
    """Return (low, high) around the threshold: low <= p < high should be read by a person before anyone relies on it.

    Below `low` at most half of the misses allowed by the target sensitivity remain; from `high` on at most 5 % of the
    images without hemorrhage are called positive.
    """
    low = threshold_at_sensitivity(labels, probabilities, (1 + target) / 2)
    of_negatives = np.sort(np.asarray(probabilities, np.float64)[np.asarray(labels) == 0])
    above = float(np.quantile(of_negatives, 0.95, method="higher"))
    return min(low, threshold), max(float(np.nextafter(above, 2)), threshold)


def metrics_with_intervals(
    labels: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray, groups: np.ndarray, seed: int, resamples: int = RESAMPLES
) -> dict[str, dict[str, Any]]:
    """Return each metric as {"value", "low", "high", "n"}: the figure and its 95 % interval.

    The interval holds the middle 95 % of the figure over bootstrap samples of whole groups, since images of a patient are
    no independent evidence. A figure that cannot be computed is None and carries a "reason". `n` counts what the figure is a share
    of: the hemorrhages for the sensitivity, the positive calls for the PPV.

    Args:
        labels, probabilities, groups: as the module says.
        predicted: booleans; separate from the probabilities, as each fold has its own threshold.
        seed: of the bootstrap.
        resamples: how many bootstrap samples.
    """
    labels, probabilities = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    _, group_of = np.unique(np.asarray(groups), return_inverse=True)
    n_groups = int(group_of.max()) + 1 if len(group_of) else 0
    random = np.random.default_rng(seed)
    drawn = random.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=resamples) if n_groups else np.zeros((0, 0))
    weights = np.concatenate([np.ones((1, len(labels))), drawn[:, group_of]]) if len(labels) else np.zeros((1, 0))
    figures = _figures(labels, probabilities, np.asarray(predicted, bool), weights)
    counts = confusion(labels, predicted)
    own_n = {
        "sensitivity": counts["tp"] + counts["fn"],
        "specificity": counts["tn"] + counts["fp"],
        "ppv": counts["tp"] + counts["fp"],
        "npv": counts["tn"] + counts["fn"],
    }
    result: dict[str, dict[str, Any]] = {}
    for name, values in figures.items():
        entry: dict[str, Any] = {"value": None, "low": None, "high": None, "n": own_n.get(name, len(labels))}
        sampled = values[1:][np.isfinite(values[1:])]
        if np.isfinite(values[0]):
            entry["value"] = float(values[0])
            entry["low"], entry["high"] = (float(q) for q in np.quantile(sampled, [0.025, 0.975])) if len(sampled) else (None, None)
        else:
            entry["reason"] = UNDEFINED[name]
        result[name] = entry
    return result


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under the ROC curve, ties counted half; NaN if a class is missing."""
    labels = np.asarray(labels, np.float64)
    return float(_ranking_figures(labels, np.asarray(scores, np.float64), np.ones((1, len(labels))))[0][0])


def roc_points(labels: np.ndarray, probabilities: np.ndarray, most: int = 200) -> list[list[float]]:
    """Return [false positive rate, sensitivity] along the ROC curve from [0, 0] to [1, 1], at most `most` points."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    thresholds = np.unique(probabilities)[::-1]
    positives, negatives = np.sort(probabilities[labels == 1]), np.sort(probabilities[labels == 0])
    sensitivity = 1 - np.searchsorted(positives, thresholds) / max(len(positives), 1)
    false_positive = 1 - np.searchsorted(negatives, thresholds) / max(len(negatives), 1)
    points = np.concatenate([[[0.0, 0.0]], np.stack([false_positive, sensitivity], axis=1)])
    if len(points) > most:
        points = points[np.unique(np.linspace(0, len(points) - 1, most).astype(int))]
    return [[float(x), float(y)] for x, y in points]


def confusion(labels: np.ndarray, predicted: np.ndarray) -> dict[str, int]:
    """Return the counts {"tp", "fp", "tn", "fn"}."""
    truth, called = np.asarray(labels) == 1, np.asarray(predicted, bool)
    return {
        "tp": int((truth & called).sum()),
        "fp": int((~truth & called).sum()),
        "tn": int((~truth & ~called).sum()),
        "fn": int((truth & ~called).sum()),
    }


def _figures(labels: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> Mapping[str, np.ndarray]:
    """Return each metric for each row of `weights` (samples, images): how often an image counts. NaN where undefined."""
    truth, called = labels == 1, predicted
    tp, fp = weights @ (truth & called), weights @ (~truth & called)
    tn, fn = weights @ (~truth & ~called), weights @ (truth & ~called)
    total = tp + fp + tn + fn
    area, precision = _ranking_figures(labels, probabilities, weights)
    bins = np.minimum((probabilities * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = sum(np.abs(weights[:, bins == one] @ (labels - probabilities)[bins == one]) for one in range(CALIBRATION_BINS))
    return {
        "accuracy": _ratio(tp + tn, total),
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "ppv": _ratio(tp, tp + fp),
        "npv": _ratio(tn, tn + fn),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "auroc": area,
        "auprc": precision,
        "brier": _ratio(weights @ (labels - probabilities) ** 2, total),
        "ece": _ratio(np.asarray(gaps, np.float64) * np.ones(len(weights)), total),
    }


def _ranking_figures(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return AUROC (Mann-Whitney, ties half) and AUPRC (average precision) for each row of `weights`."""
    if not len(labels):
        return np.full(len(weights), np.nan), np.full(len(weights), np.nan)
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) != 0]))
    positive = np.add.reduceat((weights * (labels == 1))[:, order], starts, axis=1)
    negative = np.add.reduceat((weights * (labels == 0))[:, order], starts, axis=1)
    positives, negatives = positive.sum(axis=1), negative.sum(axis=1)
    positive_so_far, negative_so_far = positive.cumsum(axis=1), negative.cumsum(axis=1)
    lower_negatives = negatives[:, None] - negative_so_far
    area = _ratio((positive * (lower_negatives + negative / 2)).sum(axis=1), positives * negatives)
    precision = positive_so_far / np.maximum(positive_so_far + negative_so_far, 1e-12)
    return area, _ratio((positive * precision).sum(axis=1), positives)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
    return ratio
