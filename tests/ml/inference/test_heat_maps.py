from __future__ import annotations

import numpy as np
import pytest

from ml.inference.heat_maps import masked_copies, occlusion, overlay, place
from ml.preprocessing.model_input import Frame
from ml.scans.slices import Slice, render


def sigmoid(z: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-z))).astype(np.float32)


def test_each_copy_has_the_window_around_its_cell_replaced_by_the_channels_median() -> None:
    # 1 x 4 cells, 2 channels; medians 1 and 5
    maps = np.array([[[0.0, 5.0], [1.0, 5.0], [1.0, 5.0], [9.0, 6.0]]], np.float32)
    copies = np.concatenate(list(masked_copies(maps)))
    assert copies.shape == (4, 1, 4, 2)
    expected = np.stack([maps] * 4)
    for cell, masked in enumerate([slice(0, 2), slice(0, 3), slice(1, 4), slice(2, 4)]):
        expected[cell, 0, masked] = [1, 5]
    np.testing.assert_array_equal(copies, expected)


def test_heat_is_the_mean_loss_of_log_odds_over_the_windows_of_a_cell_relative_to_the_largest() -> (
    None
):
    maps = np.zeros((7, 7, 1), np.float32)
    maps[3, 3] = 2
    heat = occlusion(maps, lambda copies: sigmoid(copies.sum(axis=(1, 2, 3))))
    # of its three windows in a row or column, those that hold the marked cell too
    share = np.array([1, 2, 3, 2, 1]) / 3
    expected = np.zeros((7, 7))
    expected[1:6, 1:6] = np.outer(share, share)
    np.testing.assert_allclose(heat, expected, atol=1e-5)


def test_evidence_against_hemorrhage_has_no_heat() -> None:
    maps = np.zeros((5, 5, 1), np.float32)
    maps[2, 2] = -4
    assert not occlusion(maps, lambda copies: sigmoid(copies.sum(axis=(1, 2, 3)))).any()


def test_a_cell_of_air_has_no_heat() -> None:
    maps = np.zeros((6, 6, 1), np.float32)
    maps[0, 0], maps[4, 4] = 3, 1
    pixels = np.zeros((12, 12, 1), np.float32)
    pixels[6:] = 0.5  # the lower half shows tissue
    heat = occlusion(maps, lambda copies: sigmoid(copies.sum(axis=(1, 2, 3))), pixels)
    assert not heat[:3].any()
    assert np.unravel_index(heat.argmax(), heat.shape) == (4, 4)


def test_a_saturated_answer_still_has_its_cell() -> None:
    maps = np.zeros((4, 4, 1), np.float32)
    maps[3, 0] = 1
    heat = occlusion(maps, lambda copies: sigmoid(8 + 6 * copies.sum(axis=(1, 2, 3))))
    assert np.unravel_index(heat.argmax(), heat.shape) == (3, 0)
    assert heat.max() == pytest.approx(1)


def test_noise_is_not_stretched_to_full_heat() -> None:
    maps = np.zeros((4, 4, 1), np.float32)
    maps[0, 0] = 0.002
    assert 0 < occlusion(maps, lambda copies: sigmoid(copies.sum(axis=(1, 2, 3)))).max() < 0.2


def test_a_constant_answer_has_no_heat() -> None:
    assert not occlusion(
        np.ones((2, 2, 3), np.float32), lambda copies: np.full(len(copies), 0.7, np.float32)
    ).any()


def test_more_cells_than_fit_one_run_are_scored_in_several() -> None:
    sizes: list[int] = []

    def score(copies: np.ndarray) -> np.ndarray:
        sizes.append(len(copies))
        return sigmoid(copies.sum(axis=(1, 2, 3)))

    occlusion(np.zeros((13, 13, 1), np.float32), score)
    assert sorted(sizes) == [1, 41, 64, 64]


def test_cells_of_large_maps_are_masked_in_blocks() -> None:
    maps = np.zeros((28, 28, 1), np.float32)
    maps[10:12, 20:22] = 1
    heat = occlusion(maps, lambda copies: sigmoid(copies.sum(axis=(1, 2, 3))))
    assert heat.shape == (14, 14)
    assert np.unravel_index(int(heat.argmax()), heat.shape) == (5, 10)
    assert sum(len(copies) for copies in masked_copies(maps)) == 14 * 14
    assert occlusion(maps[:25, :25], lambda copies: sigmoid(copies.sum(axis=(1, 2, 3)))).shape == (
        13,
        13,
    )


def test_heat_lies_in_its_frame_and_nowhere_else() -> None:
    cells = np.zeros((2, 2), np.float32)
    cells[1, 1] = 1
    heat = place(cells, Frame(top=20, left=10, height=40, width=40), (100, 80))
    assert heat.shape == (100, 80)
    outside = np.ones((100, 80), bool)
    outside[20:60, 10:50] = False
    assert not heat[outside].any()
    assert heat[50, 40] == pytest.approx(1, abs=0.03)  # the middle of the last cell
    assert heat[29, 19] == 0  # the middle of the first


def test_a_frame_that_reaches_outside_is_cut_at_the_edge() -> None:
    heat = place(
        np.ones((3, 3), np.float32), Frame(top=-10, left=-20, height=60, width=60), (30, 100)
    )
    expected = np.zeros((30, 100), np.float32)
    expected[:, :40] = 1
    np.testing.assert_array_equal(heat, expected)


@pytest.mark.parametrize("shape", [(100, 60), (60, 100), (512, 512), (33, 47)])
@pytest.mark.parametrize("max_px", [40, 300])
def test_the_overlay_is_as_large_as_the_render(shape: tuple[int, int], max_px: int) -> None:
    assert (
        overlay(np.zeros(shape, np.float32), max_px).size
        == render(Slice(np.zeros(shape, np.float32), "display"), max_px).size
    )


def test_the_overlay_is_clear_without_heat_and_light_and_opaque_with_it() -> None:
    picture = np.asarray(overlay(np.array([[0, 0.4, 1]], np.float32), 10))
    assert picture.shape == (1, 3, 4)
    np.testing.assert_array_equal(picture[0, :, 3], [0, 87, 217])
    np.testing.assert_array_equal(picture[0, 1:, :3], [[215, 45, 65], [255, 245, 130]])
