"""GoogLeNet as an encoder: its inception modules up to 4e and a feature pyramid on top, in Keras
and in ONNX.

C. Szegedy et al. 2015, "Going deeper with convolutions" (doi 10.1109/CVPR.2015.7298594), with the
weights that BVLC trained on ImageNet. Maps of stride 16, which capture the context, are upsampled
by a factor of two and added to those of stride 8, which capture the location (T.-Y. Lin et al.
2017, "Feature pyramid networks", doi 10.1109/CVPR.2017.106): a thin hemorrhage along the skull is
smaller than one of AlexNet's cells.

With outlines, a decoder continues from there to stride 2, as in U-Net (O. Ronneberger et al. 2015,
doi 10.1007/978-3-319-24574-4_28): maps are upsampled by a factor of two and combined with the
encoder's own maps of that size, and each of 112 x 112 positions predicts whether it is hemorrhage.

The image is shown in three contrasts (`ml.networks.contrasts`). Kernels are quantized to 8 bits,
with one scale per output channel, before anything is computed with them, so that the exported file
computes exactly what was trained and evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ml.artifacts.card import FEATURES
from ml.artifacts.folder import read_card
from ml.artifacts.onnx_check import require_self_contained
from ml.errors import ArtifactError
from ml.networks.contrasts import contrasts, contrasts_nodes
from ml.networks.convolutions import ALPHA, BETA, NEIGHBORS, K, locally_normalized
from ml.networks.onnx_graph import (
    both_ways_nodes,
    mean_of_both_ways_nodes,
    model_of,
    serialized,
    standardized_nodes,
)
from ml.networks.weights import CONTRASTS, ORIGINAL, SOFT_TISSUE, Weights, arrays_of_file

FIRST = "conv1_7x7_s2"
STEM = {"conv2_3x3_reduce": (1, 64, 64), "conv2_3x3": (3, 64, 192)}
"""Convolutions after the first: kernel, channels in, channels out."""
MODULES = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
}
"""The inception modules: input channels, then output channels of the 1 x 1 convolution, of the 3 x
3 reduction and convolution, of the 5 x 5 reduction and convolution, and of the pooling projection.
"""
FINE, COARSE = "3b", "4e"
"""The last modules of stride 8 and of stride 16, which the pyramid combines."""
PYRAMID = 128
LARGEST = 127


def _shapes() -> dict[str, tuple[int, int, int]]:
    """Return kernel, channels in and channels out of every convolution by name."""
    shapes = {FIRST: (7, 3, 64), **STEM}
    for name, (inside, one, three_in, three, five_in, five, pooled) in MODULES.items():
        for part, shape in (
            ("1x1", (1, inside, one)),
            ("3x3_reduce", (1, inside, three_in)),
            ("3x3", (3, three_in, three)),
            ("5x5_reduce", (1, inside, five_in)),
            ("5x5", (5, five_in, five)),
            ("pool_proj", (1, inside, pooled)),
        ):
            shapes[f"inception_{name}_{part}"] = shape
    return shapes


PYRAMID_SHAPES = {
    "pyramid_fine": (1, 480, PYRAMID),
    "pyramid_coarse": (1, 832, PYRAMID),
    "pyramid_joined": (3, PYRAMID, PYRAMID),
}
"""The convolutions of the pyramid, which are not part of the ImageNet weights; they start from
random weights.
"""
QUARTER, HALF = 48, 24
OUTLINE_SHAPES = {
    "outline_deep": (1, PYRAMID, QUARTER),
    "outline_quarter": (1, 192, QUARTER),
    "outline_quarter_joined": (3, QUARTER, QUARTER),
    "outline_up": (1, QUARTER, HALF),
    "outline_half": (1, 64, HALF),
    "outline_half_joined": (3, HALF, HALF),
    "outline": (1, HALF, 1),
}
"""The convolutions of the outlines' decoder, which start from random weights as well."""
SKIPS = "outline_quarter", "outline_half"
"""The convolutions that read maps of early layers, whose values reach hundreds."""
RARE = -4.0
"""The initial bias of the outline: few pixels are hemorrhage."""
SHAPES = _shapes()


@dataclass(frozen=True)
class GoogLeNet:
    """The encoder; see `ml.networks.encoder.Encoder`."""

    outlines: bool = False
    learning_rate: float = 4e-4

    @property
    def name(self) -> str:
        """See `ml.networks.encoder.Encoder`."""
        return "googlenet-4e-pyramid" + ("-unet" if self.outlines else "")

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Kernel, channels in and channels out of every convolution by name."""
        return SHAPES | PYRAMID_SHAPES | (OUTLINE_SHAPES if self.outlines else {})

    def initial(self, init: Path | str, seed: int) -> Weights:
        """Return initial weights: ImageNet weights (.npz), those of a model folder, or random ones
        by He initialization (K. He et al. 2015); those of the pyramid and the decoder are random
        unless a model folder provides them.
        """
        weights = _random(seed, self.shapes)
        weights[SOFT_TISSUE] = np.array(CONTRASTS, np.float32)
        if init != "random":
            path = Path(init)
            stored = _from_model(path, self.shapes) if path.is_dir() else arrays_of_file(path)
            weights |= _checked(stored, path.name, self.shapes)
        return self.as_stored(weights)

    def build(self, weights: Weights, size: int) -> keras.Model:
        """Return the Keras model; see `ml.networks.encoder.Encoder`."""
        layers = keras.layers
        pictures = keras.Input((size, size, 1), name="images")
        x = layers.Concatenate()([pictures, *contrasts(pictures, weights[SOFT_TISSUE])])
        x = layers.Normalization(
            mean=ORIGINAL.mean, variance=tuple(std**2 for std in ORIGINAL.std), name="imagenet"
        )(x)
        half = _convolved(layers.ZeroPadding2D(3)(x), FIRST, 2, "valid")
        x = locally_normalized(layers.MaxPooling2D(3, 2, "same")(half))
        for name in STEM:
            x = _convolved(x, name)
        quarter = locally_normalized(x)
        x = layers.MaxPooling2D(3, 2, "same")(quarter)
        maps = {}
        for name in MODULES:
            if name == "4a":
                x = layers.MaxPooling2D(3, 2, "same")(x)
            x = maps[name] = _inception(x, f"inception_{name}")
        x = _joined(maps[COARSE], "pyramid_coarse", maps[FINE], "pyramid_fine")
        x = _convolved(x, "pyramid_joined")
        outputs = [x]
        if self.outlines:
            x = _joined(x, "outline_deep", quarter, "outline_quarter")
            x = _joined(_convolved(x, "outline_quarter_joined"), "outline_up", half, "outline_half")
            x = _convolved(x, "outline_half_joined")
            outputs.append(layers.Conv2D(1, 1, dtype="float32", name="outline")(x))
        model = keras.Model(pictures, outputs if self.outlines else outputs[0], name="googlenet")
        for name in self.shapes:
            model.get_layer(name).set_weights([weights[f"{name}_W"], weights[f"{name}_b"]])
        return model

    def weights_of(self, model: keras.Model, base: Weights) -> Weights:
        """Return the weights of a model that `build` created, and the contrasts of `base`."""
        weights = {SOFT_TISSUE: base[SOFT_TISSUE]}
        for name in self.shapes:
            kernel, bias = model.get_layer(name).get_weights()
            weights[f"{name}_W"], weights[f"{name}_b"] = np.asarray(kernel), np.asarray(bias)
        return weights

    def as_stored(self, weights: Weights) -> Weights:
        """Return the weights with kernels rounded to 8 bits and everything else to 16 bits, as
        float32.
        """
        return {
            name: _restored(*quantized(values))
            if name.endswith("_W")
            else values.astype(np.float16).astype(np.float32)
            for name, values in weights.items()
        }

    def maps_shape(self, size: int) -> tuple[int, int]:
        """Return the side and the number of channels of the maps for images of `size` pixels."""
        return -(-size // 8), PYRAMID

    def to_onnx(self, weights: Weights, size: int) -> bytes:
        """Return the features graph; see `ml.networks.encoder.Encoder`."""
        graph = _Graph(weights)
        graph.append(both_ways_nodes(graph.add("Transpose", ["images"], perm=[0, 3, 1, 2])))
        *contrasting, others = contrasts_nodes(weights[SOFT_TISSUE], "ways")
        graph.append(contrasting)
        rgb = graph.add("Concat", ["ways", *others], axis=1)
        graph.append(standardized_nodes(rgb, ORIGINAL.mean, ORIGINAL.std))
        sides = _sides(size)
        half = graph.convolution("normalized", FIRST, stride=2)
        x = graph.normalized(graph.pooled(half, sides[2]), SHAPES[FIRST][2])
        for name in STEM:
            x = graph.convolution(x, name)
        quarter = graph.normalized(x, STEM["conv2_3x3"][2])
        x = graph.pooled(quarter, sides[4])
        maps = {}
        for name in MODULES:
            if name == "4a":
                x = graph.pooled(x, sides[8])
            x = maps[name] = graph.inception(x, f"inception_{name}")
        x = graph.joined(maps[COARSE], "pyramid_coarse", maps[FINE], "pyramid_fine", sides[8])
        x = graph.convolution(x, "pyramid_joined")
        graph.append(mean_of_both_ways_nodes(x))
        graph.nodes.append(
            helper.make_node("Transpose", ["maps_mean"], ["maps"], perm=[0, 2, 3, 1])
        )
        side, channels = self.maps_shape(size)
        outputs = [
            helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["N", side, side, channels])
        ]
        if self.outlines:
            outputs.append(graph.outline(x, quarter, half, sides))
        model = model_of(
            graph.nodes,
            "googlenet",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", size, size, 1])],
            outputs,
            graph.constants,
        )
        return serialized(model)


def _sides(size: int) -> dict[int, int]:
    """Return the sides of the maps of stride 2, 4 and 8, by stride."""
    half = (size - 1) // 2 + 1
    quarter = -(-half // 2)
    return {2: half, 4: quarter, 8: -(-quarter // 2)}


def quantized(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a kernel (h, w, in, out) quantized to 8 bits: int8 of the same shape, and the scales
    float32 (out,) by which it is to be multiplied.
    """
    scale = np.abs(kernel).max(axis=(0, 1, 2)).astype(np.float32) / LARGEST
    scale = np.where(scale > 0, scale, np.float32(1))
    return np.round(kernel / scale).astype(np.int8), scale


def _restored(kernel: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.asarray(kernel.astype(np.float32) * scale)


def _convolved(
    x: keras.KerasTensor,
    name: str,
    stride: int = 1,
    padding: str = "same",
    activation: str | None = "relu",
) -> keras.KerasTensor:
    kernel, _, channels = (SHAPES | PYRAMID_SHAPES | OUTLINE_SHAPES)[name]
    return keras.layers.Conv2D(
        channels, kernel, strides=stride, padding=padding, activation=activation, name=name
    )(x)


def _joined(
    coarse: keras.KerasTensor, coarse_name: str, fine: keras.KerasTensor, fine_name: str
) -> keras.KerasTensor:
    """Return the ReLU of the sum of both after one convolution each, with the coarse one upsampled
    by a factor of two.
    """
    fine = _convolved(fine, fine_name, activation=None)
    coarse = keras.layers.UpSampling2D(2)(_convolved(coarse, coarse_name, activation=None))
    coarse = coarse[:, : fine.shape[1], : fine.shape[2]]
    return keras.layers.Activation("relu")(keras.layers.Add()([fine, coarse]))


def _inception(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return keras.layers.Concatenate(name=name)(
        [
            _convolved(x, f"{name}_1x1"),
            _convolved(_convolved(x, f"{name}_3x3_reduce"), f"{name}_3x3"),
            _convolved(_convolved(x, f"{name}_5x5_reduce"), f"{name}_5x5"),
            _convolved(keras.layers.MaxPooling2D(3, 1, "same")(x), f"{name}_pool_proj"),
        ]
    )


class _Graph:
    """The nodes and constants of an ONNX graph under construction; maps are (n, c, h, w)."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = [
            numpy_helper.from_array(np.array(values), name)
            for name, values in (
                ("twice", np.array([1, 1, 2, 2], np.float32)),
                ("crop_from", [0, 0]),
                ("crop_axes", [2, 3]),
            )
        ]

    def append(self, part: Sequence[Sequence[Any]]) -> None:
        """Add nodes and their constants (`ml.networks.onnx_graph.Part`)."""
        nodes, constants = part
        self.nodes += nodes
        self.constants += constants

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def convolution(self, x: str, name: str, *, stride: int = 1, activated: bool = True) -> str:
        """Add a convolution with "same" padding, and ReLU."""
        kernel, scale = quantized(self.weights[f"{name}_W"])
        self.constants += [
            numpy_helper.from_array(kernel.transpose(3, 2, 0, 1), f"{name}_W"),
            numpy_helper.from_array(scale.reshape(-1, 1, 1, 1), f"{name}_scale"),
            numpy_helper.from_array(self.weights[f"{name}_b"].astype(np.float16), f"{name}_b"),
        ]
        # Constants, which ONNX Runtime computes once when it loads the file.
        exact = self.add("Cast", [f"{name}_W"], to=TensorProto.FLOAT)
        exact = self.add("Mul", [exact, f"{name}_scale"])
        bias = self.add("Cast", [f"{name}_b"], to=TensorProto.FLOAT)
        x = self.add(
            "Conv", [x, exact, bias], strides=[stride] * 2, pads=[kernel.shape[0] // 2] * 4
        )
        return self.add("Relu", [x]) if activated else x

    def pooled(self, x: str, side: int) -> str:
        """Add a max-pooling of 3 x 3, stride 2, over maps of `side`, padded as Keras's "same"."""
        padding = max((-(-side // 2) - 1) * 2 + 3 - side, 0)
        before = padding // 2
        pads = [before, before, padding - before, padding - before]
        return self.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=pads)

    def normalized(self, x: str, channels: int) -> str:
        """Add `ml.networks.convolutions.locally_normalized`, which sums the neighbors by a
        convolution: ONNX Runtime's own LRN would take a third of the network's total time.
        """
        number = np.arange(channels)
        near = np.abs(number[:, None] - number[None]) <= NEIGHBORS // 2
        summing, least, power = (f"{part}_{channels}" for part in ("summing", "least", "power"))
        self.constants += [
            numpy_helper.from_array(
                (near * (ALPHA / NEIGHBORS)).astype(np.float32)[..., None, None], summing
            ),
            numpy_helper.from_array(np.full(channels, K, np.float32), least),
            numpy_helper.from_array(np.array(-BETA, np.float32), power),
        ]
        total = self.add("Conv", [self.add("Mul", [x, x]), summing, least])
        factor = self.add("Exp", [self.add("Mul", [self.add("Log", [total]), power])])
        return self.add("Mul", [x, factor])

    def joined(self, coarse: str, coarse_name: str, fine: str, fine_name: str, side: int) -> str:
        """Add the nodes of `_joined`; `side` is that of the fine maps."""
        fine = self.convolution(fine, fine_name, activated=False)
        coarse = self.convolution(coarse, coarse_name, activated=False)
        coarse = self.add(
            "Resize",
            [coarse, "", "twice"],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        self.constants.append(numpy_helper.from_array(np.array([side, side]), f"crop_to_{side}"))
        coarse = self.add("Slice", [coarse, "crop_from", f"crop_to_{side}", "crop_axes"])
        return self.add("Relu", [self.add("Add", [fine, coarse])])

    def outline(self, x: str, quarter: str, half: str, sides: dict[int, int]) -> Any:
        """Add the decoder, from the maps `x` of stride 8 and those of stride 4 and 2 to the output
        "outline" (N, h, w), probabilities; return the description of the output.
        """
        x = self.joined(x, "outline_deep", quarter, "outline_quarter", sides[4])
        x = self.convolution(x, "outline_quarter_joined")
        x = self.joined(x, "outline_up", half, "outline_half", sides[2])
        x = self.convolution(x, "outline_half_joined")
        x = self.convolution(x, "outline", activated=False)
        nodes, _ = mean_of_both_ways_nodes(x, "outline")  # the constants already exist for the maps
        self.nodes += nodes
        flat = self.add("Squeeze", ["outline_mean", "channel_axis"])
        self.constants.append(numpy_helper.from_array(np.array([1]), "channel_axis"))
        self.nodes.append(helper.make_node("Sigmoid", [flat], ["outline"]))
        return helper.make_tensor_value_info(
            "outline", TensorProto.FLOAT, ["N", sides[2], sides[2]]
        )

    def inception(self, x: str, name: str) -> str:
        """Add an inception module."""
        pooled = self.add("MaxPool", [x], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        three = self.convolution(x, f"{name}_3x3_reduce")
        five = self.convolution(x, f"{name}_5x5_reduce")
        parts = [
            self.convolution(x, f"{name}_1x1"),
            self.convolution(three, f"{name}_3x3"),
            self.convolution(five, f"{name}_5x5"),
            self.convolution(pooled, f"{name}_pool_proj"),
        ]
        return self.add("Concat", parts, axis=1)


def _random(seed: int, shapes: dict[str, tuple[int, int, int]]) -> Weights:
    random = np.random.default_rng(seed)
    weights: Weights = {}
    for name, (kernel, inside, outside) in shapes.items():
        spread = np.sqrt(2 / (kernel * kernel * inside))
        if name == FIRST or name in SKIPS:  # their inputs reach 128; He initialization assumes 1
            spread /= 128
        drawn = random.standard_normal((kernel, kernel, inside, outside)) * spread
        weights[f"{name}_W"] = drawn.astype(np.float32)
        weights[f"{name}_b"] = np.full(outside, RARE if name == "outline" else 0, np.float32)
    return weights


def _checked(stored: Weights, source: str, shapes: dict[str, tuple[int, int, int]]) -> Weights:
    """Return the encoder's arrays among the given ones.

    Raises:
        ArtifactError: one is missing or has another shape, or a value is not finite.
    """
    weights: Weights = {}
    for name, (kernel, inside, outside) in shapes.items():
        for key, shape in (
            (f"{name}_W", (kernel, kernel, inside, outside)),
            (f"{name}_b", (outside,)),
        ):
            if key not in stored and name not in SHAPES:
                continue
            if key not in stored:
                raise ArtifactError(f"{source} has no {key}; it has no GoogLeNet weights.")
            if stored[key].shape != shape:
                raise ArtifactError(
                    f"{source} has {key} of shape {stored[key].shape}; GoogLeNet has {shape}."
                )
            if not np.isfinite(stored[key]).all():
                raise ArtifactError(f"{source} has values in {key} that are not numbers.")
            weights[key] = stored[key].astype(np.float32)
    if SOFT_TISSUE in stored:
        weights[SOFT_TISSUE] = stored[SOFT_TISSUE].astype(np.float32)
    return weights


def _from_model(folder: Path, shapes: dict[str, tuple[int, int, int]]) -> Weights:
    card = read_card(folder)
    require_self_contained(folder / FEATURES)
    stored = {
        constant.name: numpy_helper.to_array(constant)
        for constant in onnx.load(str(folder / FEATURES)).graph.initializer
    }
    if f"{FIRST}_scale" not in stored:
        raise ArtifactError(
            f"The model {card.id} ({card.architecture}) has no GoogLeNet to start from."
        )
    weights: Weights = {SOFT_TISSUE: stored[SOFT_TISSUE]}
    for name in shapes:
        if f"{name}_W" not in stored:
            continue
        kernel = stored[f"{name}_W"].astype(np.float32) * stored[f"{name}_scale"]
        weights[f"{name}_W"] = kernel.transpose(2, 3, 1, 0)
        weights[f"{name}_b"] = stored[f"{name}_b"].astype(np.float32)
    return weights
