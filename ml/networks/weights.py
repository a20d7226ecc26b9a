"""AlexNet's convolutional weights as arrays: the two layouts, and loading of initial weights.

    owt        torchvision's, "One weird trick" (A. Krizhevsky 2014): 64-192-384-256-256 channels,
               no local response normalization
    original   AlexNet of 2012 as trained with Caffe: 96-256-384-384-256 channels, local response
               normalization after the first two convolutions; conv2, conv4 and conv5 in two groups
               if the weights are grouped

Weights are rounded to half precision, as in the exported file, before any use, so that the export
computes exactly what was evaluated.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ml.artifacts.card import FEATURES
from ml.artifacts.folder import read_card
from ml.artifacts.onnx_check import require_self_contained
from ml.errors import ArtifactError
from ml.networks.torch_weights import read_tensors

Weights = dict[str, np.ndarray]
"""`conv1_W` ... `conv5_W` float32 (height, width, in / groups, out) and `conv1_b` ... `conv5_b`
float32 (out,); perhaps `SOFT_TISSUE`.
"""

SOFT_TISSUE = "soft_tissue"
"""Key for weights trained with other contrasts in the second and third channel
(`ml.networks.contrasts`): level and spread of soft tissue (2,); a third value means that the third
channel has no bone.
"""
CONTRASTS = (0.4, 0.12, 1.0)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "pool5")
GROUPED = ("conv2", "conv4", "conv5")


@dataclass(frozen=True)
class Convolution:
    """One convolutional layer, optionally after 3 x 3 max pooling with stride 2."""

    name: str
    kernel: int
    channels_in: int
    channels: int
    stride: int
    padding: int
    pooled_before: bool


@dataclass(frozen=True)
class Layout:
    """A variant of AlexNet. `mean` and `std` normalize its three channels, for gray values in
    0..1.
    """

    name: str
    convolutions: tuple[Convolution, ...]
    normalizes: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def up_to(self, layer: str) -> tuple[Convolution, ...]:
        """Return the convolutions that `layer` needs."""
        return self.convolutions[: 5 if layer == "pool5" else LAYERS.index(layer) + 1]


def _convolutions(widths: tuple[int, ...], first_padding: int) -> tuple[Convolution, ...]:
    shapes = (
        (11, 4, first_padding, False),
        (5, 1, 2, True),
        (3, 1, 1, True),
        (3, 1, 1, False),
        (3, 1, 1, False),
    )
    return tuple(
        Convolution(
            f"conv{number + 1}", kernel, widths[number], widths[number + 1], stride, padding, pooled
        )
        for number, (kernel, stride, padding, pooled) in enumerate(shapes)
    )


OWT = Layout(
    "owt", _convolutions((3, 64, 192, 384, 256, 256), 2), False, IMAGENET_MEAN, IMAGENET_STD
)
# Blue, green, red in 0..255 minus their means; the image is gray, so the order only matters for the
# means.
ORIGINAL = Layout(
    "original",
    _convolutions((3, 96, 256, 384, 384, 256), 0),
    True,
    (104 / 255, 117 / 255, 123 / 255),
    (1 / 255, 1 / 255, 1 / 255),
)
LAYOUTS = {layout.name: layout for layout in (OWT, ORIGINAL)}
TORCHVISION = {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10}


def layout_of(weights: Weights) -> Layout:
    """Return the layout that matches the first convolution of the weights; torchvision's if none
    does.
    """
    return ORIGINAL if weights["conv1_W"].shape[-1] == ORIGINAL.convolutions[0].channels else OWT


def groups_of(weights: Weights, name: str) -> int:
    """Return the number of groups of a convolution: 1 or 2."""
    convolution = next(
        candidate for candidate in layout_of(weights).convolutions if candidate.name == name
    )
    return convolution.channels_in // int(weights[f"{name}_W"].shape[2])


def load_weights(
    init: Path | str, seed: int, layer: str, *, layout: str = "owt", groups: int | None = None
) -> Weights:
    """Return initial weights up to `layer`.

    Args:
        init: "random", a .npz file of arrays, PyTorch's file of torchvision's AlexNet (.pth or
            .pt), or a model folder of ours; no code in them is executed.
        seed: of random weights.
        layer: the last layer that is needed.
        layout: of random weights.
        groups: 1 merges grouped weights into one group, which is equivalent, with zeros between the
            groups, and trains faster on CPUs; 2 requires grouped weights; None leaves them
            unchanged.

    Raises:
        ArtifactError: the file is missing, unreadable, of another layout, or not grouped as
            requested.
    """
    if init == "random":
        return random_weights(seed, layout, groups or 1)
    path = Path(init)
    weights = _from_model(path) if path.is_dir() else _from_file(path)
    _require_layout(weights, path.name, layer)
    if groups == 2 and any(
        groups_of(weights, name) != 2 for name in GROUPED if f"{name}_W" in weights
    ):
        raise ArtifactError(f"The convolutions of {path.name} are not grouped; choose groups = 1.")
    return rounded(ungrouped(weights) if groups == 1 else weights)


def random_weights(seed: int, layout: str = "owt", groups: int = 1) -> Weights:
    """Return He-initialized weights (He et al. 2015) with zero biases; deterministic for a seed."""
    random = np.random.default_rng(seed)
    chosen = LAYOUTS[layout]
    weights: Weights = {}
    for convolution in chosen.convolutions:
        kernel, name = convolution.kernel, convolution.name
        channels_in = convolution.channels_in // (groups if name in GROUPED else 1)
        spread = np.sqrt(2 / (kernel * kernel * channels_in))
        if name == "conv1":  # He initialization assumes inputs of unit variance
            spread *= float(np.mean(chosen.std)) / float(np.mean(IMAGENET_STD))
        weights[f"{name}_W"] = (
            random.standard_normal((kernel, kernel, channels_in, convolution.channels)) * spread
        ).astype(np.float32)
        weights[f"{name}_b"] = np.zeros(convolution.channels, np.float32)
    return rounded(weights)


def rounded(weights: Weights) -> Weights:
    """Return the weights rounded to half precision, as float32."""
    return {name: values.astype(np.float16).astype(np.float32) for name, values in weights.items()}


def ungrouped(weights: Weights) -> Weights:
    """Return equivalent weights of a single group, with zeros between the channels of different
    groups.
    """
    joined = dict(weights)
    for name in GROUPED:
        if f"{name}_W" in weights and groups_of(weights, name) == 2:
            grouped = weights[f"{name}_W"]
            height, width, half_in, out = grouped.shape
            whole = np.zeros((height, width, 2 * half_in, out), grouped.dtype)
            whole[:, :, :half_in, : out // 2] = grouped[..., : out // 2]
            whole[:, :, half_in:, out // 2 :] = grouped[..., out // 2 :]
            joined[f"{name}_W"] = whole
    return joined


def _require_layout(weights: Weights, source: str, layer: str) -> None:
    if "conv1_W" not in weights:
        raise ArtifactError(
            f"{source} has no conv1_W; initial weights are those of AlexNet's convolutions."
        )
    layout = layout_of(weights)
    for convolution in layout.up_to(layer):
        name, kernel = convolution.name, convolution.kernel
        for key, shape in (
            (f"{name}_W", (kernel, kernel, convolution.channels_in, convolution.channels)),
            (f"{name}_b", (convolution.channels,)),
        ):
            if key not in weights:
                raise ArtifactError(
                    f"{source} has no {key}; {layer} needs all convolutions up to it."
                )
            grouped = (
                (kernel, kernel, convolution.channels_in // 2, convolution.channels)
                if name in GROUPED and key.endswith("_W")
                else shape
            )
            if weights[key].shape not in (shape, grouped):
                raise ArtifactError(
                    f"{source} has {key} of shape {weights[key].shape}; AlexNet's layout"
                    f" {layout.name!r} has {shape}."
                )
            if not np.isfinite(weights[key]).all():
                raise ArtifactError(f"{source} has values in {key} that are not finite.")


def _from_file(path: Path) -> Weights:
    if not path.is_file():
        raise ArtifactError(f"There are no initial weights at {path}.")
    if path.suffix in (".pth", ".pt"):
        names = {
            f"features.{number}.{kind}": (conv, kind)
            for conv, number in TORCHVISION.items()
            for kind in ("weight", "bias")
        }
        weights: Weights = {}
        for name, values in read_tensors(path, list(names)).items():
            conv, kind = names[name]
            if values.ndim != (4 if kind == "weight" else 1):
                raise ArtifactError(
                    f"{path.name} has {name} of shape {values.shape}; it is not"
                    " torchvision's AlexNet."
                )
            # OIHW -> HWIO
            weights[f"{conv}_{'W' if kind == 'weight' else 'b'}"] = (
                values.transpose(2, 3, 1, 0) if kind == "weight" else values
            )
        if not weights:
            raise ArtifactError(
                f"{path.name} has no features.0.weight; it is not torchvision's AlexNet."
            )
        return weights
    return arrays_of_file(path)


def arrays_of_file(path: Path) -> Weights:
    """Return the arrays of a .npz file by name, without executing code in it.

    Raises:
        ArtifactError: it is missing or unreadable.
    """
    if not path.is_file():
        raise ArtifactError(f"There are no initial weights at {path}.")
    try:
        with np.load(path, allow_pickle=False) as opened:
            return {name: opened[name] for name in opened.files}
    # TypeError: a .npy file holds a single array without names
    except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile) as err:
        raise ArtifactError(f"{path.name} is not a readable .npz file of arrays.") from err


def _from_model(folder: Path) -> Weights:
    card = read_card(folder)
    arrays: dict[str, Any] = {}
    require_self_contained(folder / FEATURES)
    for constant in onnx.load(str(folder / FEATURES)).graph.initializer:
        arrays[constant.name] = numpy_helper.to_array(constant).astype(np.float32)
    weights = {
        name: values.transpose(2, 3, 1, 0) if name.endswith("_W") else values
        for name, values in arrays.items()
        if name.startswith("conv") or name == SOFT_TISSUE
    }
    if "conv1_W" not in weights:
        raise ArtifactError(
            f"The model {card.id} ({card.architecture}) has no AlexNet convolutions to start from."
        )
    return weights
