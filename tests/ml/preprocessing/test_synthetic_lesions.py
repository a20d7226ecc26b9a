"""Lesions made in training pictures: bleeds that are bright, inside the skull and outlined, and
decoys that hide none.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from ml.preprocessing import synthetic_lesions
from ml.preprocessing.model_input import InputSpec, to_input
from ml.preprocessing.synthetic_lesions import (
    room_for_lesions,
    with_decoy,
    with_drawn_bleed,
    with_moved_bleed,
)
from ml.scans.phantoms import phantom
from ml.scans.slices import Slice
from tests.ml.preprocessing.test_augmentation import NOTHING, SIZE, a_head


def test_the_inside_of_a_phantoms_skull_is_its_brain() -> None:
    head = a_head()
    inside = room_for_lesions(head)
    assert 0.2 < inside.mean() < 0.7
    assert inside[SIZE // 2, SIZE // 2] and not inside[0, 0]
    assert np.mean(head[inside] > 0.93) < 0.02


def test_without_a_closed_skull_nothing_is_drawn() -> None:
    no_bone = np.clip(a_head(), 0, 0.6)
    assert not room_for_lesions(no_bone).any()
    assert with_drawn_bleed(no_bone, NOTHING, np.random.default_rng(0)) is None
    assert (
        with_moved_bleed(
            no_bone, NOTHING, a_head(2, True), np.ones((28, 28), np.uint8), np.random.default_rng(0)
        )
        is None
    )


@pytest.mark.parametrize("seed", range(12))
def test_a_drawn_bleed_is_bright_inside_the_skull_and_outlined(seed: int) -> None:
    head = a_head(seed % 3)
    before = head.copy()
    # as many cells a head as training has
    made = with_drawn_bleed(head, np.zeros((56, 56), np.uint8), np.random.default_rng(seed))
    np.testing.assert_array_equal(head, before)
    assert made is not None
    drawn, outline = made
    assert not np.any(
        (drawn != head)
        & ~cv2.dilate(room_for_lesions(head).astype(np.uint8), np.ones((15, 15), np.uint8)).astype(
            bool
        )
    )
    blood = (
        cv2.resize(outline.astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_NEAREST) > 0
    )
    assert blood.any() and (drawn - head)[blood].mean() > 0.03
    assert np.abs(drawn - head)[blood].mean() > 5 * np.abs(drawn - head)[~blood].mean()


def test_most_phantoms_have_room_for_a_bleed_of_every_seed() -> None:
    made = [
        with_drawn_bleed(a_head(seed % 4), NOTHING, np.random.default_rng(seed))
        for seed in range(30)
    ]
    assert sum(one is not None and one[1].any() for one in made) >= 20


def test_a_moved_bleed_brings_blood_and_outline_to_another_head() -> None:
    donor, healthy_donor, head = a_head(5, True), a_head(5), a_head(6)
    outline = (
        cv2.resize(
            (donor - healthy_donor > 0.15).astype(np.float32),
            (28, 28),
            interpolation=cv2.INTER_AREA,
        )
        > 0.4
    ).astype(np.uint8)
    assert outline.any()
    made = with_moved_bleed(head, NOTHING, donor, outline, np.random.default_rng(0))
    assert made is not None
    drawn, moved = made
    blood = cv2.resize(moved.astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_NEAREST) > 0
    assert blood.any() and (drawn - head)[blood].mean() > 0.15
    assert 0.5 < moved.sum() / outline.sum() < 2


@pytest.mark.parametrize("shape", sorted({shape.__name__ for shape in synthetic_lesions.SHAPES}))
def test_every_shape_is_drawn(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_lesions, "SHAPES", (getattr(synthetic_lesions, shape),))
    made = [
        with_drawn_bleed(a_head(seed % 4), NOTHING, np.random.default_rng(seed))
        for seed in range(12)
    ]
    assert sum(one is not None and one[1].any() for one in made) >= 3


def test_what_a_bleed_pushes_inwards_is_the_brain_that_lay_along_the_bone() -> None:
    head = to_input(
        Slice(phantom(1, False, size=512).astype(np.float32), "hu"), InputSpec(size=224)
    )[0][..., 0]
    space = room_for_lesions(head)
    depth = cv2.distanceTransform(space.astype(np.uint8), cv2.DIST_L2, 5)
    rim = np.where(space & (depth > 2.1), 0.3, 1.0).astype(np.float32)
    cortex = np.where(space & (depth > 4) & (depth < 10), 0.6, rim).astype(np.float32)
    pushed = cortex.copy()
    synthetic_lesions._push_inwards(pushed, space, depth, np.full_like(depth, 6.0))
    np.testing.assert_array_equal(pushed[~space], cortex[~space])
    deeper = space & (depth > 11) & (depth < 13)
    assert cortex[deeper].max() < 0.4 and pushed[deeper].mean() > 0.5
    assert pushed[space & (depth >= 6)].max() < 0.61, "bone is not moved along"
    assert np.abs(pushed - cortex)[space & (depth > 50)].mean() < 0.01, (
        "far from the bone nothing moves"
    )


@pytest.mark.parametrize("decoy", synthetic_lesions.DECOYS)
def test_a_decoy_changes_the_brain_alone_and_leaves_a_bleed_bright(
    decoy: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic_lesions, "DECOYS", (decoy,))
    head, healthy = a_head(5, True), a_head(5)
    blood = head - healthy > 0.15
    near = cv2.dilate(room_for_lesions(head).astype(np.uint8), np.ones((15, 15), np.uint8)).astype(
        bool
    )
    for seed in range(8):
        before = head.copy()
        changed = with_decoy(head, np.random.default_rng(seed))
        np.testing.assert_array_equal(head, before)
        assert changed.dtype == np.float32 and changed.min() >= 0 and changed.max() <= 1
        assert not np.any((changed != head) & ~near)
        assert (changed - healthy)[blood].mean() > 0.1
    assert any(
        np.abs(with_decoy(head, np.random.default_rng(seed)) - head).max() > 0.02
        for seed in range(4)
    )


def test_where_no_skull_shows_nothing_is_made_up() -> None:
    no_bone = np.clip(a_head(), 0, 0.6)
    np.testing.assert_array_equal(with_decoy(no_bone, np.random.default_rng(0)), no_bone)
