"""The network that combines the three inputs of `ml.inference.gate`, and its ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import keras
import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ml.inference.gate_views import VIEW_PX
from ml.networks.onnx_graph import model_of, serialized
from ml.networks.training_loop import Batch, run_epochs

CHANNELS = (16, 24, 32, 48)
HIDDEN = 32
MOST_DEVIATIONS = 4.0  # measures are clipped to this many standard deviations
EPOCHS, BATCHES, BATCH = 14, 100, 64
LEARNING_RATE, AVERAGING = 2e-3, 0.98


def fit_judge(
    views: np.ndarray,
    measures: np.ndarray,
    odd: np.ndarray,
    weights: np.ndarray,
    seed: int,
    state: Path,
) -> keras.Model:
    """Train and return the network: views (N, 128, 128, 1) and measures (N, k) -> two logits (N,
    1), one from the image and one from the measures.

    Args:
        views: float32 (n, 128, 128, 1).
        measures: float32 (n, k).
        odd: bool (n,), True if it is not head CT.
        weights: (n,) sampling weight of an example in its class.
        seed: random seed.
        state: file for the training state, written after each epoch.
    """
    keras.utils.set_random_seed(seed)
    network = _network(measures)
    shares = [
        np.where(odd == kind, weights, 0) / weights[odd == kind].sum() for kind in (False, True)
    ]

    def draw(epoch_seed: int) -> Iterator[Batch]:
        random = np.random.default_rng(epoch_seed)
        for _ in range(BATCHES):
            at = np.concatenate([random.choice(len(odd), BATCH // 2, p=share) for share in shares])
            targets = odd[at].astype(np.float32)[:, np.newaxis]
            noisy = measures[at] + random.normal(0, 0.1, (BATCH, measures.shape[1])) * measures.std(
                axis=0
            )
            yield [_varied(views[at], random), noisy.astype(np.float32)], [targets, targets]

    loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.02)
    run_epochs(
        network,
        loss=[loss, loss],
        epochs=EPOCHS,
        batches=BATCHES,
        learning_rate=LEARNING_RATE,
        averaging=AVERAGING,
        seed=seed,
        draw=draw,
        state=state,
        report=lambda share, figures: None,
    )
    return network


def judge_to_onnx(network: keras.Model, gain: float, offset: float) -> bytes:
    """Return "views" (N, 128, 128, 1), "measures" (N, k) -> "score" (N,): sigmoid(gain * (sum of
    both logits - offset)).
    """
    constants: list[TensorProto] = []

    def constant(name: str, values: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    nodes = [*_picture_nodes(network, constant), *_measure_nodes(network, constant)]
    nodes += [
        helper.make_node("Add", ["of_picture", "of_measures"], ["both"]),
        helper.make_node("Sub", ["both", constant("offset", np.array(offset))], ["above"]),
        helper.make_node("Mul", ["above", constant("gain", np.array(gain))], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["column"]),
        helper.make_node("ReduceMean", ["column"], ["score"], axes=[1], keepdims=0),
    ]
    width = network.get_layer("standardised").mean.shape[-1]
    model = model_of(
        nodes,
        "judge",
        [
            helper.make_tensor_value_info("views", TensorProto.FLOAT, ["N", VIEW_PX, VIEW_PX, 1]),
            helper.make_tensor_value_info("measures", TensorProto.FLOAT, ["N", width]),
        ],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])],
        constants,
    )
    return serialized(model)


Constant = Callable[[str, np.ndarray], str]
"""Adds a constant of that name to a graph, and returns the name."""


def _picture_nodes(network: keras.Model, constant: Constant) -> Iterator[NodeProto]:
    """Yield nodes "views" -> "of_picture" (N, 1), the logit from the image."""
    yield helper.make_node("Transpose", ["views"], ["planes"], perm=[0, 3, 1, 2])
    yield helper.make_node("AveragePool", ["planes"], ["half"], kernel_shape=[2, 2], strides=[2, 2])
    x = "half"
    for number in range(len(CHANNELS)):
        kernel, bias = (
            np.asarray(values) for values in network.get_layer(f"conv{number}").get_weights()
        )
        inputs = [
            x,
            constant(f"conv{number}_W", kernel.transpose(3, 2, 0, 1)),
            constant(f"conv{number}_b", bias),
        ]
        yield helper.make_node("Conv", inputs, [f"conv{number}_linear"], pads=[1, 1, 1, 1])
        yield helper.make_node("Relu", [f"conv{number}_linear"], [f"conv{number}"])
        yield helper.make_node(
            "MaxPool", [f"conv{number}"], [f"pool{number}"], kernel_shape=[2, 2], strides=[2, 2]
        )
        x = f"pool{number}"
    yield helper.make_node("ReduceMean", [x], ["average"], axes=[2, 3], keepdims=0)
    yield helper.make_node("ReduceMax", [x], ["largest"], axes=[2, 3], keepdims=0)
    yield helper.make_node("Concat", ["average", "largest"], ["pooled"], axis=1)
    yield _dense_node(network, "of_picture", "pooled", constant)


def _measure_nodes(network: keras.Model, constant: Constant) -> Iterator[NodeProto]:
    """Yield nodes "measures" -> "of_measures" (N, 1), the logit from the measures."""
    scaler = network.get_layer("standardised")
    mean, spread = np.asarray(scaler.mean), np.sqrt(np.asarray(scaler.variance))
    mean_name = constant("mean", mean.reshape(1, -1))
    yield helper.make_node("Sub", ["measures", mean_name], ["centered"])
    spread_name = constant("spread", spread.reshape(1, -1))
    yield helper.make_node("Div", ["centered", spread_name], ["scaled"])
    limits = [
        constant("lowest", np.array(-MOST_DEVIATIONS)),
        constant("highest", np.array(MOST_DEVIATIONS)),
    ]
    yield helper.make_node("Clip", ["scaled", *limits], ["standard"])
    yield _dense_node(network, "hidden", "standard", constant)
    yield helper.make_node("Relu", ["hidden"], ["hidden_positive"])
    yield _dense_node(network, "of_measures", "hidden_positive", constant)


def _dense_node(network: keras.Model, name: str, takes: str, constant: Constant) -> NodeProto:
    kernel, bias = (np.asarray(values) for values in network.get_layer(name).get_weights())
    weights = [constant(f"{name}_W", kernel), constant(f"{name}_b", bias)]
    return helper.make_node("Gemm", [takes, *weights], [name])


def _network(measures: np.ndarray) -> keras.Model:
    layers = keras.layers
    views = keras.Input((VIEW_PX, VIEW_PX, 1), name="views")
    x = layers.AveragePooling2D(2)(views)
    for number, channels in enumerate(CHANNELS):
        x = layers.Conv2D(channels, 3, padding="same", activation="relu", name=f"conv{number}")(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)])
    of_picture = layers.Dense(1, name="of_picture")(layers.Dropout(0.3)(x))
    numbers = keras.Input((measures.shape[1],), name="measures")
    spread = np.maximum(measures.std(axis=0), 1e-3)
    y = layers.Normalization(mean=measures.mean(axis=0), variance=spread**2, name="standardised")(
        numbers
    )
    y = keras.ops.clip(y, -MOST_DEVIATIONS, MOST_DEVIATIONS)
    y = layers.Dense(
        HIDDEN, activation="relu", kernel_regularizer=keras.regularizers.L2(1e-3), name="hidden"
    )(layers.Dropout(0.2)(y))
    of_measures = layers.Dense(
        1, kernel_regularizer=keras.regularizers.L2(1e-3), name="of_measures"
    )(layers.Dropout(0.2)(y))
    return keras.Model([views, numbers], [of_picture, of_measures])


def _varied(views: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return randomly augmented views: mirrored, rotated, shifted, scaled, other gray levels."""
    varied = np.empty_like(views)
    for number, view in enumerate(views[..., 0]):
        turn = random.uniform(-25, 25) if random.random() < 0.5 else 0.0
        matrix = cv2.getRotationMatrix2D(
            (VIEW_PX / 2, VIEW_PX / 2), turn, random.uniform(0.85, 1.1)
        )
        matrix = matrix + np.array([[0, 0, random.uniform(-6, 6)], [0, 0, random.uniform(-6, 6)]])
        moved = cv2.warpAffine(view, matrix, (VIEW_PX, VIEW_PX), flags=cv2.INTER_LINEAR)
        moved = moved[:, ::-1] if random.random() < 0.5 else moved
        varied[number, :, :, 0] = np.clip(moved, 0, 1) ** random.uniform(0.75, 1.3)
    return varied
