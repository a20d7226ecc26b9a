"""Grays on one scale, skulls taken off, heads turned upright."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from ml.inference.heat_maps import place
from ml.preprocessing.head import find_head
from ml.preprocessing.model_input import NOT_STRIPPED, InputSpec, cut, to_input
from ml.preprocessing.normalization import normalize
from ml.preprocessing.skull import intracranial_space, tilt_deg
from ml.scans.phantoms import Kind, phantom
from ml.scans.slices import Slice, window


def windowed(seed: int, hemorrhage: bool = False, size: int = 256) -> np.ndarray:
    return window(phantom(seed, hemorrhage, "subdural", size).astype(np.float32), 40, 80)


def turned(picture: np.ndarray, clockwise_deg: float) -> np.ndarray:
    middle = (picture.shape[1] - 1) / 2, (picture.shape[0] - 1) / 2
    return cv2.warpAffine(
        picture, cv2.getRotationMatrix2D(middle, -clockwise_deg, 1), picture.shape[::-1]
    )


def head_of(gray: np.ndarray) -> np.ndarray:
    head = find_head(gray)
    assert head is not None
    return head


# Normalization


def test_percentiles_of_soft_tissue_land_where_they_should() -> None:
    ramp = np.tile(np.linspace(0.3, 0.7, 101, dtype=np.float32), (64, 1))
    ramp[0] = 1  # bone, which must not count
    shown = normalize(ramp, np.ones(ramp.shape, bool), "percentile")
    low, high = np.percentile(shown[3:-2, 2:-2], [10, 90])
    assert shown[0].min() == shown.max()
    assert (low, high) == (pytest.approx(0.25, abs=0.01), pytest.approx(0.55, abs=0.01))


def test_a_flat_picture_is_not_blown_up_and_black_stays_black() -> None:
    picture = np.full((64, 64), 0.4, np.float32) + np.random.default_rng(0).normal(
        0, 0.002, (64, 64)
    ).astype(np.float32)
    picture[:10] = 0
    shown = normalize(picture, picture > 0, "percentile")
    assert shown[20:].std() < 0.02
    assert not shown[:10].any()


def test_equalizing_makes_every_gray_its_rank() -> None:
    picture = np.repeat(np.array([0.2, 0.4, 0.6, 0.8], np.float32), 16)[np.newaxis].repeat(
        4, axis=0
    )
    ranks = normalize(picture, np.ones(picture.shape, bool), "equalise")
    np.testing.assert_allclose(ranks[0, ::16], [0.25, 0.5, 0.75, 1])


def test_clahe_raises_local_contrast_and_leaves_air_black() -> None:
    gray = np.where(head_of(windowed(1)), windowed(1), 0).astype(np.float32) * 0.5
    shown = normalize(gray, gray > 0.02, "clahe")
    brain = slice(100, 150)
    assert shown[brain, brain].std() > 1.3 * gray[brain, brain].std()
    assert not shown[gray == 0].any()


def test_an_unknown_normalization_is_refused() -> None:
    with pytest.raises(ValueError, match="no normalization 'magic'"):
        normalize(windowed(1), windowed(1) > 0, "magic")


def test_a_tint_leaves_no_trace_after_normalization() -> None:
    # A cast multiplies all grays by one factor once its color is gone.
    plain, tinted = (Slice(windowed(3) * factor, "display") for factor in (0.95, 0.8))
    spec = InputSpec(size=128, normalisation="percentile")
    left_by_default = np.abs(
        to_input(plain, InputSpec(size=128))[0] - to_input(tinted, InputSpec(size=128))[0]
    ).max()
    # Bone is cut off at white in one and not in the other: what counts is the soft tissue.
    one, other = to_input(plain, spec)[0], to_input(tinted, spec)[0]
    soft = (one > 0.05) & (one < 0.7)
    assert np.abs(one - other)[soft].max() < 0.02 < left_by_default


# Skull stripping


def test_the_skull_comes_off_and_the_brain_stays() -> None:
    gray = windowed(1)
    space = intracranial_space(gray, head_of(gray))
    assert space is not None
    hu = phantom(1, hemorrhage=False, size=256)
    assert space[96:160, 96:160].all()
    assert np.count_nonzero(space & (hu > 300)) < 0.04 * np.count_nonzero(space)
    rows, columns = np.nonzero(hu < -30)  # scalp fat and air lie outside
    assert space[rows, columns].mean() < 0.01


@pytest.mark.parametrize(
    ("kind", "added_hu", "share"),
    # the last as white as bone
    [("subdural", 0, 0.75), ("epidural", 0, 0.8), ("intraparenchymal", 40, 0.99)],
)
def test_blood_is_not_stripped_with_the_skull(kind: Kind, added_hu: int, share: float) -> None:
    healthy, bleeding = (phantom(2, blood, kind, 256).astype(np.float32) for blood in (False, True))
    blood = bleeding - healthy > 25
    gray = window(bleeding + added_hu * blood, 40, 80)
    space = intracranial_space(gray, head_of(gray))
    assert space is not None
    assert space[blood].mean() > share


def test_without_a_closed_skull_nothing_is_stripped_with_a_note() -> None:
    gray = windowed(1)
    gray[:, 150:] *= 0.5  # no bone on one side
    assert intracranial_space(gray, head_of(gray)) is None
    stripped, frame = to_input(Slice(gray, "display"), InputSpec(size=64, skull_stripping=True))
    plain, plain_frame = to_input(Slice(gray, "display"), InputSpec(size=64))
    np.testing.assert_array_equal(stripped, plain)
    assert (frame.notes, plain_frame.notes) == ((NOT_STRIPPED,), ())


def test_a_stripped_brain_fills_the_input() -> None:
    slice = Slice(phantom(1, hemorrhage=False, size=256).astype(np.float32), "hu")
    stripped, frame = to_input(slice, InputSpec(size=64, skull_stripping=True))
    assert frame.shows_head and not frame.notes
    assert frame.height < to_input(slice, InputSpec(size=64))[1].height
    assert (stripped > 0.98).mean() < 0.03  # no ring of bone


# Turning upright


@pytest.mark.parametrize("angle", [-14, -6, 5, 11])
def test_a_turned_head_is_measured_to_a_degree(angle: float) -> None:
    gray = windowed(1)
    again = turned(gray, angle)
    assert tilt_deg(again, head_of(again)) - tilt_deg(gray, head_of(gray)) == pytest.approx(
        angle, abs=1
    )


def test_a_large_bleed_hardly_turns_the_midline() -> None:
    for seed in range(3):
        healthy, bleeding = windowed(seed), windowed(seed, hemorrhage=True)
        assert tilt_deg(bleeding, head_of(bleeding)) == pytest.approx(
            tilt_deg(healthy, head_of(healthy)), abs=1.5
        )


def test_a_turn_beyond_the_limit_is_not_believed() -> None:
    gray = turned(windowed(5), 45)
    assert abs(tilt_deg(gray, head_of(gray))) <= 20
    assert tilt_deg(gray, np.zeros(gray.shape, bool)) == 0


def test_upright_makes_a_tilted_head_the_same_input_as_an_upright_one() -> None:
    spec = InputSpec(size=64, upright=True)
    straight, _ = to_input(Slice(windowed(1), "display"), spec)
    tilted, frame = to_input(Slice(turned(windowed(1), 12), "display"), spec)
    crooked, _ = to_input(Slice(turned(windowed(1), 12), "display"), InputSpec(size=64))
    assert frame.angle_deg == pytest.approx(12 + tilt_deg(windowed(1), head_of(windowed(1))), abs=1)
    assert np.abs(tilted - straight).mean() < 0.5 * np.abs(crooked - straight).mean()


def test_heat_returns_to_where_it_was_in_a_tilted_slice() -> None:
    spot = np.zeros((256, 256), np.float32)
    cv2.circle(spot, (160, 110), 8, 1.0, cv2.FILLED)
    gray, mark = turned(windowed(1), 12), turned(spot, 12)
    _, frame = to_input(Slice(gray, "display"), InputSpec(size=64, upright=True))
    assert frame.angle_deg > 5
    back = place(cut(mark, frame), frame, gray.shape)
    assert back.shape == gray.shape
    assert np.corrcoef(back.ravel(), mark.ravel())[0, 1] > 0.97
    row, column = np.unravel_index(np.argmax(cv2.blur(back, (9, 9))), back.shape)
    expected = np.unravel_index(np.argmax(cv2.blur(mark, (9, 9))), mark.shape)
    assert (row, column) == pytest.approx(expected, abs=2)


def test_a_picture_without_a_head_is_not_turned() -> None:
    picture = np.zeros((100, 100), np.float32)
    picture[3:6, 3:6] = 1
    _, frame = to_input(
        Slice(picture, "display"), InputSpec(size=64, upright=True, skull_stripping=True)
    )
    assert (frame.shows_head, frame.angle_deg, frame.notes) == (False, 0, (NOT_STRIPPED,))
