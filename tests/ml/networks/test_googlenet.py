"""GoogLeNet with its pyramid: the graph equals what Keras learns, and bad weights are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from ml.errors import ArtifactError
from ml.networks.convolutions import mirrored
from ml.networks.googlenet import (
    FIRST,
    OUTLINE_SHAPES,
    PYRAMID_SHAPES,
    SHAPES,
    GoogLeNet,
    quantized,
)
from ml.networks.weights import Weights

ENCODER = GoogLeNet()


@pytest.fixture(scope="module")
def weights() -> Weights:
    return ENCODER.initial("random", 3)


@pytest.mark.parametrize("size", [96, 104])
def test_the_graph_computes_the_maps_that_keras_does(weights: Weights, size: int) -> None:
    """At 104 px the maps of stride 16 are doubled to one cell more than those of stride 8."""
    pictures = np.random.default_rng(0).random((2, size, size, 1)).astype(np.float32)
    pictures[:, :20] = 0
    maps = np.asarray(mirrored(ENCODER.build(weights, size)).predict_on_batch(pictures))
    session = onnxruntime.InferenceSession(
        ENCODER.to_onnx(weights, size), providers=["CPUExecutionProvider"]
    )
    result = session.run(None, {"images": pictures})[0]
    side, channels = ENCODER.maps_shape(size)
    assert result.shape == maps.shape == (2, side, side, channels)
    assert np.abs(result - maps).max() < 1e-4 * np.abs(maps).max()


@pytest.mark.parametrize("size", [96, 104])
def test_the_graph_outlines_as_keras_does(size: int) -> None:
    encoder = GoogLeNet(outlines=True)
    weights = encoder.initial("random", 3)
    weights["outline_b"][:] = 0  # otherwise every place is close to 0
    pictures = np.random.default_rng(0).random((2, size, size, 1)).astype(np.float32)
    maps, logits = mirrored(encoder.build(weights, size)).predict_on_batch(pictures)
    result = onnxruntime.InferenceSession(
        encoder.to_onnx(weights, size), providers=["CPUExecutionProvider"]
    ).run(["maps", "outline"], {"images": pictures})
    assert result[1].shape == (2, size // 2, size // 2)
    assert np.abs(result[0] - maps).max() < 1e-4 * np.abs(maps).max()
    probabilities = 1 / (1 + np.exp(-logits[..., 0]))
    np.testing.assert_allclose(result[1], probabilities, atol=1e-5)
    assert probabilities.std() > 0.01


def test_a_model_without_outlines_gives_one_with_them_its_other_weights(
    weights: Weights, tmp_path: Path
) -> None:
    result = GoogLeNet(outlines=True).initial(saved(tmp_path / "cells.npz", weights), 4)
    for name, values in weights.items():
        np.testing.assert_array_equal(result[name], values)
    assert set(result) - set(weights) == {f"{n}_{p}" for n in OUTLINE_SHAPES for p in "Wb"}


def test_weights_survive_the_network_and_rounding_them_twice_changes_nothing(
    weights: Weights,
) -> None:
    back = ENCODER.weights_of(ENCODER.build(weights, 64), weights)
    again = ENCODER.as_stored(weights)
    for name, values in weights.items():
        np.testing.assert_array_equal(back[name], values)
        np.testing.assert_array_equal(again[name], values)


def test_a_kernel_in_eight_bits_is_off_by_half_a_step_at_most() -> None:
    kernel = np.random.default_rng(1).standard_normal((3, 3, 4, 5)).astype(np.float32)
    kernel[..., 2] = 0
    rounded, scale = quantized(kernel)
    assert rounded.dtype == np.int8 and scale.shape == (5,)
    assert (np.abs(rounded * scale - kernel) <= scale / 2 + 1e-7).all()


def saved(path: Path, weights: Weights) -> Path:
    np.savez(path, **weights)  # type: ignore[arg-type]
    return path


def test_imagenet_weights_lack_the_pyramid_which_starts_from_random_ones(
    weights: Weights, tmp_path: Path
) -> None:
    given = {name: weights[name] for name in weights if name.rpartition("_")[0] in SHAPES}
    result = ENCODER.initial(saved(tmp_path / "imagenet.npz", given), 4)
    np.testing.assert_array_equal(result[f"{FIRST}_W"], weights[f"{FIRST}_W"])
    assert set(result) == set(weights)
    assert all(
        not np.array_equal(result[f"{name}_W"], weights[f"{name}_W"]) for name in PYRAMID_SHAPES
    )


def test_weights_of_another_network_are_refused_with_a_sentence(
    weights: Weights, tmp_path: Path
) -> None:
    key = "inception_4e_1x1_W"
    without = {name: values for name, values in weights.items() if name != key}
    for name, changed, sentence in (
        ("lacks", without, "has no inception_4e_1x1_W"),
        ("other", {**weights, key: weights[key][..., :3]}, "of shape"),
        ("broken", {**weights, key: weights[key] * np.nan}, "not numbers"),
    ):
        with pytest.raises(ArtifactError, match=sentence):
            ENCODER.initial(saved(tmp_path / f"{name}.npz", changed), 0)
    with pytest.raises(ArtifactError, match="There are no initial weights"):
        ENCODER.initial(tmp_path / "nothing.npz", 0)
