"""What all ONNX graphs of ours share: the operator sets they are written for, and how one becomes
the content of a file.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

OPSET = 17
ML_OPSET = 1
IR_VERSION = 8


def model_of(
    nodes: Sequence[onnx.NodeProto],
    name: str,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """Return nodes and constants as a model that `onnx.compose` can merge with the others."""
    graph = helper.make_graph(nodes, name, inputs, outputs, constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def serialized(model: onnx.ModelProto) -> bytes:
    """Return the content of the model's .onnx file.

    Raises:
        onnx.checker.ValidationError: an operator is unknown or used in a wrong way.
        onnx.shape_inference.InferenceError: shapes or types contradict each other.
    """
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
