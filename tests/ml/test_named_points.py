"""Named operating points: which a card may hold, and what a threshold means per 100 scans."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from scipy.stats import binomtest

from ml.artifacts.card import Card
from ml.errors import ArtifactError
from ml.named_points import (
    PERCENTAGES,
    meaning_at,
    meaning_of,
    per_hundred,
    wilson,
    with_widths,
)
from ml.typed_json import to_json
from tests.ml.conftest import a_card, named_points_of_card

Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("threshold", "sentence"),
    [
        (0.3, "Of 100 scans, 10 of them with hemorrhage: finds 9, misses 1, flags 6 of the 90"),
        (0.1, "Of 100 scans, 10 of them with hemorrhage: finds all 10, flags 36 of the 90"),
        (
            0.4,
            "Between balanced and specific. Of 100 scans, 10 of them with hemorrhage: finds 7"
            " to 9, misses 1 to 3, flags 2 to 6 of the 90",
        ),
        (
            0.05,
            "Below the threshold of sensitive. Of 100 scans, 10 of them with hemorrhage: finds"
            " all 10, flags 36 to 90 of the 90",
        ),
        (
            0.9,
            "Above the threshold of specific. Of 100 scans, 10 of them with hemorrhage: finds 0"
            " to 7, misses 3 to 10, flags 0 to 2 of the 90",
        ),
    ],
)
def test_a_threshold_means_so_much_per_hundred_scans(threshold: float, sentence: str) -> None:
    assert meaning_at(named_points_of_card(), "patient", threshold).startswith(
        f"{sentence} without."
    )


def test_what_rests_on_few_people_says_so() -> None:
    points = named_points_of_card()
    balanced = points["patient"]["balanced"]
    balanced["sensitivity"] = {"value": 0.6, "low": 0.46, "high": 0.72, "n": 49}
    balanced["specificity"] = {"value": 1.0, "low": 1.0, "high": 1.0, "n": 25}
    assert meaning_of(balanced, "patient") == (
        "Of 100 scans, 10 of them with hemorrhage: finds 6, misses 4, flags none of the 90 without."
        " Measured on 49 patients with hemorrhage and 25 without: 5 to 7 found and 0 to 12 flagged"
        " are plausible (95% intervals)."
    )
    curve = [{"threshold": 0.5, "sensitivity": 0.5, "specificity": 1.0}]
    assert "40 without: 4 to 6 found and 0 to 8 flagged" in meaning_at(
        points, "patient", 0.45, curve
    )


def test_a_share_of_all_or_none_has_an_interval_with_a_width() -> None:
    for count, n in ((0, 25), (25, 25), (5, 10), (1, 3)):
        interval = binomtest(count, n).proportion_ci(0.95, method="wilson")
        assert wilson(count, n) == pytest.approx((interval.low, interval.high))
    of_all = {"value": 1.0, "low": 1.0, "high": 1.0, "n": 25}
    wide = with_widths({"specificity": of_all, "auroc": of_all, "notes": [1]})
    assert wide["specificity"] == {**of_all, "low": pytest.approx(0.867, abs=1e-3)}
    assert wide["auroc"] == of_all  # No share of people.
    outside = {"value": 0.05, "low": 0.052, "high": 0.158, "n": 25}
    assert with_widths({"ece": outside})["ece"] == {**outside, "low": None, "high": None}
    point = {
        "sensitivity": {"value": 0.6, "low": 0.5, "high": 0.7, "n": 49},
        "specificity": of_all,
        "ppv": {percent: {**of_all, "n": 74} for percent in PERCENTAGES},
        "npv": {
            percent: {"value": 0.9, "low": 0.9, "high": 0.9, "n": 74} for percent in PERCENTAGES
        },
    }
    ppv = with_widths(point)["ppv"]["10"]
    low = 0.1 * 0.5 / (0.1 * 0.5 + 0.9 * 0.1332)
    assert (ppv["low"], ppv["high"]) == pytest.approx((low, 1.0), abs=1e-3)


def test_what_rounds_to_all_or_none_is_not_called_so() -> None:
    assert per_hundred("slices", (0.97, 0.97), (0.996, 0.996)) == (
        "Of 100 slices, 10 of them with hemorrhage: finds nearly all 10, flags fewer than 1 of the"
        " 90 without."
    )
    assert "flags none of the 90" in per_hundred("slices", (0.5, 0.5), (1.0, 1.0))


def test_what_was_not_measured_is_reported_with_its_reason() -> None:
    points = named_points_of_card()
    for point in points["patient"].values():
        point["sensitivity"] = {
            "value": None,
            "low": None,
            "high": None,
            "n": 0,
            "reason": "there is no image with hemorrhage",
        }
    expected = "Not measured: there is no image with hemorrhage."
    assert meaning_of(points["patient"]["balanced"], "patient") == expected
    assert meaning_at(points, "patient", 0.5) == expected
    assert to_json(Card.from_json(a_card(points=points).to_json()).points) == points


def without(*path: str) -> Change:
    def change(points: dict[str, Any]) -> object:
        for name in path[:-1]:
            points = points[name]
        return points.pop(path[-1])

    return change


def giving(value: object, *path: str) -> Change:
    def change(points: dict[str, Any]) -> None:
        for name in path[:-1]:
            points = points[name]
        points[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            giving(0.31, "patient", "sensitive", "threshold"),
            "points by patient contradict each other: the threshold of 'sensitive' is 0.310, that"
            " of 'balanced' 0.300.",
        ),
        (
            giving(0.95, "slice", "specific", "sensitivity", "value"),
            "by slice contradict each other: the sensitivity of 'balanced' is 0.900, that of"
            " 'specific' 0.950.",
        ),
        (
            giving(0.99, "slice", "balanced", "specificity", "value"),
            "by slice contradict each other: the specificity of 'balanced' is 0.990, that of"
            " 'specific' 0.980.",
        ),
        (
            giving(1.2, "patient", "specific", "threshold"),
            "the operating point 'specific' by patient is 1.2; it must lie within 0 and 1.",
        ),
        (giving(float("nan"), "patient", "specific", "threshold"), "is nan; it must lie within"),
        (giving(None, "patient", "specific", "threshold"), "is None; it must lie within"),
        (without("patient"), "lacks operating points by patient."),
        (without("slice", "balanced"), "lacks the operating point 'balanced' by slice."),
        (without("slice", "balanced", "npv", "10"), "lacks the npv at 10% of the operating point"),
        (without("slice", "balanced", "ppv"), "lacks the ppv at 2% of the operating point"),
        (without("slice", "balanced", "sensitivity", "low"), "lacks the sensitivity of"),
        (giving(1.5, "slice", "balanced", "specificity", "high"), "lacks the specificity of"),
        (
            giving({"value": None, "low": None, "high": None}, "slice", "balanced", "specificity"),
            "lacks the specificity of",
        ),
    ],
)
def test_points_that_contradict_each_other_or_lack_a_figure_are_refused(
    change: Change, sentence: str
) -> None:
    sound = named_points_of_card()
    assert to_json(Card.from_json(a_card(points=sound).to_json()).points) == sound
    broken = copy.deepcopy(json.loads(a_card(points=sound).to_json()))
    change(broken["points"])
    with pytest.raises(ArtifactError) as refused:
        Card.from_json(json.dumps(broken))
    assert sentence in str(refused.value) and "\n" not in str(refused.value)
