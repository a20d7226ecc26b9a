"""What confirmed scans of a site do to a model's probabilities there."""

from __future__ import annotations

import numpy as np
import pytest

from ml.errors import DatasetError
from ml.evaluation.local_calibration import (
    LocalScans,
    before_and_after,
    fit_local,
    local_points,
    simulate,
)
from ml.named_points import POINTS, require_sound
from ml.typed_json import to_json


def a_site(count: int, shift: float, seed: int = 0) -> LocalScans:
    """Return scans, half of them with hemorrhage, whose log-odds are `shift` too high."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    log_odds = random.normal(np.where(labels == 1, 1.5, -1.5), 1.2) + shift
    groups = np.array([f"patient {number}" for number in range(count)])
    return LocalScans(labels, 1 / (1 + np.exp(-log_odds)), groups)


def test_many_scans_take_the_shift_away_and_few_take_some_of_it() -> None:
    many, few = fit_local(a_site(2000, 2.0)), fit_local(a_site(20, 2.0))
    zero = -many.offset / many.slope
    assert zero == pytest.approx(2.0, abs=0.15)
    assert 0.2 < -few.offset / few.slope < 2.0


def test_a_site_that_is_calibrated_already_is_left_nearly_as_it_is() -> None:
    before, after = before_and_after(a_site(400, 0.0), 0.5)
    assert after.sensitivity.value == pytest.approx(before.sensitivity.value, abs=0.03)
    assert after.specificity.value == pytest.approx(before.specificity.value, abs=0.03)


def test_healthy_people_who_were_called_positive_are_called_right_afterwards() -> None:
    before, after = before_and_after(a_site(100, 2.5), 0.5)
    assert before.specificity.value is not None and before.specificity.value < 0.5
    assert after.specificity.value is not None and after.specificity.value > 0.75
    assert after.brier < before.brier


def test_more_scans_close_more_of_the_gap() -> None:
    site = a_site(400, 2.5)
    result = [simulate(site, 0.5, size) for size in (20, 100)]
    gaps = [row["brier_after"] - row["brier_best"] for row in result]
    assert gaps[1] < gaps[0] < result[0]["brier_before"] - result[0]["brier_best"]


@pytest.mark.parametrize(("positive", "negative"), [(30, 0), (0, 30), (28, 4), (9, 10)])
def test_too_few_scans_are_refused_with_their_numbers(positive: int, negative: int) -> None:
    labels = np.repeat([1, 0], (positive, negative))
    scans = LocalScans(labels, np.full(len(labels), 0.5), np.arange(len(labels)))
    with pytest.raises(DatasetError, match=f"{positive} with and {negative} without"):
        scans.require_enough()


def test_a_site_spares_no_more_scans_than_leave_both_classes_to_test_on() -> None:
    site = a_site(40, 1.0)
    assert site.can_spare(20) and site.can_spare(24) and not site.can_spare(25)
    with pytest.raises(DatasetError, match="too few scans to calibrate with 25"):
        simulate(site, 0.5, 25)


def test_named_points_are_fitted_to_the_site_and_judged_on_other_patients() -> None:
    points = local_points(a_site(300, 2.0))
    require_sound({"slice": to_json(points), "patient": to_json(points)})
    sensitive, balanced, specific = (points[name] for name in POINTS)
    assert sensitive.sensitivity.value is not None and sensitive.sensitivity.value > 0.9
    assert specific.specificity.value is not None and specific.specificity.value > 0.9
    assert sensitive.threshold <= balanced.threshold <= specific.threshold
