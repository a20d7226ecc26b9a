"""Pictures that are no head CT: drawn, of other anatomy, samples, and almost heads."""

from __future__ import annotations

from itertools import chain

import cv2
import numpy as np
import pytest

from ml.gate_training.other_images import counterexamples
from ml.gate_training.other_images.counterexamples import MAKERS, Maker, of_head
from ml.gate_training.other_images.families import KINDS, MADE, other_images
from ml.gate_training.other_images.heads import phantom_heads, varied
from ml.gate_training.other_images.samples import FAMILIES as SAMPLES
from ml.scans.limits import MIN_SIDE_PX
from ml.scans.slices import Slice


def is_a_picture(slice: Slice) -> bool:
    """A picture as the reader would give it."""
    pixels = slice.pixels
    in_range = (
        pixels.min() >= 0 and pixels.max() <= 1
        if slice.unit == "display"
        else pixels.min() >= -1024
    )
    return (
        pixels.ndim == 2
        and pixels.dtype == np.float32
        and min(pixels.shape) >= MIN_SIDE_PX
        and bool(in_range)
    )


def test_every_family_belongs_to_one_kind() -> None:
    assert sorted(chain.from_iterable(KINDS.values())) == sorted([*MADE, *SAMPLES])


@pytest.mark.parametrize("family", sorted(MADE))
def test_made_pictures_are_pictures_and_the_same_for_the_same_seed(family: str) -> None:
    first, second = ([one.slice for one in other_images(family, 2, seed)] for seed in (3, 4))
    assert all(is_a_picture(slice) for slice in (*first, *second))
    again = next(other_images(family, 1, 3)).slice
    assert np.array_equal(first[0].pixels, again.pixels) and first[0].unit == again.unit
    assert not np.array_equal(first[0].pixels, second[0].pixels)


def test_samples_of_the_libraries_are_at_hand_offline() -> None:
    result = {family: [one.slice for one in other_images(family, 100, 0)] for family in SAMPLES}
    assert all(result.values()) and sum(map(len, result.values())) >= 100
    assert all(is_a_picture(slice) for slices in result.values() for slice in slices)


def test_an_unknown_family_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        next(other_images("dogs", 1, 0))


@pytest.mark.parametrize("maker", sorted(set(MAKERS), key=lambda maker: maker.__name__))
def test_counterexamples_are_pictures_unlike_the_head_they_are_made_of(
    maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counterexamples, "MAKERS", (maker,))
    head = cv2.resize(varied(np.random.default_rng(4), next(phantom_heads(1))).pixels, (256, 256))
    made = of_head(np.random.default_rng(2), head)
    assert is_a_picture(made)
    assert np.abs(made.pixels[:250, :250] - head[:250, :250]).mean() > 0.02


def test_varied_heads_stay_pictures_and_never_change_what_they_were_made_of() -> None:
    heads = list(phantom_heads(6))
    assert {slice.unit for slice in heads} == {"hu", "display"}
    for seed in range(60):
        head = heads[seed % 6]
        before = head.pixels.copy()
        assert is_a_picture(varied(np.random.default_rng(seed), head))
        assert np.array_equal(head.pixels, before)
