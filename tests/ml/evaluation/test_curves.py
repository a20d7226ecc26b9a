"""Curves for pages are thinned, however many answers there are."""

from __future__ import annotations

import numpy as np

from ml.evaluation.curves import BINS, CURVE_POINTS, level_curves, threshold_curve
from ml.evaluation.metrics import roc_points


def test_the_curves_of_a_million_answers_have_no_more_points_than_others() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 1_000_000)
    probabilities = np.clip(rng.normal(0.3 + 0.4 * labels, 0.2), 0, 1)
    result = level_curves(labels, probabilities)
    assert len(result.thresholds) <= CURVE_POINTS and len(result.calibration) <= BINS
    assert result.positive + result.negative == 1_000_000
    assert len(roc_points(labels, probabilities)) <= 200
    # Thinning loses no more than a hundredth: normal distributions, two standard deviations apart.
    (middle,) = [each for each in result.thresholds if abs(each.threshold - 0.5) < 0.006][:1]
    assert abs(middle.sensitivity - 0.841) < 0.01 and abs(middle.specificity - 0.841) < 0.01


def test_a_probability_reaches_its_own_threshold() -> None:
    points = threshold_curve(np.array([0, 1, 1]), np.array([0.1, 0.44166, 0.9]))
    assert [(point.threshold, point.sensitivity) for point in points if point.threshold < 0.9] == [
        (0.0, 1.0),
        (0.1, 1.0),
        (0.4416, 1.0),
    ]
