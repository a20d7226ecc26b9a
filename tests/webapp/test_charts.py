"""Coordinates of charts, checked with numbers that a person can compute."""

from __future__ import annotations

import pytest

from webapp.charts.axes import Axes
from webapp.charts.bars import Bar, probability_bars
from webapp.charts.distributions import histogram_chart
from webapp.charts.roc import roc_chart

CONFUSION = {"tp": 9, "fn": 1, "fp": 2, "tn": 18}


def test_axes_count_upwards_from_the_lower_left_corner() -> None:
    axes = Axes(left=10, top=20, width=100, height=50)
    assert (axes.right, axes.bottom) == (110, 70)
    assert (axes.x(0.25), axes.y(0.25)) == (35, 57.5)
    assert axes.points([(0, 0), (1, 1)]) == "10.0,70.0 110.0,20.0"


def test_an_roc_curve_runs_from_the_lower_left_to_the_upper_right() -> None:
    chart = roc_chart({"roc": [[0, 0], [0.1, 0.9], [1, 1]], "confusion": CONFUSION})
    assert chart.curve == "52.0,300.0 80.0,48.0 332.0,20.0"
    assert [(tick.value, tick.x, tick.y) for tick in chart.ticks[::4]] == [
        ("0", 52, 300),
        ("100", 332, 20),
    ]


def test_the_operating_point_is_that_of_the_confusion_matrix() -> None:
    point = roc_chart({"roc": [[0, 0], [1, 1]], "confusion": CONFUSION}).operating_point
    assert point is not None
    assert (point.sensitivity, point.false_positive_rate) == (0.9, 0.1)
    assert (point.x, point.y) == (80, 48)


@pytest.mark.parametrize("missing", [{"tp": 0, "fn": 0}, {"fp": 0, "tn": 0}])
def test_without_one_of_the_classes_there_is_no_operating_point(missing: dict[str, int]) -> None:
    assert roc_chart({"roc": [], "confusion": CONFUSION | missing}).operating_point is None


def test_bins_are_drawn_at_their_middle_and_the_highest_share_reaches_the_top() -> None:
    chart = histogram_chart({"positive": [0.25, 0.75], "negative": [0.5, 0.5]})
    assert chart.highest == 0.75
    assert chart.curves["positive"] == "167.0,133.3 397.0,20.0"
    assert chart.curves["negative"] == "167.0,76.7 397.0,76.7"


def test_a_class_without_pixels_has_no_curve() -> None:
    assert list(histogram_chart({"positive": [1.0], "negative": []}).curves) == ["positive"]


def test_a_histogram_of_nothing_has_an_axis() -> None:
    chart = histogram_chart({"positive": [], "negative": [0.0, 0.0]})
    assert chart.highest == 0.001
    assert chart.curves == {"negative": "167.0,190.0 397.0,190.0"}
    assert not histogram_chart({"positive": [], "negative": []}).curves


def test_a_bar_stands_on_the_floor_in_the_middle_of_its_slices_place() -> None:
    assert probability_bars([0.25, 1.0], first_slices=[1]) == (
        Bar(0.05, 0.75, 0.9, 0.25, is_first=False),
        Bar(1.05, 0.0, 0.9, 1.0, is_first=True),
    )
