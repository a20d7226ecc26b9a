"""A convolutional autoencoder, which restructures images: it reconstructs them from far fewer
values than they have pixels.

It reproduces what the training images have in common: skull, shape of the brain, ventricles; noise,
text and fine detail are lost. The setting `restructure` puts it before the convolutions of any
architecture; `ml.models.autoencoder` classifies by its bottleneck alone, which is trained without
labels.

It works at half resolution, so that encoding and decoding an image of 224 pixels take a few
milliseconds on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import keras
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ml.networks.training_loop import Batch, run_epochs

Weights = dict[str, np.ndarray]
"""`encode1_W` ... float32 (height, width, in, out), `decode1_W` ... float32 (height, width, out,
in), `encode1_b` ... float32 (out,).
"""

# name, kernel, channels in, channels out; each encoder halves the side, each decoder doubles it
ENCODERS = (("encode1", 5, 1, 16), ("encode2", 3, 16, 32), ("encode3", 3, 32, 32))
DECODERS = (("decode1", 4, 32, 32), ("decode2", 4, 32, 16), ("decode3", 4, 16, 1))
BOTTLENECK_CHANNELS = 32
# pixels per cell of the bottleneck: halved once by averaging, three times by convolutions
CELL_PX = 16
BATCH = 16
LEARNING_RATE = 2e-3
AVERAGING = 0.95


@dataclass(frozen=True)
class Autoencoder:
    """A fitted autoencoder: weights rounded to half precision, as float32, and the final mean
    squared error.
    """

    weights: Weights
    error: float


def fit_autoencoder(
    images: np.ndarray,
    learn: np.ndarray,
    seed: int,
    epochs: int,
    state: Path,
    report: Callable[[float, Mapping[str, float]], None],
) -> Autoencoder:
    """Train an autoencoder on the images, without labels.

    An interrupted fit resumes with identical results (`ml.networks.training_loop`).

    Args:
        images: float32 (n, size, size, 1) in 0..1; may be memory-mapped, since they are read one by
            one.
        learn: positions of the training images.
        seed: of initial weights, order and mirroring.
        epochs: number of epochs.
        state: checkpoint file, written after each epoch; the caller removes it.
        report: called with the share done and the loss after each batch; raises to stop.
    """
    small = _halved_images(images, learn)
    keras.utils.set_random_seed(seed)
    network = _network(random_weights(seed), small.shape[1])
    batches = max(-(-len(learn) // BATCH), 1)
    losses = [float("nan")]

    def draw(epoch_seed: int) -> Iterator[Batch]:
        random = np.random.default_rng(epoch_seed)
        for chosen in np.array_split(random.permutation(len(small)), batches):
            batch = small[chosen]
            mirrored = random.random(len(batch)) < 0.5
            batch[mirrored] = batch[mirrored, :, ::-1]
            yield batch, batch

    def tell(share: float, figures: Mapping[str, float]) -> None:
        if "loss" not in figures:  # resumed
            report(share, figures)
            return
        losses.append(figures["loss"])
        report(share, {"reconstruction_error": figures["loss"], "epoch": figures["epoch"]})

    run_epochs(
        network,
        loss="mean_squared_error",
        epochs=epochs,
        batches=batches,
        learning_rate=LEARNING_RATE,
        averaging=AVERAGING,
        seed=seed,
        draw=draw,
        state=state,
        report=tell,
    )
    return Autoencoder(_weights_of(network), float(np.mean(losses[-batches:])))


def random_weights(seed: int) -> Weights:
    """Return He-initialized weights (He et al. 2015) with zero biases; deterministic for a seed."""
    random = np.random.default_rng(seed)
    weights: Weights = {}
    for name, kernel, channels_in, channels_out in (*ENCODERS, *DECODERS):
        # With stride 2, a decoder's pixel receives a quarter of the kernel's positions.
        inputs = kernel * kernel * channels_in / (4 if name.startswith("decode") else 1)
        shape = (
            (kernel, kernel, channels_out, channels_in)
            if name.startswith("decode")
            else (kernel, kernel, channels_in, channels_out)
        )
        weights[f"{name}_W"] = (random.standard_normal(shape) * np.sqrt(2 / inputs)).astype(
            np.float32
        )
        weights[f"{name}_b"] = np.zeros(channels_out, np.float32)
    return weights


def build(weights: Weights, size: int) -> keras.Model:
    """Return the Keras model: images float32 (N, size, size, 1) in 0..1 -> their reconstructions,
    of the same shape and range.
    """
    layers = keras.layers
    pictures = keras.Input((size, size, 1), name="images")
    padding = _padding(size)
    x = (
        layers.ZeroPadding2D(((0, padding), (0, padding)), name="padding")(pictures)
        if padding
        else pictures
    )
    x = layers.AveragePooling2D(2, name="half")(x)
    x = _drawn_again(_encoded(x, weights), weights)
    x = layers.UpSampling2D(2, interpolation="bilinear", name="double")(x)
    x = layers.Cropping2D(((0, padding), (0, padding)), name="cropping")(x) if padding else x
    return keras.Model(pictures, keras.ops.clip(x, 0.0, 1.0), name="autoencoder")


def build_encoder(weights: Weights, size: int) -> keras.Model:
    """Return the Keras model: images float32 (N, size, size, 1) in 0..1 -> the bottleneck's maps
    float32 (N, h, w, 32).
    """
    pictures = keras.Input((size, size, 1), name="images")
    padding = _padding(size)
    x = (
        keras.layers.ZeroPadding2D(((0, padding), (0, padding)), name="padding")(pictures)
        if padding
        else pictures
    )
    return keras.Model(
        pictures,
        _encoded(keras.layers.AveragePooling2D(2, name="half")(x), weights),
        name="encoder",
    )


def bottleneck_side(size: int) -> int:
    """Return the side (h = w) of the bottleneck's maps for images of `size`."""
    return (size + _padding(size)) // CELL_PX


def encoder_nodes(
    weights: Weights, size: int, takes: str, gives: str
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return ONNX nodes and constants: `takes` (N, 1, size, size) -> `gives` (N, 32, h, w), the
    bottleneck.

    Internal names begin with "autoencoder_", so that the nodes can be part of any graph; opset 17.
    """
    nodes, constants, x = [], [], takes
    padding = _padding(size)
    if padding:
        constants.append(
            numpy_helper.from_array(
                np.array([0, 0, 0, 0, 0, 0, padding, padding], np.int64), "autoencoder_pads"
            )
        )
        nodes.append(helper.make_node("Pad", [x, "autoencoder_pads"], ["autoencoder_padded"]))
        x = "autoencoder_padded"
    nodes.append(
        helper.make_node(
            "AveragePool", [x], ["autoencoder_half"], kernel_shape=[2, 2], strides=[2, 2]
        )
    )
    x = "autoencoder_half"
    for number, (name, kernel, _, _) in enumerate(ENCODERS):
        inputs = [x, *_stored(weights, name, nodes, constants)]
        # Keras's "same" padding for a stride of 2 and an even side: one pixel more at the end than
        # at the beginning.
        begin, end = (kernel - 2) // 2, (kernel - 1) // 2
        pads = [begin, begin, end, end]
        nodes.append(
            helper.make_node(
                "Conv", inputs, [f"autoencoder_{name}_linear"], strides=[2, 2], pads=pads
            )
        )
        x = gives if number == len(ENCODERS) - 1 else f"autoencoder_{name}"
        nodes.append(helper.make_node("Relu", [f"autoencoder_{name}_linear"], [x]))
    return nodes, constants


def onnx_nodes(
    weights: Weights, size: int, takes: str, gives: str
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return ONNX nodes and constants of the whole autoencoder: `takes` (N, 1, size, size) in 0..1
    -> `gives`, of the same shape and range.

    Internal names begin with "autoencoder_", so that the nodes can be part of any graph; opset 17.
    """
    nodes, constants = encoder_nodes(weights, size, takes, "autoencoder_bottleneck")
    x = "autoencoder_bottleneck"
    for name, *_ in DECODERS:
        inputs = [x, *_stored(weights, name, nodes, constants)]
        nodes.append(
            helper.make_node(
                "ConvTranspose",
                inputs,
                [f"autoencoder_{name}_linear"],
                strides=[2, 2],
                pads=[1, 1, 1, 1],
            )
        )
        x = f"autoencoder_{name}_linear"
        if name != DECODERS[-1][0]:
            nodes.append(helper.make_node("Relu", [x], [f"autoencoder_{name}"]))
            x = f"autoencoder_{name}"
    constants.append(
        numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "autoencoder_scales")
    )
    resize = helper.make_node(
        "Resize", [x, "", "autoencoder_scales"], ["autoencoder_double"], mode="linear"
    )
    nodes.append(resize)
    x = "autoencoder_double"
    if _padding(size):
        for name, values in (("starts", [0, 0]), ("ends", [size, size]), ("axes", [2, 3])):
            constants.append(
                numpy_helper.from_array(np.array(values, np.int64), f"autoencoder_{name}")
            )
        slices = [x, "autoencoder_starts", "autoencoder_ends", "autoencoder_axes"]
        nodes.append(helper.make_node("Slice", slices, ["autoencoder_cut"]))
        x = "autoencoder_cut"
    for name, value in (("black", 0.0), ("white", 1.0)):
        constants.append(
            numpy_helper.from_array(np.array(value, np.float32), f"autoencoder_{name}")
        )
    nodes.append(helper.make_node("Clip", [x, "autoencoder_black", "autoencoder_white"], [gives]))
    return nodes, constants


def _stored(
    weights: Weights, name: str, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]
) -> list[str]:
    """Add a layer's weights, stored in half precision, and their casts; return the names under
    which they are float32.
    """
    # HWIO -> OIHW; a decoder's HWOI -> IOHW, the layout of ConvTranspose.
    constants.append(
        numpy_helper.from_array(
            weights[f"{name}_W"].transpose(3, 2, 0, 1).astype(np.float16), f"autoencoder_{name}_W"
        )
    )
    constants.append(
        numpy_helper.from_array(weights[f"{name}_b"].astype(np.float16), f"autoencoder_{name}_b")
    )
    names = []
    for key in (f"autoencoder_{name}_W", f"autoencoder_{name}_b"):
        nodes.append(helper.make_node("Cast", [key], [f"{key}_float"], to=TensorProto.FLOAT))
        names.append(f"{key}_float")
    return names


def _padding(size: int) -> int:
    """Return the number of rows and columns to pad for whole cells."""
    return -size % CELL_PX


def _halved_images(images: np.ndarray, learn: np.ndarray) -> np.ndarray:
    """Return the training images, float32 (m, half, half, 1), after padding and halving as in
    `build`.
    """
    size = images.shape[1]
    side = (size + _padding(size)) // 2
    small = np.zeros((len(learn), side, side, 1), np.float32)
    for row, position in enumerate(learn):
        padded = np.zeros((2 * side, 2 * side), np.float32)
        padded[:size, :size] = images[position, :, :, 0]
        small[row, :, :, 0] = cv2.resize(padded, (side, side), interpolation=cv2.INTER_AREA)
    return small


def _network(weights: Weights, side: int) -> keras.Model:
    """Return the training model: halved images -> halved images, not clipped, since clipped pixels
    have no gradient.
    """
    pictures = keras.Input((side, side, 1))
    return keras.Model(pictures, _drawn_again(_encoded(pictures, weights), weights))


def _encoded(x: keras.KerasTensor, weights: Weights) -> keras.KerasTensor:
    for name, kernel, _, channels in ENCODERS:
        layer = keras.layers.Conv2D(
            channels, kernel, strides=2, padding="same", activation="relu", name=name
        )
        x = _set(layer, x, weights)
    return x


def _drawn_again(x: keras.KerasTensor, weights: Weights) -> keras.KerasTensor:
    for name, kernel, _, channels in DECODERS:
        activation = None if name == DECODERS[-1][0] else "relu"
        layer = keras.layers.Conv2DTranspose(
            channels, kernel, strides=2, padding="same", activation=activation, name=name
        )
        x = _set(layer, x, weights)
    return x


def _set(layer: keras.Layer, x: keras.KerasTensor, weights: Weights) -> keras.KerasTensor:
    x = layer(x)
    layer.set_weights([weights[f"{layer.name}_W"], weights[f"{layer.name}_b"]])
    return x


def _weights_of(network: keras.Model) -> Weights:
    weights: Weights = {}
    for name, *_ in (*ENCODERS, *DECODERS):
        for key, values in zip(
            (f"{name}_W", f"{name}_b"), network.get_layer(name).get_weights(), strict=True
        ):
            weights[key] = np.asarray(values).astype(np.float16).astype(np.float32)
    return weights
