"""AlexNet's convolutions, with the channels of other contrasts, in Keras and in the exported
graph.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from ml.networks.convolutions import build, to_onnx
from ml.networks.weights import SOFT_TISSUE, random_weights
from ml.preprocessing.model_input import InputSpec, to_input
from ml.scans.phantoms import phantom
from ml.scans.slices import Slice

SIZE = 96
TARGET = np.array([0.4, 0.12, 1.0], np.float32)


@pytest.mark.parametrize("both_ways", [False, True])
def test_the_exported_graph_equals_keras(both_ways: bool) -> None:
    weights = {SOFT_TISSUE: TARGET, **random_weights(0)}
    pictures = np.concatenate([head(), np.zeros((1, SIZE, SIZE, 1), np.float32), 0.6 * head()])
    session = onnxruntime.InferenceSession(to_onnx(weights, "conv5", SIZE, both_ways=both_ways))
    result = session.run(["maps"], {"images": pictures})[0]
    model = build(weights, "conv5", SIZE)
    wanted = np.asarray(model.predict_on_batch(pictures))
    if both_ways:
        wanted = (wanted + np.asarray(model.predict_on_batch(pictures[:, :, ::-1]))[:, :, ::-1]) / 2
    assert np.abs(result - wanted).max() <= 1e-4 * max(np.abs(wanted).max(), 1)
    plain = np.asarray(build(random_weights(0), "conv5", SIZE).predict_on_batch(pictures))
    assert not np.allclose(plain, np.asarray(model.predict_on_batch(pictures)), atol=1e-3)


def head() -> np.ndarray:
    """A phantom as a model sees it, float32 (1, 96, 96, 1)."""
    pixels = phantom(3, hemorrhage=True, size=128).astype(np.float32)
    return to_input(Slice(pixels, "hu"), InputSpec(size=SIZE))[0][np.newaxis]
