"""The autoencoder: what it learns, and that the graph that serves is the model that learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from ml.evaluation.metrics import auroc
from ml.models.autoencoder import fit
from ml.networks import autoencoder
from ml.networks.onnx_graph import model_of, serialized
from ml.preprocessing.model_input import InputSpec, to_input
from ml.scans.phantoms import phantom
from ml.scans.slices import Slice
from ml.training.progress import TrainingStopped
from tests.ml.tasks import task_of

SIZE = 64


@pytest.fixture(scope="module")
def heads() -> np.ndarray:
    """24 phantoms as a model sees them, every other lying on its side, float32 (24, 64, 64, 1)."""
    slices = (Slice(phantom(seed, False, size=96).astype(np.float32), "hu") for seed in range(24))
    return np.stack(
        [
            np.rot90(to_input(one, InputSpec(size=SIZE))[0], number % 2)
            for number, one in enumerate(slices)
        ]
    )


def quiet(share: float, metrics: Mapping[str, float]) -> None:
    """Take a report and do nothing with it."""


def exported(weights: autoencoder.Weights, size: int, images: np.ndarray) -> np.ndarray:
    """Return what ONNX Runtime draws."""
    nodes, constants = autoencoder.onnx_nodes(weights, size, "pictures", "drawn")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1, size, size])
        for name in ("pictures", "drawn")
    ]
    session = onnxruntime.InferenceSession(
        serialized(model_of(nodes, "test", ends[:1], ends[1:], constants))
    )
    return np.asarray(
        session.run(["drawn"], {"pictures": images.transpose(0, 3, 1, 2)})[0]
    ).transpose(0, 2, 3, 1)


def test_it_draws_heads_that_it_never_saw_better_than_their_average(
    heads: np.ndarray, tmp_path: Path
) -> None:
    learned = autoencoder.fit_autoencoder(
        heads, np.arange(16), 0, 200, tmp_path / "state.npz", quiet
    )

    drawn = np.asarray(autoencoder.build(learned.weights, SIZE).predict_on_batch(heads[16:]))

    assert drawn.shape == heads[16:].shape
    error = ((drawn - heads[16:]) ** 2).mean()
    assert error < ((heads[:16].mean(axis=0) - heads[16:]) ** 2).mean()


@pytest.mark.parametrize("size", [64, 70])
def test_the_graph_draws_what_keras_draws_also_where_the_size_holds_no_whole_cells(
    size: int,
) -> None:
    weights = autoencoder.random_weights(3)
    images = np.random.default_rng(0).random((2, size, size, 1), np.float32)
    weights = {key: values.astype(np.float16).astype(np.float32) for key, values in weights.items()}

    drawn = np.asarray(autoencoder.build(weights, size).predict_on_batch(images))

    assert drawn.shape == images.shape
    np.testing.assert_allclose(exported(weights, size, images), drawn, atol=1e-5)


@pytest.mark.usefixtures("untraced")
def test_an_interrupted_fit_ends_with_the_same_weights(heads: np.ndarray, tmp_path: Path) -> None:
    learn = np.arange(20)
    whole = autoencoder.fit_autoencoder(heads, learn, 1, 3, tmp_path / "whole.npz", quiet)

    def stop(share: float, metrics: Mapping[str, float]) -> None:
        if metrics["epoch"] == 3:
            raise TrainingStopped

    with pytest.raises(TrainingStopped):
        autoencoder.fit_autoencoder(heads, learn, 1, 3, tmp_path / "state.npz", stop)
    continued = autoencoder.fit_autoencoder(heads, learn, 1, 3, tmp_path / "state.npz", quiet)

    for key, values in whole.weights.items():
        np.testing.assert_allclose(continued.weights[key], values, atol=1e-3, err_msg=key)


@pytest.mark.usefixtures("untraced")
def test_images_outside_the_training_part_change_nothing(heads: np.ndarray, tmp_path: Path) -> None:
    learn = np.arange(8)
    others = heads.copy()
    others[8:] = 1 - others[8:]

    first = autoencoder.fit_autoencoder(heads, learn, 0, 1, tmp_path / "a.npz", quiet)
    second = autoencoder.fit_autoencoder(others, learn, 0, 1, tmp_path / "b.npz", quiet)

    for key, values in first.weights.items():
        np.testing.assert_allclose(second.weights[key], values, atol=1e-3, err_msg=key)


@pytest.mark.usefixtures("untraced")
def test_its_weights_survive_half_precision(heads: np.ndarray, tmp_path: Path) -> None:
    learned = autoencoder.fit_autoencoder(heads, np.arange(4), 0, 1, tmp_path / "state.npz", quiet)

    for values in learned.weights.values():
        assert np.array_equal(values, values.astype(np.float16).astype(np.float32))


def test_the_architecture_classifies_by_the_bottleneck(tmp_path: Path) -> None:
    task = task_of("autoencoder", tmp_path, {"epochs": 5})
    result = fit(task)
    assert auroc(task.labels[24:], result.decisions[24:]) > 0.9
    assert result.chosen["layer"] == "bottleneck" and result.learned_features
    assert sorted(result.held_out.slices.tolist()) == list(range(24)), (
        "its folds choose and calibrate within the training part"
    )


@pytest.mark.usefixtures("untraced")
def test_no_label_shapes_the_bottleneck(tmp_path: Path) -> None:
    first = task_of("autoencoder", tmp_path / "one", {"epochs": 1})
    second = task_of("autoencoder", tmp_path / "two", {"epochs": 1}, labels=1 - first.labels)
    fit(first)
    fit(second)
    first_weights, other = (
        next(iter(task.shared.glob("autoencoder-*.npz"))) for task in (first, second)
    )
    with np.load(first_weights) as one, np.load(other) as two:
        assert all(np.allclose(one[name], two[name], atol=1e-3) for name in one.files)
