"""The head of a recurrent architecture as an ONNX graph, written node by node.

ONNX orders the gates of an LSTM as input, output, forget, cell, and Keras as input, forget, cell,
output. Those of a GRU have the same order in both, and Keras's `reset_after` is ONNX's
`linear_before_reset`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from ml.evaluation.calibration import Platt
from ml.networks.aggregation import answer_graph, calibration_graph
from ml.networks.cells import evidence_nodes
from ml.networks.fine_tuning import Tuned
from ml.networks.onnx_graph import model_of, serialized


@dataclass(frozen=True, kw_only=True)
class RecurrentHead:
    """A trained recurrent head.

    Attributes:
        cell: "lstm" or "gru".
        reader: Keras's kernel, recurrent kernel and bias, for one direction or both.
        dense: kernel and bias of the layers "projection", "step" and "evidence".
        mean, spread: (f,) of the standardization.
        maps: h, w, c.
        by_rows: the sequence consists of the rows of each slice, not of slices.
        cells: the cells whose scores are the input and are corrected (`ml.networks.cells`); None
            for pooled maps.
    """

    cell: str
    reader: Sequence[np.ndarray]
    dense: Mapping[str, Sequence[np.ndarray]]
    mean: np.ndarray
    spread: np.ndarray
    maps: Sequence[int]
    by_rows: bool
    cells: Tuned | None = None


def head_to_onnx(head: RecurrentHead, platt: Platt, scan_platt: Platt) -> bytes:
    """Return the head graph: "maps" (N, h, w, c) -> "slice_probability" (N,), "scan_probability"
    (1,).

    Args:
        head: the trained head.
        platt, scan_platt: calibrations of slices and scans.
    """
    gates = _gates(head.cell, head.reader)
    features, constants = _features(head)
    nodes = [*features, *_states(head, gates["R"]), *_whole(head)]
    outputs: list[tuple[str, Sequence[str | int]]] = [("whole", ["N", 1])]
    if not head.by_rows:
        nodes += _slices_and_scan(head)
        outputs = [("own", ["N", 1]), ("scan", [1])]
    used = {name for node in nodes for name in node.input}
    model = model_of(
        nodes,
        "reader",
        [helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["N", *head.maps])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [constant for constant in (*_constants(head, gates), *constants) if constant.name in used],
    )
    model = compose.add_prefix(model, "reader_", rename_inputs=False)
    if head.by_rows:
        answers, joints = answer_graph(platt, scan_platt), [("reader_whole", "decision")]
    else:
        answers = calibration_graph(platt, scan_platt)
        joints = [("reader_own", "decision"), ("reader_scan", "scan_decision")]
    whole = compose.merge_models(model, answers, io_map=joints)
    return serialized(whole)


def _constants(head: RecurrentHead, gates: Mapping[str, np.ndarray]) -> list[onnx.TensorProto]:
    values: dict[str, np.ndarray] = {"mean": head.mean, "spread": head.spread, **gates}
    for name, (kernel, bias) in head.dense.items():
        values |= {f"{name}_W": kernel, f"{name}_b": bias}
    directions, _, units = gates["R"].shape
    shapes = {
        "one": [1],
        "each_step": [0, 0, directions * units],
        "line": [-1, 1],
        "single": [1],
        "zero": [0],
    }
    return [
        numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name)
        for name, value in values.items()
    ] + [numpy_helper.from_array(np.array(shape, np.int64), name) for name, shape in shapes.items()]


def _features(head: RecurrentHead) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return nodes "maps" -> "features" (N, f), or (N, h, f) for rows, and their constants; with
    cells also "corrected" (N, 1, 1), their decision.
    """
    if head.cells is not None:
        nodes, constants = evidence_nodes(head.cells, head.maps[0], head.maps[2])
        corrected = helper.make_node("Unsqueeze", ["cells_decision", "one"], ["corrected"])
        return [*nodes, corrected], constants
    axes = [2] if head.by_rows else [1, 2]
    nodes = [
        helper.make_node("ReduceMean", ["maps"], ["average"], axes=axes, keepdims=0),
        helper.make_node("ReduceMax", ["maps"], ["highest_value"], axes=axes, keepdims=0),
        helper.make_node("Concat", ["average", "highest_value"], ["features"], axis=-1),
    ]
    return nodes, []


def _states(head: RecurrentHead, recurrent: np.ndarray) -> list[onnx.NodeProto]:
    """Return nodes "features" -> "states" (steps, sequences, directions x units)."""
    directions, _, units = recurrent.shape
    direction = "bidirectional" if directions == 2 else "forward"
    more: dict[str, Any] = {"linear_before_reset": 1} if head.cell == "gru" else {}
    # The recurrent layer takes (steps, sequences, features): slices are the steps of one sequence;
    # rows are the steps of one sequence per slice.
    as_sequence = (
        helper.make_node("Transpose", ["projected"], ["sequence"], perm=[1, 0, 2])
        if head.by_rows
        else helper.make_node("Unsqueeze", ["projected", "one"], ["sequence"])
    )
    return [
        helper.make_node("Sub", ["features", "mean"], ["centered"]),
        helper.make_node("Div", ["centered", "spread"], ["standard"]),
        helper.make_node("MatMul", ["standard", "projection_W"], ["projection_product"]),
        helper.make_node("Add", ["projection_product", "projection_b"], ["projection_sum"]),
        helper.make_node("Relu", ["projection_sum"], ["projected"]),
        as_sequence,
        helper.make_node(
            head.cell.upper(),
            ["sequence", "W", "R", "B"],
            ["Y"],
            hidden_size=units,
            direction=direction,
            **more,
        ),
        helper.make_node("Transpose", ["Y"], ["both_directions"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["both_directions", "each_step"], ["states"]),
    ]


def _whole(head: RecurrentHead) -> list[onnx.NodeProto]:
    """Return nodes "states" -> "whole" (sequences, 1): the smooth maximum of the evidence."""
    return [
        *_decided("evidence", head.cells),
        helper.make_node("ReduceLogSumExp", ["evidence"], ["summed"], axes=[0], keepdims=0),
        helper.make_node("Shape", ["states"], ["shape"], start=0, end=1),
        helper.make_node("Cast", ["shape"], ["steps"], to=TensorProto.FLOAT),
        helper.make_node("Log", ["steps"], ["log_steps"]),
        helper.make_node("Sub", ["summed", "log_steps"], ["whole"]),
    ]


def _slices_and_scan(head: RecurrentHead) -> list[onnx.NodeProto]:
    """Return nodes "states" and "whole" -> "own" (N, 1), the decisions of slices, and "scan" (1,),
    which for a single slice equals that of the slice.
    """
    return [
        *_decided("step", head.cells),
        helper.make_node("Reshape", ["step", "line"], ["own"]),
        helper.make_node("Equal", ["shape", "single"], ["stands_alone"]),
        helper.make_node("ReduceMax", ["own"], ["largest_own"], axes=[0, 1], keepdims=0),
        helper.make_node("Squeeze", ["whole"], ["whole_number"]),
        helper.make_node("Where", ["stands_alone", "largest_own", "whole_number"], ["scan"]),
    ]


def _decided(name: str, cells: Tuned | None) -> list[onnx.NodeProto]:
    """Return nodes "states" (N, 1, units) -> `name` (N, 1, 1): a dense layer, added to the decision
    of the cells if there are any.
    """
    product = helper.make_node("MatMul", ["states", f"{name}_W"], [f"{name}_product"])
    if cells is None:
        return [product, helper.make_node("Add", [f"{name}_product", f"{name}_b"], [name])]
    correction = helper.make_node("Add", [f"{name}_product", f"{name}_b"], [f"{name}_correction"])
    return [
        product,
        correction,
        helper.make_node("Add", [f"{name}_correction", "corrected"], [name]),
    ]


def _gates(cell: str, reader: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return W (directions, gates x units, inputs), R and B from Keras's arrays."""
    kernels, recurrents, biases = [], [], []
    for kernel, recurrent, bias in zip(reader[0::3], reader[1::3], reader[2::3], strict=True):
        if cell == "lstm":
            kernels.append(_reordered(kernel).T)
            recurrents.append(_reordered(recurrent).T)
            biases.append(np.concatenate([_reordered(bias), np.zeros_like(bias)]))
        else:
            kernels.append(kernel.T)
            recurrents.append(recurrent.T)
            biases.append(np.concatenate([bias[0], bias[1]]))
    return {"W": np.stack(kernels), "R": np.stack(recurrents), "B": np.stack(biases)}


def _reordered(values: np.ndarray) -> np.ndarray:
    """Reorder the gates i, f, c, o along the last axis to i, o, f, c."""
    entered, forgotten, cell, emitted = np.split(values, 4, axis=-1)
    return np.concatenate([entered, emitted, forgotten, cell], axis=-1)
