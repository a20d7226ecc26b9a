"""The image in other contrasts, in Keras and as an ONNX graph: two of AlexNet's three input
channels.

One is the soft tissue normalized to a fixed level and spread, whatever window, screen or photograph
it came from; the other is the same without bone. Bone is the brightest structure and adjacent to
the thinnest hemorrhages, and networks that see it miss most hemorrhages along the skull
(docs/results/journal.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ml.networks.weights import SOFT_TISSUE

# gray levels: soft tissue is brighter than the first; below the second is background
BLACK, NOTHING = 0.05, 0.01
# soft tissue is darker than this share of the brightest patch, which is bone, whatever its gray
# level
WHITE, PATCH_PX = 0.88, 4
LEAST_SPREAD = 0.03  # minimum spread of soft tissue; less is noise, which must not be amplified


def contrasts(
    pictures: keras.KerasTensor, target: np.ndarray
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Return images (n, s, s, 1) in two other contrasts, both in 0..1.

    Leveled: soft tissue has the level and the spread of `target`; black stays black. Soft tissue
    comprises pixels that are neither black nor white, then those within two standard deviations of
    their mean: mostly brain. Without bone: the same, but bone, a pixel around it, and black areas
    are set to the level of soft tissue. If `target` has no third value, as in older weights, the
    second contrast is the leveled one again.
    """
    ops = keras.ops

    def moments(region: keras.KerasTensor) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        count = ops.sum(region, axis=(1, 2, 3), keepdims=True) + 1.0
        mean = ops.sum(pictures * region, axis=(1, 2, 3), keepdims=True) / count
        variance = (
            ops.sum(ops.square(pictures - mean) * region, axis=(1, 2, 3), keepdims=True) / count
        )
        return mean, ops.sqrt(variance + 1e-6)

    whitest = ops.max(ops.average_pool(pictures, PATCH_PX, PATCH_PX), axis=(1, 2, 3), keepdims=True)
    gray = ops.cast(ops.logical_and(pictures > BLACK, pictures < WHITE * whitest), "float32")
    mean, spread = moments(gray)
    mean, spread = moments(gray * ops.cast(ops.abs(pictures - mean) < 2 * spread, "float32"))
    scaled = (pictures - mean) / ops.maximum(spread, LEAST_SPREAD) * float(target[1]) + float(
        target[0]
    )
    shown = ops.cast(pictures > NOTHING, "float32")
    clipped = ops.clip(scaled, 0.0, 1.0) * shown
    if len(target) < 3:
        return clipped, clipped
    white = ops.cast(pictures >= WHITE * whitest, "float32")
    unmasked = shown * (1.0 - ops.max_pool(white, 3, 1, padding="same"))
    return clipped, clipped * unmasked + float(target[0]) * (1.0 - unmasked)


def contrasts_nodes(
    target: np.ndarray, takes: str
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], tuple[str, str]]:
    """Return ONNX nodes and constants that compute `contrasts` of `takes` (N, 1, s, s), and the
    names of both outputs; opset 17.

    One function, because it follows `contrasts` node by node, so that the two can be compared.
    """
    numbers = {
        "black": BLACK,
        "white_share": WHITE,
        "nothing": NOTHING,
        "least_spread": LEAST_SPREAD,
        "two": 2.0,
        "more": 1.0,
        "tiny": 1e-6,
        "lowest": 0.0,
        "highest": 1.0,
    }
    constants = [
        numpy_helper.from_array(np.array(value, np.float32), f"contrast_{name}")
        for name, value in numbers.items()
    ]
    constants.append(numpy_helper.from_array(np.asarray(target, np.float32), SOFT_TISSUE))
    constants += [
        numpy_helper.from_array(np.array([at], np.int64), f"contrast_{at}") for at in (0, 1)
    ]
    constants.append(numpy_helper.from_array(np.array([1, 2, 3], np.int64), "contrast_axes"))
    nodes: list[onnx.NodeProto] = []

    def add(kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        named = [
            operand if operand in (takes, SOFT_TISSUE) else f"contrast_{operand}"
            for operand in inputs
        ]
        nodes.append(helper.make_node(kind, named, [f"contrast_{name}"], **attributes))
        return name

    def moments(region: str, number: int) -> tuple[str, str]:
        count = add(
            "Add",
            [add("ReduceSum", [region, "axes"], f"inside_{number}", keepdims=1), "more"],
            f"count_{number}",
        )
        total = add(
            "ReduceSum",
            [add("Mul", [takes, region], f"shown_{number}"), "axes"],
            f"total_{number}",
            keepdims=1,
        )
        mean = add("Div", [total, count], f"mean_{number}")
        off = add("Sub", [takes, mean], f"off_{number}")
        squares = add(
            "Mul", [add("Mul", [off, off], f"squared_{number}"), region], f"squares_{number}"
        )
        variance = add(
            "Div",
            [add("ReduceSum", [squares, "axes"], f"sum_{number}", keepdims=1), count],
            f"variance_{number}",
        )
        return mean, add(
            "Sqrt", [add("Add", [variance, "tiny"], f"above_zero_{number}")], f"spread_{number}"
        )

    patches = add(
        "AveragePool", [takes], "patches", kernel_shape=[PATCH_PX] * 2, strides=[PATCH_PX] * 2
    )
    least_bone = add(
        "Mul",
        [add("ReduceMax", [patches], "whitest", axes=[1, 2, 3], keepdims=1), "white_share"],
        "least_bone",
    )
    between = add(
        "And",
        [
            add("Greater", [takes, "black"], "not_black"),
            add("Less", [takes, least_bone], "not_white"),
        ],
        "between",
    )
    soft = add("Cast", [between], "soft", to=TensorProto.FLOAT)
    mean, spread = moments(soft, 1)
    away = add("Abs", [add("Sub", [takes, mean], "from_mean")], "away")
    near = add("Less", [away, add("Mul", [spread, "two"], "twice")], "near")
    mean, spread = moments(
        add("Mul", [soft, add("Cast", [near], "near_float", to=TensorProto.FLOAT)], "brain"), 2
    )
    standard = add(
        "Div",
        [add("Sub", [takes, mean], "less_mean"), add("Max", [spread, "least_spread"], "divisor")],
        "standard",
    )
    level, width = (
        add("Gather", [SOFT_TISSUE, str(at)], name) for at, name in ((0, "level"), (1, "width"))
    )
    scaled = add(
        "Clip",
        [add("Add", [add("Mul", [standard, width], "wide"), level], "moved"), "lowest", "highest"],
        "clipped",
    )
    shown = add(
        "Cast", [add("Greater", [takes, "nothing"], "is_shown")], "shown", to=TensorProto.FLOAT
    )
    leveled = add("Mul", [scaled, shown], "levelled")
    if len(target) < 3:
        return nodes, constants, (f"contrast_{leveled}", f"contrast_{leveled}")
    white = add(
        "Cast",
        [add("GreaterOrEqual", [takes, least_bone], "is_white")],
        "white",
        to=TensorProto.FLOAT,
    )
    beside = add(
        "MaxPool", [white], "beside", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]
    )
    unmasked = add("Mul", [shown, add("Sub", ["more", beside], "not_beside")], "kept")
    filled = add("Mul", [level, add("Sub", ["more", unmasked], "left_out")], "filled")
    boneless = add("Add", [add("Mul", [leveled, unmasked], "uncovered"), filled], "boneless")
    return nodes, constants, (f"contrast_{leveled}", f"contrast_{boneless}")
