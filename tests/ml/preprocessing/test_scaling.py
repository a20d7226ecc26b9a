"""Pictures made smaller, and masks brought back to their size."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from ml.preprocessing.scaling import disc, restored, shrunk


@pytest.mark.parametrize(
    ("shape", "shortest_px", "expected"),
    [
        ((512, 512), 1, (256, 256)),
        ((300, 512), 1, (150, 256)),
        ((512, 3), 1, (256, 2)),
        ((512, 3), 8, (256, 8)),
        ((5000, 2), 1, (256, 1)),
        ((200, 3), 8, (200, 3)),
    ],
)
def test_the_longer_side_is_shrunk_and_nothing_enlarged(
    shape: tuple[int, int], shortest_px: int, expected: tuple[int, int]
) -> None:
    small = shrunk(np.ones(shape, np.float32), 256, shortest_px)
    assert small.shape == expected and small.dtype == np.float32
    assert small == pytest.approx(1)


def test_pixels_are_averaged() -> None:
    picture = np.arange(16, dtype=np.float64).reshape(4, 4)
    assert shrunk(picture, 2).tolist() == [[2.5, 4.5], [10.5, 12.5]]


def test_a_mask_of_a_shrunk_picture_comes_back_in_its_place() -> None:
    whole = np.zeros((300, 200), np.float32)
    whole[60:180, 50:150] = 1
    small = (shrunk(whole, 100) >= 0.5).astype(np.uint8)
    result = restored(small, whole.shape)
    assert result.dtype == bool and result.shape == whole.shape
    assert (result != (whole > 0)).mean() < 0.01
    assert (restored(small, small.shape) == (small > 0)).all(), "the same size changes nothing"


def test_a_disc_is_round() -> None:
    assert disc(7).sum() == cv2.countNonZero(disc(7).T) < 49 and disc(7)[3].all()
