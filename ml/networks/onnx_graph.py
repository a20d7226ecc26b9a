"""Shared by all ONNX graphs here: the operator sets that they are written for, and their
serialization.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 17
ML_OPSET = 1
IR_VERSION = 8
Part = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]
"""Nodes of a graph, and their constants."""
_BACKWARDS = {
    "from_the_end": [-1],
    "beyond_the_beginning": [-(2**31)],
    "last_axis": [3],
    "backwards": [-1],
}
"""Inputs of ONNX's Slice for reversing the last axis."""


def model_of(
    nodes: Sequence[onnx.NodeProto],
    name: str,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """Return nodes and constants as a model that `onnx.compose` can merge with the other graphs."""
    graph = helper.make_graph(nodes, name, inputs, outputs, constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def serialized(model: onnx.ModelProto) -> bytes:
    """Return the content of the model's .onnx file.

    Raises:
        onnx.checker.ValidationError: an operator is unknown or used incorrectly.
        onnx.shape_inference.InferenceError: shapes or types contradict each other.
    """
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def both_ways_nodes(x: str) -> Part:
    """Return nodes that append their mirror images to images `x` (n, c, h, w): "ways" (2n, c, h,
    w). Their constants are part of `mean_of_both_ways_nodes`.
    """
    return [
        helper.make_node("Slice", [x, *_BACKWARDS], ["other_way"]),
        helper.make_node("Concat", [x, "other_way"], ["ways"], axis=0),
    ], []


def mean_of_both_ways_nodes(x: str, name: str = "maps") -> Part:
    """Return nodes that average the maps `x` (2n, c, h, w) of "ways" (`both_ways_nodes`), after
    mirroring back those of the mirror images: "<name>_mean" (n, c, h, w).
    """
    nodes = [
        helper.make_node("Split", [x], [f"{name}_one_way", f"{name}_other_way"], axis=0),
        helper.make_node("Slice", [f"{name}_other_way", *_BACKWARDS], [f"{name}_turned_back"]),
        helper.make_node("Add", [f"{name}_one_way", f"{name}_turned_back"], [f"{name}_of_both"]),
        helper.make_node("Mul", [f"{name}_of_both", "half"], [f"{name}_mean"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(value), constant) for constant, value in _BACKWARDS.items()
    ]
    return nodes, [*constants, numpy_helper.from_array(np.array(0.5, np.float32), "half")]


def standardized_nodes(x: str, mean: Sequence[float], std: Sequence[float]) -> Part:
    """Return nodes that subtract `mean` from three channels `x` (n, 3, h, w) and divide by `std`:
    "normalized" (n, 3, h, w).
    """
    nodes = [
        helper.make_node("Sub", [x, "imagenet_mean"], ["centered"]),
        helper.make_node("Div", ["centered", "imagenet_std"], ["normalized"]),
    ]
    return nodes, [
        numpy_helper.from_array(np.array(values, np.float32).reshape(1, 3, 1, 1), name)
        for name, values in (("imagenet_mean", mean), ("imagenet_std", std))
    ]
