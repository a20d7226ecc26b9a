"""Slabs of thin slices, and which slices to look at first."""

from __future__ import annotations

import numpy as np
import pytest

from ml.inference.first_slices import look_first
from ml.scans.slabs import Slabs
from ml.scans.slices import Series, Slice


def a_series(count: int, distance_mm: float | None) -> Series:
    return Series(
        tuple(Slice(np.full((2, 2), number, np.float32), "hu", (1, 1)) for number in range(count)),
        (),
        distance_mm,
    )


@pytest.mark.parametrize("distance_mm", [None, 2.5, 5.0, 10.0])
def test_slices_that_are_not_thin_are_seen_as_they_are(distance_mm: float | None) -> None:
    series = a_series(7, distance_mm)
    assert list(Slabs(series)) == list(series.slices)


@pytest.mark.parametrize(
    ("count", "distance_mm", "slabs"),
    [(200, 1.0, 40), (20, 1.25, 5), (7, 2.0, 3), (3, 0.5, 1), (161, 0.625, 20)],
)
def test_thin_slices_become_slabs_of_five_millimeters(
    count: int, distance_mm: float, slabs: int
) -> None:
    stack = Slabs(a_series(count, distance_mm))
    sizes = [stack.size_of(number) for number in range(len(stack))]
    assert (len(stack), sum(sizes)) == (slabs, count)
    assert max(sizes) - min(sizes) <= 1


def test_no_slab_reaches_across_a_gap_or_into_thick_slices() -> None:
    slices = a_series(13, 1.25).slices
    # four thin ones, a gap, four thin ones, five thick ones
    steps_mm = (1.25,) * 3 + (40.0,) + (1.25,) * 3 + (5.0,) * 5
    stack = Slabs(Series(slices, (), 1.25, steps_mm))
    assert [stack.size_of(number) for number in range(len(stack))] == [4, 4, 1, 1, 1, 1, 1]
    assert [stack.number_of(index) for index in (3, 4, 7, 8, 12)] == [0, 1, 1, 2, 6]


def test_a_slab_is_the_mean_of_its_slices_and_each_slice_has_its_answer() -> None:
    stack = Slabs(a_series(10, 1.0))
    assert [slice.pixels.tolist() for slice in stack] == [[[2, 2], [2, 2]], [[7, 7], [7, 7]]]
    assert (stack[0].unit, stack[0].spacing_mm) == ("hu", (1, 1))
    np.testing.assert_array_equal(
        stack.per_slice(np.array([0.25, 0.5], np.float32)), [0.25] * 5 + [0.5] * 5
    )
    assert [stack.number_of(index) for index in (0, 4, 5, 9)] == [0, 0, 1, 1]
    assert [stack.middle_of(number) for number in (0, 1)] == [2, 7]
    with pytest.raises(IndexError):
        stack[2]


@pytest.mark.parametrize(
    ("probabilities", "first"),
    [
        ([0.1, 0.2, 0.3], [2, 1, 0]),  # nothing is positive: the most probable ones
        # one bleed, and no other
        ([0.1, 0.6, 0.9, 0.8, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], [2, 3, 1, 0, 4]),
        # two small ones beside it
        (
            [0.9, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.1, 0.1, 0.1, 0.6, 0.1, 0.7],
            [6, 4, 2, 12, 10],
        ),
        ([0.9, 0.1] * 6, [0, 2, 4, 6, 8]),
        ([0.7], [0]),
    ],
)
def test_each_bleed_is_looked_at_before_the_neighbors_of_the_first(
    probabilities: list[float], first: list[int]
) -> None:
    assert look_first(np.array(probabilities, np.float32), 0.5) == first
