"""Figures of a site's confirmed scans: a sample of unequal probabilities stands for all scans."""

from __future__ import annotations

import numpy as np
import pytest

from ml.evaluation.site_figures import ConfirmedScan, sampling_weights, site_figures


def a_scan(
    number: int,
    label: int,
    probability: float,
    sampling: float | None = None,
    month: str = "2026-1",
) -> ConfirmedScan:
    return ConfirmedScan(month, label, probability, probability >= 0.5, f"p{number}", sampling)


def test_the_weighted_sample_estimates_the_figures_of_all_scans() -> None:
    random = np.random.default_rng(1)
    population = []
    for number in range(4000):
        uncertain = number % 4 == 0
        label = int(random.random() < (0.5 if uncertain else 0.1))
        # Right far from the threshold, often wrong near it.
        right = random.random() < (0.55 if uncertain else 0.95)
        probability = (0.6 if uncertain else 0.9) if right == (label == 1) else 0.2
        population.append(a_scan(number, label, probability, 1.0 if uncertain else 0.2))
    truth = site_figures(population, np.ones(len(population))).metrics
    drawn = [scan for scan in population if random.random() < (scan.sampling or 0)]
    counts = {
        ("2026-1", share): sum(scan.sampling == share for scan in drawn) for share in (1.0, 0.2)
    }
    naive = site_figures(drawn, np.ones(len(drawn))).metrics
    # Half of the random share has not been reviewed yet.
    reviewed = [scan for at, scan in enumerate(drawn) if scan.sampling == 1.0 or at % 2]
    weighted = site_figures(reviewed, sampling_weights(reviewed, counts))
    for name in ("sensitivity", "specificity", "ppv"):
        expected, result = getattr(truth, name).value, getattr(weighted.metrics, name)
        assert result.low < expected < result.high
        assert abs(result.value - expected) < abs(getattr(naive, name).value - expected)
    assert weighted.represented == pytest.approx(4000, rel=0.05)


def test_scans_read_by_choice_stand_for_themselves() -> None:
    scans = [a_scan(0, 1, 0.9), a_scan(1, 0, 0.1, 0.1), a_scan(2, 0, 0.2, 0.1, "2026-2")]
    drawn = {("2026-1", 0.1): 3, ("2026-2", 0.1): 1}
    assert sampling_weights(scans, drawn).tolist() == [1.0, 30.0, 10.0]


def test_ten_of_ten_is_not_certain() -> None:
    scans = [a_scan(number, 1, 0.9) for number in range(10)]
    sensitivity = site_figures(scans, np.ones(10)).metrics.sensitivity
    assert (sensitivity.value, sensitivity.high) == (1.0, 1.0)
    assert sensitivity.low == pytest.approx(0.722, abs=0.001)  # Wilson's, 10 of 10


def test_calibration_compares_what_was_predicted_with_what_was_found() -> None:
    scans = [a_scan(number, int(number < 3), 0.7) for number in range(4)]
    (result,) = site_figures(scans, np.array([1.0, 1.0, 1.0, 3.0])).bins
    assert (result.low, result.high, result.scans) == (0.6, 0.8, 4)
    assert result.predicted == pytest.approx(0.7) and result.observed.value == pytest.approx(0.5)


def test_without_scans_every_figure_says_why_it_is_missing() -> None:
    result = site_figures([], np.zeros(0))
    assert result.scans == 0 and result.bins == []
    assert result.metrics.sensitivity.reason == "there is no image with hemorrhage"
