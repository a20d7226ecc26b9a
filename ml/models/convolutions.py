"""AlexNet's five convolutions: initial weights, the Keras model, and the same as an ONNX graph.

The layout is torchvision's ("One weird trick", A. Krizhevsky 2014): 64-192-384-256-256 channels, no groups, no local response
normalisation, three overlapping max-poolings. The graph takes grey pictures; replication to three channels and ImageNet's
normalisation are part of it.

Weights are rounded to half precision before they are used for anything, so that the exported file, which stores them so, computes
exactly what was trained and judged.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ml.artifacts import ArtifactError, read_card

Weights = dict[str, np.ndarray]
"""`conv1_W` ... `conv5_W` float32 (height, width, in, out) and `conv1_b` ... `conv5_b` float32 (out,)."""

# name, kernel, input channels, output channels, stride, padding, overlapping 3x3 max-pooling before it
CONVOLUTIONS = (
    ("conv1", 11, 3, 64, 4, 2, False),
    ("conv2", 5, 64, 192, 1, 2, True),
    ("conv3", 3, 192, 384, 1, 1, True),
    ("conv4", 3, 384, 256, 1, 1, False),
    ("conv5", 3, 256, 256, 1, 1, False),
)
LAYERS = ("conv3", "conv4", "conv5", "pool5")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
OPSET = 17
IR_VERSION = 8


def load_weights(init: Path | str, seed: int, layer: str) -> Weights:
    """Return initial weights up to `layer` from "random", a .npz file (read without unpickling), or a model folder of ours.

    Raises:
        ArtifactError: the file is missing, unreadable, or of another layout.
    """
    if init == "random":
        return random_weights(seed)
    path = Path(init)
    weights = _from_model(path) if path.is_dir() else _from_npz(path)
    for name, kernel, channels_in, channels_out, *_ in CONVOLUTIONS[: len(_used(layer))]:
        for key, shape in ((f"{name}_W", (kernel, kernel, channels_in, channels_out)), (f"{name}_b", (channels_out,))):
            if key not in weights:
                raise ArtifactError(f"{path.name} has no {key}; {layer} needs all convolutions up to it, in torchvision's AlexNet layout.")
            if weights[key].shape != shape:
                raise ArtifactError(f"{path.name} has {key} of shape {weights[key].shape}; torchvision's AlexNet layout has {shape}.")
    return rounded(weights)


def random_weights(seed: int) -> Weights:
    """Return weights drawn by He's rule (He et al. 2015), biases zero. The same seed gives the same weights."""
    random = np.random.default_rng(seed)
    weights: Weights = {}
    for name, kernel, channels_in, channels_out, *_ in CONVOLUTIONS:
        spread = np.sqrt(2 / (kernel * kernel * channels_in))
        weights[f"{name}_W"] = (random.standard_normal((kernel, kernel, channels_in, channels_out)) * spread).astype(np.float32)
        weights[f"{name}_b"] = np.zeros(channels_out, np.float32)
    return rounded(weights)


def rounded(weights: Weights) -> Weights:
    """Return the weights rounded to half precision, as float32."""
    return {name: values.astype(np.float16).astype(np.float32) for name, values in weights.items()}


def build(weights: Weights, layer: str, size: int) -> keras.Model:
    """Return the Keras model: float32 (N, size, size, 1) in 0..1 -> maps float32 (N, h, w, c) of `layer`."""
    pictures = keras.Input((size, size, 1), name="images")
    x = keras.layers.Concatenate(name="grey_to_rgb")([pictures, pictures, pictures])
    variance = tuple(std**2 for std in IMAGENET_STD)
    x = keras.layers.Normalization(mean=IMAGENET_MEAN, variance=variance, name="imagenet")(x)
    for name, kernel, _, channels, stride, padding, pooled in CONVOLUTIONS:
        if pooled:
            x = keras.layers.MaxPooling2D(3, 2, name=f"pool_before_{name}")(x)
        x = keras.layers.ZeroPadding2D(padding, name=f"{name}_padding")(x)
        x = keras.layers.Conv2D(channels, kernel, strides=stride, activation="relu", name=name)(x)
        if name == layer:
            break
    if layer == "pool5":
        x = keras.layers.MaxPooling2D(3, 2, name="pool5")(x)
    model = keras.Model(pictures, x, name="alexnet_convolutions")
    for name in _used(layer):
        model.get_layer(name).set_weights([weights[f"{name}_W"], weights[f"{name}_b"]])
    return model


def weights_of(model: keras.Model, base: Weights) -> Weights:
    """Return the model's convolutions, rounded to half precision; those it does not have come from `base`."""
    found = dict(base)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            found[f"{layer.name}_W"], found[f"{layer.name}_b"] = (np.asarray(values) for values in layer.get_weights())
    return rounded(found)


def pooled(maps: np.ndarray, pooling: str) -> np.ndarray:
    """Return float32 (N, c) or, for "both", (N, 2c) from maps (N, h, w, c): each map's average, maximum, or both."""
    parts = []
    if pooling in ("average", "both"):
        parts.append(maps.mean(axis=(1, 2)))
    if pooling in ("max", "both"):
        parts.append(maps.max(axis=(1, 2)))
    return np.concatenate(parts, axis=1)


def to_onnx(weights: Weights, layer: str, size: int) -> bytes:
    """Return the features graph, "images" (N, size, size, 1) -> "maps" (N, h, w, c), its weights stored in half precision.

    Built node by node: Keras's own ONNX export (3.15 with tf2onnx 1.17) turns the constants of the normalisation into inputs
    that nobody feeds, and a dozen nodes written out also keep the names under which a later training finds the weights.
    """
    nodes = [
        helper.make_node("Transpose", ["images"], ["grey"], perm=[0, 3, 1, 2]),
        helper.make_node("Concat", ["grey", "grey", "grey"], ["rgb"], axis=1),
        helper.make_node("Sub", ["rgb", "imagenet_mean"], ["centred"]),
        helper.make_node("Div", ["centred", "imagenet_std"], ["normalised"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(values, np.float32).reshape(1, 3, 1, 1), name)
        for name, values in (("imagenet_mean", IMAGENET_MEAN), ("imagenet_std", IMAGENET_STD))
    ]
    x = "normalised"
    for name, _, _, _, stride, padding, pooled_before in CONVOLUTIONS:
        if name not in _used(layer):
            break
        if pooled_before:
            nodes.append(helper.make_node("MaxPool", [x], [f"pool_before_{name}"], kernel_shape=[3, 3], strides=[2, 2]))
            x = f"pool_before_{name}"
        # HWIO -> OIHW
        constants.append(numpy_helper.from_array(weights[f"{name}_W"].transpose(3, 2, 0, 1).astype(np.float16), f"{name}_W"))
        constants.append(numpy_helper.from_array(weights[f"{name}_b"].astype(np.float16), f"{name}_b"))
        for key in (f"{name}_W", f"{name}_b"):
            nodes.append(helper.make_node("Cast", [key], [f"{key}_float"], to=TensorProto.FLOAT))
        inputs = [x, f"{name}_W_float", f"{name}_b_float"]
        nodes.append(helper.make_node("Conv", inputs, [f"{name}_linear"], strides=[stride] * 2, pads=[padding] * 4))
        nodes.append(helper.make_node("Relu", [f"{name}_linear"], [name]))
        x = name
    if layer == "pool5":
        nodes.append(helper.make_node("MaxPool", [x], ["pool5"], kernel_shape=[3, 3], strides=[2, 2]))
        x = "pool5"
    nodes.append(helper.make_node("Transpose", [x], ["maps"], perm=[0, 2, 3, 1]))
    side, channels = maps_shape(layer, size)
    graph = helper.make_graph(
        nodes,
        "alexnet_convolutions",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", size, size, 1])],
        [helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["N", side, side, channels])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def maps_shape(layer: str, size: int) -> tuple[int, int]:
    """Return the side (h = w) and the channels of `layer`'s maps for pictures of `size`."""
    side, channels = size, 1
    for name, kernel, _, channels_out, stride, padding, pooled_before in CONVOLUTIONS:
        side = (side - 3) // 2 + 1 if pooled_before else side
        side, channels = (side + 2 * padding - kernel) // stride + 1, channels_out
        if name == layer:
            break
    return ((side - 3) // 2 + 1 if layer == "pool5" else side), channels


def _used(layer: str) -> list[str]:
    names = [name for name, *_ in CONVOLUTIONS]
    return names if layer == "pool5" else names[: names.index(layer) + 1]


def _from_npz(path: Path) -> Weights:
    if not path.is_file():
        raise ArtifactError(f"There are no initial weights at {path}.")
    try:
        with np.load(path, allow_pickle=False) as opened:
            return {name: opened[name] for name in opened.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as err:
        raise ArtifactError(f"{path.name} is not a readable .npz file of arrays.") from err


def _from_model(folder: Path) -> Weights:
    card = read_card(folder)
    found: dict[str, Any] = {}
    for constant in onnx.load(str(folder / "features.onnx")).graph.initializer:
        found[constant.name] = numpy_helper.to_array(constant).astype(np.float32)
    weights = {
        name: values.transpose(2, 3, 1, 0) if name.endswith("_W") else values for name, values in found.items() if name.startswith("conv")
    }
    if not weights:
        raise ArtifactError(f"The model {card.id} ({card.architecture}) keeps no AlexNet convolutions to start from.")
    return weights
