"""How a graph becomes a model and a file."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from ml.networks.onnx_graph import IR_VERSION, ML_OPSET, OPSET, model_of, serialized


def doubled(side: int) -> onnx.ModelProto:
    """Return "x" (N, 2) -> "y", which is said to be (N, side) and has the side 2."""
    return model_of(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "doubled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", side])],
    )


def test_a_model_is_served_from_its_bytes_and_says_for_which_versions_it_is() -> None:
    content = serialized(doubled(2))
    given = np.array([[1, 2], [3, 4]], np.float32)
    result = onnxruntime.InferenceSession(content).run(["y"], {"x": given})[0]
    assert result.tolist() == (2 * given).tolist()
    read = onnx.load_from_string(content)
    assert read.ir_version == IR_VERSION
    assert {item.domain: item.version for item in read.opset_import} == {
        "": OPSET,
        "ai.onnx.ml": ML_OPSET,
    }


def test_a_graph_whose_shapes_contradict_each_other_is_never_written() -> None:
    with pytest.raises(onnx.shape_inference.InferenceError):
        serialized(doubled(3))
