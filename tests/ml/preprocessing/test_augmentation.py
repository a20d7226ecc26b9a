"""Changes of training pictures: what they may change, and what they must leave."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from ml.preprocessing.augmentation import FULL, NOT_DRAWN, Strength, augmented_copies, vary
from ml.preprocessing.model_input import InputSpec, to_input
from ml.scans.phantoms import phantom
from ml.scans.slices import Slice

SIZE = 112
STILL = Strength(
    flip=0,
    turn_degrees=0,
    shift=0,
    zoom=0,
    elastic_px=0,
    contrast=(0, 0),
    brightness=0,
    gamma=0,
    sharpening=0,
    blur=0,
    coarse=0,
    noise=0,
)
NOTHING = np.zeros((28, 28), np.uint8)


def a_head(seed: int = 1, hemorrhage: bool = False) -> np.ndarray:
    head = Slice(phantom(seed, hemorrhage, size=256).astype(np.float32), "hu")
    return to_input(head, InputSpec(size=SIZE))[0][..., 0]


def test_without_any_strength_a_picture_stays_as_it_is() -> None:
    head, outline = a_head(), np.zeros((28, 28), np.uint8)
    outline[10:14, 5:9] = 1
    changed, moved = vary(head, outline, np.random.default_rng(0), STILL)
    np.testing.assert_allclose(changed, head, atol=0.005)
    np.testing.assert_array_equal(moved, outline)


def test_a_flip_mirrors_picture_and_outline() -> None:
    head, outline = a_head(), np.zeros((28, 28), np.uint8)
    outline[10:14, 5:9] = 1
    changed, moved = vary(head, outline, np.random.default_rng(0), replace(STILL, flip=1))
    np.testing.assert_allclose(changed, head[:, ::-1], atol=0.005)
    np.testing.assert_array_equal(moved, outline[:, ::-1])


@pytest.mark.parametrize("seed", range(8))
def test_the_outline_moves_with_the_picture(seed: int) -> None:
    spot = np.zeros((SIZE, SIZE), np.float32)
    spot[36:52, 60:76] = 0.8
    outline = (cv2.resize(spot, (28, 28), interpolation=cv2.INTER_AREA) > 0.4).astype(np.uint8)
    geometry = replace(
        FULL, contrast=(0, 0), brightness=0, gamma=0, sharpening=0, blur=0, coarse=0, noise=0
    )
    changed, moved = vary(spot, outline, np.random.default_rng(seed), geometry)
    shown = cv2.resize(changed, (28, 28), interpolation=cv2.INTER_AREA) > 0.4
    both = np.logical_and(shown, moved == 1).sum() / np.logical_or(shown, moved == 1).sum()
    assert both > 0.6


def test_what_is_outside_the_head_stays_black_and_grays_stay_in_range() -> None:
    head = a_head()
    for seed in range(5):
        changed, _ = vary(
            head,
            NOTHING,
            np.random.default_rng(seed),
            replace(STILL, contrast=(-0.3, 0.3), brightness=0.1, gamma=0.25, noise=0.05),
        )
        assert changed.dtype == np.float32 and changed.min() >= 0 and changed.max() <= 1
        assert not changed[head <= 0.004].any()
        assert not np.array_equal(changed, head)


def test_augmented_copies_begin_with_the_picture_itself_and_are_the_same_for_the_same_seed() -> (
    None
):
    head = a_head()[..., np.newaxis]
    ten = augmented_copies(head, 10, seed=3)
    assert ten.shape == (10, SIZE, SIZE, 1) and ten.dtype == np.float32
    np.testing.assert_array_equal(ten[0], head)
    np.testing.assert_array_equal(ten, augmented_copies(head, 10, seed=3))
    assert not np.array_equal(ten[1], augmented_copies(head, 10, seed=4)[1])
    assert all(not np.array_equal(ten[i], ten[j]) for i in range(10) for j in range(i))


def test_an_unknown_outline_becomes_known_only_where_blood_was_drawn() -> None:
    head, unknown = a_head(1), np.full((28, 28), NOT_DRAWN, np.uint8)
    _, moved = vary(head, unknown, np.random.default_rng(0), STILL)
    assert (moved == NOT_DRAWN).all()
