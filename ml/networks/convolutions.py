"""AlexNet's five convolutional layers as a Keras model and as an ONNX graph.

The graph takes gray images; it includes the replication to three channels and the normalization
with which the weights were trained. The layout is that of the weights (`ml.networks.weights`).

Weights with "soft_tissue" take other contrasts of the image in their second and third channel
(`ml.networks.contrasts`) and the image itself in the first.

With a preceding autoencoder the convolutions are applied to each image and its reconstruction, and
the maps of both are concatenated by channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ml.networks import autoencoder
from ml.networks.contrasts import contrasts, contrasts_nodes
from ml.networks.onnx_graph import (
    both_ways_nodes,
    mean_of_both_ways_nodes,
    model_of,
    serialized,
    standardized_nodes,
)
from ml.networks.weights import (
    CONTRASTS,
    LAYERS,
    OWT,
    SOFT_TISSUE,
    Convolution,
    Layout,
    Weights,
    groups_of,
    layout_of,
    load_weights,
    rounded,
)

# Local response normalization over 5 channels as in Caffe: alpha divided by the number of channels,
# k = 1.
NEIGHBORS, ALPHA, BETA, K = 5, 1e-4, 0.75, 1.0
NORMALIZED = ("conv1", "conv2")


def build(
    weights: Weights,
    layer: str,
    size: int,
    *,
    normalizes: bool | None = None,
    restructuring: autoencoder.Weights | None = None,
) -> keras.Model:
    """Return the Keras model: float32 (N, size, size, 1) in 0..1 -> maps float32 (N, h, w, c) of
    `layer`; see `build_several`.
    """
    several = build_several(
        weights, [layer], size, normalizes=normalizes, restructuring=restructuring
    )
    return keras.Model(several.input, several.outputs[0], name="alexnet_convolutions")


def build_several(
    weights: Weights,
    layers: Sequence[str],
    size: int,
    *,
    normalizes: bool | None = None,
    restructuring: autoencoder.Weights | None = None,
) -> keras.Model:
    """Return the Keras model: float32 (N, size, size, 1) in 0..1 -> a dictionary, the maps float32
    (N, h, w, c) by layer.

    Args:
        weights: of the convolutions up to the last layer.
        layers: of `ml.networks.weights.LAYERS`, the deepest at the end.
        size: side of the images in pixels.
        normalizes: local response normalization after conv1 and conv2; None means as in the
            training of the weights.
        restructuring: weights of an autoencoder; then the maps are those of the image and of its
            reconstruction, 2 c channels.
    """
    layout = layout_of(weights)
    pictures = keras.Input((size, size, 1), name="images")
    others = (
        contrasts(pictures, weights[SOFT_TISSUE])
        if SOFT_TISSUE in weights
        else (pictures, pictures)
    )
    x = keras.layers.Concatenate(name="gray_to_rgb")([pictures, *others])
    x = keras.layers.Normalization(
        mean=layout.mean, variance=tuple(std**2 for std in layout.std), name="imagenet"
    )(x)
    maps: dict[str, keras.KerasTensor] = {}
    for layer in LAYERS[: LAYERS.index(layers[-1]) + 1]:
        x = (
            keras.layers.MaxPooling2D(3, 2, name="pool5")(x)
            if layer == "pool5"
            else convolved(x, weights, [layer], normalizes)
        )
        if layer in layers:
            maps[layer] = x
    model = keras.Model(pictures, maps, name="alexnet_convolutions")
    set_weights(model, weights)
    if restructuring is None:
        return model
    pictures = keras.Input((size, size, 1), name="images")
    original, drawn_again = model(pictures), model(autoencoder.build(restructuring, size)(pictures))
    both = {
        layer: keras.layers.Concatenate()([original[layer], drawn_again[layer]]) for layer in maps
    }
    return keras.Model(pictures, both, name="restructured")


def convolved(
    x: keras.KerasTensor, weights: Weights, names: Sequence[str], normalizes: bool | None = None
) -> keras.KerasTensor:
    """Return the maps after the consecutive convolutions `names`, with preceding pooling and
    subsequent normalization.
    """
    layout = layout_of(weights)
    if normalizes is None:
        normalizes = layout.normalizes
    for convolution in layout.convolutions:
        if convolution.name not in names:
            continue
        if convolution.pooled_before:
            x = keras.layers.MaxPooling2D(3, 2, name=f"pool_before_{convolution.name}")(x)
        if convolution.padding:
            x = keras.layers.ZeroPadding2D(convolution.padding, name=f"{convolution.name}_padding")(
                x
            )
        # Keras's grouped convolutions have no gradient on CPUs, so the channels are split here.
        parts = keras.ops.split(x, 2, axis=-1) if groups_of(weights, convolution.name) == 2 else [x]
        convolved_parts = []
        for number, part in enumerate(parts):
            name = convolution.name if len(parts) == 1 else f"{convolution.name}_{number}"
            width = convolution.channels // len(parts)
            convolved_parts.append(
                keras.layers.Conv2D(
                    width,
                    convolution.kernel,
                    strides=convolution.stride,
                    activation="relu",
                    name=name,
                )(part)
            )
        x = (
            convolved_parts[0]
            if len(convolved_parts) == 1
            else keras.layers.Concatenate(name=f"{convolution.name}_joined")(convolved_parts)
        )
        if normalizes and convolution.name in NORMALIZED:
            x = locally_normalized(x)
    return x


def locally_normalized(x: keras.KerasTensor) -> keras.KerasTensor:
    """Return local response normalization of maps (n, h, w, c) (A. Krizhevsky, I. Sutskever, G.
    Hinton 2012).
    """
    ops, numbers = keras.ops, np.arange(x.shape[-1])
    # Summing the neighbors by a convolution trains four times faster than adding shifted copies.
    near = np.abs(numbers[:, None] - numbers[None]) <= NEIGHBORS // 2
    summing = ops.cast(near[None, None] * (ALPHA / NEIGHBORS), x.dtype)
    total = ops.conv(ops.square(x), summing, padding="same")
    return x * ops.exp(-BETA * ops.log(K + total))


def set_weights(model: keras.Model, weights: Weights) -> None:
    """Set the weights of the convolutions in the model by name."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            name, _, group = layer.name.partition("_")
            half = layer.filters * int(group or 0)
            kernel, bias = weights[f"{name}_W"], weights[f"{name}_b"]
            layer.set_weights(
                [kernel[..., half : half + layer.filters], bias[half : half + layer.filters]]
            )


def mirrored(model: keras.Model) -> keras.Model:
    """Return the Keras model whose outputs are the mean of the image's maps and of the mirror
    image's maps, mirrored back.
    """
    pictures = keras.Input(model.input_shape[1:], name="images")
    averaged = keras.tree.map_structure(
        lambda one, other: (one + keras.ops.flip(other, axis=2)) / 2,
        model(pictures),
        model(keras.ops.flip(pictures, axis=2)),
    )
    return keras.Model(pictures, averaged, name="mirrored")


def weights_of(model: keras.Model, base: Weights) -> Weights:
    """Return the model's convolutional weights, rounded to half precision; missing ones come from
    `base`.
    """
    parts: dict[str, list[list[np.ndarray]]] = {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            parts.setdefault(layer.name.partition("_")[0], []).append(
                [np.asarray(values) for values in layer.get_weights()]
            )
    weights = dict(base)
    for name, groups in parts.items():
        weights[f"{name}_W"], weights[f"{name}_b"] = (
            np.concatenate(values, axis=-1) for values in zip(*groups, strict=True)
        )
    return rounded(weights)


def pooled(maps: np.ndarray, pooling: str) -> np.ndarray:
    """Return float32 (N, c) or, for "both", (N, 2c) from maps (N, h, w, c): each map's average,
    maximum, or both.
    """
    parts = []
    if pooling in ("average", "both"):
        parts.append(maps.mean(axis=(1, 2)))
    if pooling in ("max", "both"):
        parts.append(maps.max(axis=(1, 2)))
    return np.concatenate(parts, axis=1)


def to_onnx(
    weights: Weights,
    layer: str,
    size: int,
    *,
    both_ways: bool = False,
    normalizes: bool | None = None,
    restructuring: autoencoder.Weights | None = None,
) -> bytes:
    """Return the features graph, "images" (N, size, size, 1) -> "maps" (N, h, w, c), its weights
    stored in half precision.

    With `both_ways` the maps are those of `mirrored`; the other arguments are those of
    `build_several`.

    Built node by node: Keras's own ONNX export (3.15 with tf2onnx 1.17) turns the constants of the
    normalization into graph inputs, and explicit nodes also preserve the names under which a later
    training finds the weights.
    """
    layout = layout_of(weights)
    nodes = [helper.make_node("Transpose", ["images"], ["gray"], perm=[0, 3, 1, 2])]
    constants: list[onnx.TensorProto] = []
    x = "gray"
    if both_ways:
        nodes += both_ways_nodes(x)[0]
        x = "ways"
    if restructuring is not None:
        more_nodes, more_constants = autoencoder.onnx_nodes(restructuring, size, x, "reconstructed")
        nodes, constants = nodes + more_nodes, constants + more_constants
        nodes.append(helper.make_node("Concat", [x, "reconstructed"], ["pictures"], axis=0))
        x = "pictures"
    others = x, x
    if SOFT_TISSUE in weights:
        more_nodes, more_constants, others = contrasts_nodes(weights[SOFT_TISSUE], x)
        nodes, constants = nodes + more_nodes, constants + more_constants
    nodes.append(helper.make_node("Concat", [x, *others], ["rgb"], axis=1))
    more_nodes, more_constants = standardized_nodes("rgb", layout.mean, layout.std)
    nodes, constants = nodes + more_nodes, constants + more_constants
    x = _convolution_nodes(
        weights, layer, layout.normalizes if normalizes is None else normalizes, nodes, constants
    )
    side, channels = maps_shape(layer, size, layout)
    if restructuring is not None:
        nodes += _joined_nodes(x)
        x, channels = "maps_joined", 2 * channels
    if both_ways:
        more_nodes, more_constants = mean_of_both_ways_nodes(x)
        nodes, constants = nodes + more_nodes, constants + more_constants
        x = "maps_mean"
    nodes.append(helper.make_node("Transpose", [x], ["maps"], perm=[0, 2, 3, 1]))
    model = model_of(
        nodes,
        "alexnet_convolutions",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", size, size, 1])],
        [helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["N", side, side, channels])],
        constants,
    )
    return serialized(model)


def _joined_nodes(maps: str) -> list[onnx.NodeProto]:
    """Return the nodes from `maps`, with those of the images before those of their reconstructions,
    to "maps_joined", which concatenates their channels.
    """
    halves = ["maps_of_pictures", "maps_of_reconstructions"]
    return [
        helper.make_node("Split", [maps], halves, axis=0),
        helper.make_node("Concat", halves, ["maps_joined"], axis=1),
    ]


def _convolution_nodes(
    weights: Weights,
    layer: str,
    normalizes: bool,
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
) -> str:
    """Add the nodes from "normalized" (n, 3, size, size) to the maps of `layer` (n, c, h, w);
    return the name of the latter.
    """
    x = "normalized"
    for convolution in layout_of(weights).up_to(layer):
        name = convolution.name
        if convolution.pooled_before:
            nodes.append(
                helper.make_node(
                    "MaxPool", [x], [f"pool_before_{name}"], kernel_shape=[3, 3], strides=[2, 2]
                )
            )
            x = f"pool_before_{name}"
        _add_convolution(weights, convolution, x, nodes, constants)
        x = name
        if normalizes and name in NORMALIZED:
            nodes.append(
                helper.make_node(
                    "LRN",
                    [x],
                    [f"{name}_normalized"],
                    size=NEIGHBORS,
                    alpha=ALPHA,
                    beta=BETA,
                    bias=K,
                )
            )
            x = f"{name}_normalized"
    if layer == "pool5":
        nodes.append(
            helper.make_node("MaxPool", [x], ["pool5"], kernel_shape=[3, 3], strides=[2, 2])
        )
        x = "pool5"
    return x


def _add_convolution(
    weights: Weights,
    convolution: Convolution,
    x: str,
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
) -> None:
    """Add the nodes from `x` to the maps of one convolution, which have its name."""
    name = convolution.name
    # HWIO -> OIHW
    constants.append(
        numpy_helper.from_array(
            weights[f"{name}_W"].transpose(3, 2, 0, 1).astype(np.float16), f"{name}_W"
        )
    )
    constants.append(numpy_helper.from_array(weights[f"{name}_b"].astype(np.float16), f"{name}_b"))
    for key in (f"{name}_W", f"{name}_b"):
        nodes.append(helper.make_node("Cast", [key], [f"{key}_float"], to=TensorProto.FLOAT))
    inputs = [x, f"{name}_W_float", f"{name}_b_float"]
    nodes.append(
        helper.make_node(
            "Conv",
            inputs,
            [f"{name}_linear"],
            strides=[convolution.stride] * 2,
            pads=[convolution.padding] * 4,
            group=groups_of(weights, name),
        )
    )
    nodes.append(helper.make_node("Relu", [f"{name}_linear"], [name]))


def maps_shape(layer: str, size: int, layout: Layout = OWT) -> tuple[int, int]:
    """Return the side (h = w) and the channels of `layer`'s maps for images of `size`."""
    side, channels = size, 1
    for convolution in layout.up_to(layer):
        side = (side - 3) // 2 + 1 if convolution.pooled_before else side
        side, channels = (
            (side + 2 * convolution.padding - convolution.kernel) // convolution.stride + 1,
            convolution.channels,
        )
    return ((side - 3) // 2 + 1 if layer == "pool5" else side), channels


@dataclass(frozen=True)
class AlexNet:
    """AlexNet's convolutions up to `layer` as an encoder (`ml.networks.encoder.Encoder`).

    Attributes:
        layer: the last layer.
        normalizes: local response normalization; None: as in the training of the weights.
        groups: as `ml.networks.weights.load_weights` takes it.
        layout: of random weights.
        contrasts: two of three channels show other contrasts (`ml.networks.contrasts`), regardless
            of the initial weights.
    """

    layer: str
    normalizes: bool | None = None
    groups: int | None = None
    layout: str = "owt"
    contrasts: bool = False
    learning_rate: float = 8e-4
    outlines: bool = False

    @property
    def name(self) -> str:
        """The encoder's name, which includes everything except the weights that determines its
        output.
        """
        return f"alexnet-{self.layer}-{self.normalizes}"

    def initial(self, init: Path | str, seed: int) -> Weights:
        """Return initial weights; see `ml.networks.weights.load_weights`."""
        weights = load_weights(init, seed, self.layer, layout=self.layout, groups=self.groups)
        if self.contrasts:
            weights[SOFT_TISSUE] = np.array(CONTRASTS, np.float16).astype(np.float32)
        return weights

    def build(self, weights: Weights, size: int) -> keras.Model:
        """Return the Keras model; see `build`."""
        return build(weights, self.layer, size, normalizes=self.normalizes)

    def weights_of(self, model: keras.Model, base: Weights) -> Weights:
        """Return the model's convolutions; see `weights_of`."""
        return weights_of(model, base)

    def as_stored(self, weights: Weights) -> Weights:
        """Return the weights rounded to half precision."""
        return rounded(weights)

    def to_onnx(self, weights: Weights, size: int) -> bytes:
        """Return the features graph with `both_ways`; see `to_onnx`."""
        return to_onnx(weights, self.layer, size, both_ways=True, normalizes=self.normalizes)
