"""AlexNet's convolutions: the picture with its soft tissue levelled, in Keras and in the exported graph."""

from __future__ import annotations

import keras
import numpy as np
import onnxruntime
import pytest

from ml.images import Slice
from ml.models.convolutions import build, levelled, to_onnx
from ml.models.weights import SOFT_TISSUE, random_weights
from ml.phantoms import phantom
from ml.preprocessing import InputSpec, to_input

SIZE = 96
TARGET = np.array([0.4, 0.12], np.float32)


def test_soft_tissue_gets_the_level_and_the_spread() -> None:
    picture = np.zeros((1, 20, 20, 1), np.float32)
    picture[0, :8, :, 0], picture[0, 8:16, :, 0], picture[0, 16:, :, 0] = 0.2, 0.4, 0.9  # mean 0.3, standard deviation 0.1; bone
    found = np.asarray(levelled(keras.ops.convert_to_tensor(picture), TARGET))
    assert np.allclose(found[0, :8], 0.28, atol=2e-3) and np.allclose(found[0, 8:16], 0.52, atol=2e-3) and (found[0, 16:] == 1).all()


def test_black_stays_black_and_an_empty_picture_is_no_division_by_zero() -> None:
    found = np.asarray(levelled(keras.ops.zeros((2, 8, 8, 1)), TARGET))
    assert (found == 0).all()


def test_the_levelled_picture_hardly_depends_on_the_window() -> None:
    picture = head()
    darker = np.clip(0.75 * picture - 0.02, 0, 1)
    one, other = (np.asarray(levelled(keras.ops.convert_to_tensor(each), TARGET)) for each in (picture, darker))
    inside = (picture > 0.2) & (picture < 0.8)
    assert np.abs(one - other)[inside].mean() < 0.01 < np.abs(picture - darker)[inside].mean()


@pytest.mark.parametrize("both_ways", [False, True])
def test_the_exported_graph_equals_keras(both_ways: bool) -> None:
    weights = {SOFT_TISSUE: TARGET, **random_weights(0)}
    pictures = np.concatenate([head(), np.zeros((1, SIZE, SIZE, 1), np.float32), 0.6 * head()])
    session = onnxruntime.InferenceSession(to_onnx(weights, "conv5", SIZE, both_ways=both_ways))
    found = session.run(["maps"], {"images": pictures})[0]
    model = build(weights, "conv5", SIZE)
    wanted = np.asarray(model.predict_on_batch(pictures))
    if both_ways:
        wanted = (wanted + np.asarray(model.predict_on_batch(pictures[:, :, ::-1]))[:, :, ::-1]) / 2
    assert np.abs(found - wanted).max() <= 1e-4 * max(np.abs(wanted).max(), 1)
    plain = np.asarray(build(random_weights(0), "conv5", SIZE).predict_on_batch(pictures))
    assert not np.allclose(plain, np.asarray(model.predict_on_batch(pictures)), atol=1e-3)


def head() -> np.ndarray:
    """A phantom as a model sees it, float32 (1, 96, 96, 1)."""
    pixels = phantom(3, hemorrhage=True, size=128).astype(np.float32)
    return to_input(Slice(pixels, "hu"), InputSpec(size=SIZE))[0][np.newaxis]
