"""A graph holds all that it needs, or is refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ml.artifacts.onnx_check import DEEPEST, require_self_contained
from ml.catalogue import STARTER_DIR, STARTER_SERIES_DIR
from ml.errors import ArtifactError
from ml.inference.predictor import Predictor
from tests.ml.conftest import features_graph, head_graph

Change = Callable[[onnx.ModelProto], None]


def outside(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """Return a tensor whose values lie in a file that the attacker would like to be read."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")
    return tensor


def a_tensor() -> onnx.TensorProto:
    """Return three numbers."""
    return numpy_helper.from_array(np.zeros(3, np.float32), "numbers")


def subgraph(node: onnx.NodeProto) -> onnx.GraphProto:
    """Return a graph of one node."""
    return helper.make_graph(
        [node], "inner", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    )


def with_weights_outside(model: onnx.ModelProto) -> None:
    outside(model.graph.initializer[0])


def with_only_a_location(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def with_a_constant_outside(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["y"], value=outside(a_tensor())))


def with_a_branch_outside(model: onnx.ModelProto) -> None:
    branch = subgraph(helper.make_node("Constant", [], ["y"], value=outside(a_tensor())))
    model.graph.node.append(
        helper.make_node("If", ["maps"], ["y"], then_branch=branch, else_branch=branch)
    )


def with_sparse_weights_outside(model: onnx.ModelProto) -> None:
    indices = numpy_helper.from_array(np.zeros(3, np.int64), "indices")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(outside(a_tensor()), indices, [9])
    )


def with_a_foreign_operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Run", ["maps"], ["y"], domain="com.example"))


def with_a_foreign_operator_in_a_branch(model: onnx.ModelProto) -> None:
    branch = subgraph(helper.make_node("Run", ["maps"], ["y"], domain="com.microsoft"))
    model.graph.node.append(
        helper.make_node("If", ["maps"], ["y"], then_branch=branch, else_branch=branch)
    )


def with_a_foreign_set_of_operators(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def with_a_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    model.functions.append(
        helper.make_function("", "Mine", ["x"], ["y"], [node], [helper.make_opsetid("", 17)])
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (with_weights_outside, "keeps weights in another file"),
        (with_only_a_location, "keeps weights in another file"),
        (with_a_constant_outside, "keeps weights in another file"),
        (with_a_branch_outside, "keeps weights in another file"),
        (with_sparse_weights_outside, "keeps weights in another file"),
        (with_a_foreign_operator, "uses operators of 'com.example'"),
        (with_a_foreign_operator_in_a_branch, "uses operators of 'com.microsoft'"),
        (with_a_foreign_set_of_operators, "uses operators of 'com.example'"),
        (with_a_function, "defines its own functions"),
    ],
)
def test_a_model_that_needs_more_than_itself_is_refused(
    tiny_model: Callable[..., Path], change: Change, sentence: str
) -> None:
    model = onnx.load_from_string(head_graph())
    change(model)
    with pytest.raises(ArtifactError, match=rf"The model's head\.onnx {sentence}"):
        Predictor(tiny_model(head=model.SerializeToString()), checks_head_ct=False)


@pytest.mark.parametrize("folder", [STARTER_DIR, STARTER_SERIES_DIR])
@pytest.mark.parametrize("name", ["features.onnx", "head.onnx"])
def test_the_models_that_ship_are_self_contained(folder: Path, name: str) -> None:
    require_self_contained(folder / name)


def nested(depth: int) -> bytes:
    """Return a model whose graph has a branch that has a branch, and so on."""
    graph = b""
    for _ in range(depth):  # graph.node = node.attribute = attribute.g = the graph so far
        for number in (6, 5, 1):
            graph = bytes([number << 3 | 2]) + length_of(graph) + graph
    return bytes([7 << 3 | 2]) + length_of(graph) + graph


def length_of(content: bytes) -> bytes:
    """Return how protobuf writes the length of `content`."""
    left, written = len(content), b""
    while left > 127:
        written += bytes([left & 127 | 128])
        left >>= 7
    return written + bytes([left])


@pytest.mark.parametrize(
    "content",
    [
        b"\x3a\x05",
        b"\x3b",
        b"\xff" * 11,
        b"\x38\x01",
        b"\x42\x02\x0a\xff",
        nested(DEEPEST),
        features_graph()[:-1],
        b"ORTM" * 4,
    ],
)
def test_bytes_that_protobuf_never_writes_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "head.onnx").write_bytes(content)
    with pytest.raises(
        ArtifactError, match=r"The model's head\.onnx is not a readable ONNX graph\."
    ):
        require_self_contained(tmp_path / "head.onnx")
