"""The steps on pictures whose answer is known to the pixel."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from ml.preprocessing.head import find_head
from ml.preprocessing.model_input import CHOICES
from ml.preprocessing.segmentation import (
    DIMMED,
    dense,
    edges,
    grabcut,
    otsu_threshold,
    restructure,
    soft_tissue,
    watershed,
)
from ml.scans.phantoms import phantom
from ml.scans.slices import window

EVERYWHERE = np.ones((64, 64), bool)


def two_levels() -> np.ndarray:
    """40% gray with a square of 80% gray below a row of white bone, float32 (64, 64)."""
    picture = np.full((64, 64), 0.4, np.float32)
    picture[0] = 1
    picture[20:40, 20:40] = 0.8
    return picture


def two_discs(apart: int) -> np.ndarray:
    """Two discs with a radius of 20 px, their middles `apart` px from each other, bool (80,
    120).
    """
    picture = np.zeros((80, 120), np.uint8)
    for middle in (60 - apart // 2, 60 + apart // 2):
        cv2.circle(picture, (middle, 40), 20, 1, cv2.FILLED)
    return picture > 0


def bleeding_head() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A phantom in the brain window, its head, and where its blood is."""
    healthy, bleeding = (
        phantom(2, hemorrhage=False, size=224),
        phantom(2, hemorrhage=True, size=224),
    )
    gray = window(bleeding.astype(np.float32), 40, 80)
    head = find_head(gray)
    assert head is not None
    return np.where(head, gray, 0).astype(np.float32), head, bleeding.astype(int) - healthy > 25


def test_otsus_threshold_lies_between_two_levels() -> None:
    assert 0.4 <= otsu_threshold(two_levels()) < 0.8
    assert otsu_threshold(np.zeros(0, np.float32)) == 0


def test_otsu_selects_exactly_the_denser_level() -> None:
    np.testing.assert_array_equal(dense(two_levels(), EVERYWHERE), two_levels() > 0.5)


def test_otsu_of_a_head_finds_the_blood_though_bone_is_brighter() -> None:
    picture, head, blood = bleeding_head()
    selected = dense(picture, head)
    assert selected[blood].mean() > 0.95
    brain = soft_tissue(picture, head) & ~blood
    assert selected[brain].mean() < 0.4


def test_soft_tissue_is_neither_bone_nor_air_nor_beside_them() -> None:
    picture = np.full((32, 32), 0.4, np.float32)
    picture[:, 10] = 1
    picture[:, 20] = 0
    soft = soft_tissue(picture, np.ones((32, 32), bool))
    assert list(np.flatnonzero(~soft[16])) == [8, 9, 10, 11, 12, 18, 19, 20, 21, 22]


def test_watershed_separates_two_touching_discs() -> None:
    mask = two_discs(apart=32)
    # they are one body, and the outside
    assert cv2.connectedComponents(mask.astype(np.uint8))[0] == 2
    labels = watershed(mask)
    assert set(np.unique(labels)) == {0, 1, 2}
    assert labels[40, 44] != labels[40, 76]
    assert np.count_nonzero(labels == 1) == pytest.approx(np.count_nonzero(labels == 2), abs=30)
    assert set(np.nonzero(mask & (labels == 0))[1]) <= {59, 60, 61}
    assert not labels[~mask].any()


def test_watershed_separates_a_small_disc_from_a_large_one_at_their_neck() -> None:
    picture = np.zeros((80, 120), np.uint8)
    cv2.circle(picture, (40, 40), 28, 1, cv2.FILLED)
    cv2.circle(picture, (76, 40), 14, 1, cv2.FILLED)  # their outlines cross at x = 66
    labels = watershed(picture > 0)
    assert labels[40, 40] != labels[40, 76]
    assert np.nonzero((picture > 0) & (labels == 0))[1] == pytest.approx(65, abs=3)


def test_a_speck_beside_a_body_is_a_body_of_its_own() -> None:
    mask = two_discs(apart=0)
    mask[39:42, 82:84] = True
    assert len(set(np.unique(watershed(mask)))) == 3


def test_watershed_leaves_one_disc_whole_and_nothing_empty() -> None:
    assert set(np.unique(watershed(two_discs(apart=0)))) == {0, 1}
    assert not watershed(np.zeros((64, 64), bool)).any()


def test_the_edge_of_a_square_is_found_where_it_is() -> None:
    result = edges(two_levels(), EVERYWHERE)
    rows, columns = np.nonzero(result[5:])
    rows += 5
    assert (min(rows), max(rows), min(columns), max(columns)) == pytest.approx(
        (20, 39, 20, 39), abs=1
    )
    assert not result[25:35, 25:35].any()


def test_grabcut_keeps_the_brain_and_drops_bone_and_air_the_same_way_each_time() -> None:
    picture, head, _ = bleeding_head()
    inside = grabcut(picture, head)
    assert inside[100:125, 100:125].mean() > 0.8
    assert not inside[~head].any()
    assert inside[(picture >= 0.98) & head].mean() < 0.4
    np.testing.assert_array_equal(inside, grabcut(picture, head))


def test_watershed_keeps_blood_and_dims_bone() -> None:
    picture, head, blood = bleeding_head()
    restructured = restructure(picture, head, "watershed")
    assert (restructured[blood] == picture[blood]).mean() > 0.8
    bone = (picture >= 0.98) & ~cv2.dilate(
        blood.astype(np.uint8), np.ones((9, 9), np.uint8)
    ).astype(bool)
    assert (restructured[bone] == DIMMED * picture[bone]).mean() > 0.8


@pytest.mark.parametrize("step", CHOICES["segmentation"])
def test_every_step_keeps_shape_range_and_blackness(step: str) -> None:
    picture, head, _ = bleeding_head()
    restructured = restructure(picture, head, step)
    assert (restructured.shape, restructured.dtype) == (picture.shape, np.float32)
    assert 0 <= restructured.min() <= restructured.max() <= 1
    assert not restructured[~head].any()
    assert (np.array_equal(restructured, picture)) == (step == "none")


@pytest.mark.parametrize("step", CHOICES["segmentation"])
def test_every_step_survives_a_picture_without_anything(step: str) -> None:
    black = np.zeros((16, 16), np.float32)
    np.testing.assert_array_equal(restructure(black, black > 0, step), black)


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(ValueError, match="no segmentation 'magic'"):
        restructure(two_levels(), EVERYWHERE, "magic")
