"""Thresholds and the inconclusive band on answers few enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ml.evaluation.calibration import (
    MOST_INCONCLUSIVE,
    Platt,
    Sample,
    balanced_weights,
    fit_platt,
    inconclusive_band,
    operating_point,
    threshold_at,
)

LABELS = np.array([1, 1, 1, 1, 0, 0, 0, 0])
PROBABILITIES = np.array([0.9, 0.8, 0.6, 0.3, 0.7, 0.4, 0.2, 0.1])
EIGHT = Sample(LABELS, PROBABILITIES, np.full(8, 1 / 8))


def errors(sample: Sample, threshold: float) -> tuple[float, float]:
    """Return (sensitivity, specificity) by counting."""
    called = sample.probabilities >= threshold
    return (
        float(called[sample.labels == 1].mean()),
        float((~called)[sample.labels == 0].mean()),
    )


@pytest.mark.parametrize(
    ("target", "between"),
    [(1.0, (0.2, 0.3)), (0.75, (0.4, 0.6)), (0.76, (0.2, 0.3))],
)
def test_the_sensitive_point_is_the_highest_threshold_that_reaches_the_target(
    target: float, between: tuple[float, float]
) -> None:
    threshold = threshold_at(EIGHT, "sensitive", target)
    assert between[0] < threshold <= between[1]
    assert errors(EIGHT, threshold)[0] >= target


def test_the_specific_point_calls_no_normal_here_and_finds_what_it_can() -> None:
    threshold = threshold_at(EIGHT, "specific")
    assert errors(EIGHT, threshold) == (0.5, 1.0)


def test_the_balanced_point_makes_sensitivity_and_specificity_together_largest() -> None:
    random = np.random.default_rng(3)
    labels = np.repeat([1, 0], (150, 50))
    scores = 1 / (1 + np.exp(-random.normal(np.where(labels == 1, 1.0, -1.0), 1.0)))
    sample = Sample(labels, scores, np.full(200, 1 / 200))
    best = sum(errors(sample, threshold_at(sample, "balanced")))
    assert best == pytest.approx(max(sum(errors(sample, at)) for at in [*scores, 0.0, 1.1]))


def test_a_class_or_a_hospital_that_sent_more_does_not_count_more() -> None:
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 0])
    sources = np.array(["a", "a", "b", "a", "b", "b", "b", "b"])
    weights = balanced_weights(labels, sources)
    assert weights.tolist() == pytest.approx([1 / 8, 1 / 8, 1 / 4, 1 / 4, *[1 / 16] * 4])
    random = np.random.default_rng(5)
    labels, sources = random.integers(0, 2, 600), random.choice(["a", "b"], 600)
    decisions = random.normal(2.0 * labels + (sources == "b"), 1.5)
    thrice = np.repeat(np.arange(600), np.where(sources == "b", 3, 1))
    once = operating_point(labels, decisions, sources)
    more = operating_point(labels[thrice], decisions[thrice], sources[thrice])
    assert more.platt(np.zeros(1))[0] == pytest.approx(once.platt(np.zeros(1))[0], abs=0.01)
    assert more.threshold == pytest.approx(once.threshold, abs=0.01)


def test_weights_of_a_calibration_are_as_good_as_repeated_answers() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 400)
    decisions = random.normal(2.0 * labels, 1.5)
    twice = np.concatenate([np.arange(400), np.flatnonzero(labels == 1)])
    repeated = fit_platt(labels[twice], decisions[twice])
    weighted = fit_platt(labels, decisions, weights=np.where(labels == 1, 2.0, 1.0))
    assert weighted.slope == pytest.approx(repeated.slope, rel=0.03)
    assert weighted.offset == pytest.approx(repeated.offset, abs=0.05)


def test_outside_the_band_both_answers_keep_the_promise() -> None:
    random = np.random.default_rng(1)
    labels = np.repeat([1, 0], 500)
    scores = 1 / (1 + np.exp(-random.normal(np.where(labels == 1, 1.4, -1.4), 1.0)))
    sample = Sample(labels, scores, np.full(1000, 1e-3))
    threshold = threshold_at(sample, "balanced")
    low, high = inconclusive_band(sample, threshold)
    assert low <= threshold <= high
    assert (labels[scores >= high] == 1).mean() >= 0.9
    assert (labels[scores < low] == 0).mean() >= 0.9


@pytest.mark.parametrize("distance", [0.0, 0.3, 0.6, 1.0])
def test_the_band_takes_a_quarter_at_most_however_poor_the_model(distance: float) -> None:
    random = np.random.default_rng(2)
    labels = np.repeat([1, 0], 300)
    scores = 1 / (1 + np.exp(-random.normal(np.where(labels == 1, distance, -distance), 1.0)))
    sample = Sample(labels, scores, np.full(600, 1 / 600))
    threshold = threshold_at(sample, "balanced")
    low, high = inconclusive_band(sample, threshold)
    assert low <= threshold <= high
    assert ((scores >= low) & (scores < high)).mean() <= MOST_INCONCLUSIVE + 0.01


def test_a_perfect_model_needs_no_band() -> None:
    sample = Sample(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9]), np.full(4, 0.25))
    threshold = threshold_at(sample, "balanced")
    assert threshold == pytest.approx(0.5)
    assert inconclusive_band(sample, threshold) == (threshold, threshold)


def test_one_half_calls_what_is_likelier_than_not() -> None:
    decisions = np.array([2.0, 1, 0.5, -1, 1, -0.5, -1, -2])
    point = operating_point(LABELS, decisions, np.full(8, "a"), point="one half")
    assert point.threshold == 0.5 and isinstance(point.platt, Platt)
