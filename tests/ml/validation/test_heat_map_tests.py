"""The tests of heat maps, with a model that looks at one cell and one that looks elsewhere than
where the blood is.
"""

from __future__ import annotations

import numpy as np

from ml.validation.heat_map_tests import (
    HeatMapTest,
    covered,
    hottest_cells,
    judge_heat_maps,
    points_at,
    random_cells,
    summary,
)
from tests.ml.conftest import CELLS, INPUT_PX, features_graph, head_graph

BLOCK = INPUT_PX // CELLS


def slice_with_blood_at(row: int, column: int) -> tuple[np.ndarray, np.ndarray]:
    """A gray head with one bright cell, and its outline at a quarter of the resolution."""
    image = np.full((INPUT_PX, INPUT_PX, 1), 0.3, np.float32)
    image[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK] = 0.9
    mask = (image[::4, ::4, 0] > 0.5).astype(np.uint8)
    return image, mask


def test_a_model_that_looks_at_the_blood_passes_both() -> None:
    image, mask = slice_with_blood_at(2, 5)
    files = {"features.onnx": features_graph(), "head.onnx": head_graph(row=2, column=5)}
    (result,) = judge_heat_maps(files, image[np.newaxis], mask[np.newaxis], [0], seed=0)
    assert result == HeatMapTest(0, hottest_beats_random=True, hottest_in_or_beside_mask=True)


def test_a_model_that_looks_elsewhere_does_not_point_at_the_blood() -> None:
    image, mask = slice_with_blood_at(6, 1)
    image[2 * BLOCK : 3 * BLOCK, 5 * BLOCK : 6 * BLOCK] = 0.9
    files = {"features.onnx": features_graph(), "head.onnx": head_graph(row=2, column=5)}
    (result,) = judge_heat_maps(files, image[np.newaxis], mask[np.newaxis], [0], seed=0)
    assert result.hottest_in_or_beside_mask is False


def test_a_model_that_no_cover_can_lower_does_not_beat_chance() -> None:
    image, mask = slice_with_blood_at(2, 5)
    files = {"features.onnx": features_graph(), "head.onnx": head_graph(gain=0.0)}
    (result,) = judge_heat_maps(files, image[np.newaxis], mask[np.newaxis], [0], seed=0)
    assert result.hottest_beats_random is False


def test_beside_is_within_one_cell() -> None:
    heat = np.zeros((8, 8), np.float32)
    heat[2, 5] = 1
    for column, expected in ((4, True), (5, True), (6, True), (7, False), (3, False)):
        assert points_at(heat, slice_with_blood_at(3, column)[1]) is expected


def test_without_an_outline_nobody_knows() -> None:
    assert points_at(np.eye(8, dtype=np.float32), np.full((16, 16), 255, np.uint8)) is None


def test_both_covers_take_a_tenth_of_the_cells_and_the_random_one_lies_on_the_head() -> None:
    image = np.zeros((INPUT_PX, INPUT_PX, 1), np.float32)
    image[:, : INPUT_PX // 2] = 0.5
    chosen = random_cells(image, (8, 8), np.random.default_rng(0))
    assert chosen.sum() == hottest_cells(np.arange(64, dtype=np.float32).reshape(8, 8)).sum() == 6
    assert not chosen[:, 4:].any()


def test_a_cover_paints_the_head_and_leaves_the_air() -> None:
    image, _ = slice_with_blood_at(0, 0)
    image[:BLOCK, BLOCK:] = 0
    cells = np.zeros((CELLS, CELLS), bool)
    cells[0] = True
    painted = covered(image, cells)
    np.testing.assert_allclose(painted[:BLOCK, :BLOCK], 0.3)
    assert not painted[:BLOCK, BLOCK:].any()


def test_the_summary_counts_what_is_known() -> None:
    tested = [
        HeatMapTest(0, hottest_beats_random=True, hottest_in_or_beside_mask=None),
        HeatMapTest(1, hottest_beats_random=False, hottest_in_or_beside_mask=True),
    ]
    result = summary(tested, np.array(["a", "b"]), seed=0)
    assert (result["hottest_beats_random"].value, result["hottest_beats_random"].n) == (0.5, 2)
    assert (
        result["hottest_in_or_beside_mask"].value,
        result["hottest_in_or_beside_mask"].n,
    ) == (1.0, 1)
    assert summary([], np.array([]), seed=0)["hottest_beats_random"].value is None
