"""How a slice architecture predicts a scan, and the calibration of slices and scans, once in numpy
and once as an ONNX graph.

The scan's decision is the mean of its three highest slice decisions: it does not depend on the
slice thickness, and a single atypical slice does not decide alone. A scan of one slice has that
slice's decision and its calibration. An architecture for series first averages each slice with its
neighbors, since a hemorrhage rarely ends within one slice. Other rules were compared:
docs/results/journal.md.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ml.evaluation.calibration import Platt
from ml.networks.onnx_graph import model_of

HIGHEST = 3
KERNEL = np.array([0.25, 0.5, 0.25])
"""The weights of the previous slice, the slice itself and the next slice in its smoothed
decision.
"""


def by_scan(values: np.ndarray, scans: np.ndarray) -> list[np.ndarray]:
    """Return the values of slices (n, ...) scan by scan; `scans` (n,) is the nondecreasing scan
    number of each slice.
    """
    return np.split(values, np.flatnonzero(np.diff(scans) != 0) + 1)


def smoothed(decisions: np.ndarray, scans: np.ndarray) -> np.ndarray:
    """Return decisions of slices (n,) averaged with those of their neighbors in the scan, float64
    (n,).

    The first and the last slice stand in for their missing neighbors, so a single slice keeps its
    decision. `scans` (n,) is the nondecreasing scan number of each slice.
    """
    parts = by_scan(np.asarray(decisions, np.float64), scans)
    return np.concatenate(
        [np.convolve(np.pad(part, 1, mode="edge"), KERNEL, "valid") for part in parts]
    )


def aggregate(decisions: np.ndarray) -> float:
    """Return the decision of a scan from those of its slices (n,), n >= 1: the mean of the three
    highest, or of all if there are fewer.
    """
    values = np.asarray(decisions, np.float64)
    return float(np.sort(values)[-HIGHEST:].mean())


def aggregate_smoothed(decisions: np.ndarray) -> float:
    """Return the decision of a scan from those of its slices (n,), after averaging each slice with
    its neighbors.
    """
    return aggregate(smoothed(decisions, np.zeros(len(decisions), int)))


def aggregate_scans(decisions: np.ndarray, scans: np.ndarray) -> np.ndarray:
    """Return the decision of each scan, float64 (s,), from those of all slices (n,); `scans` (n,)
    is the nondecreasing scan number of each slice, 0..s-1.
    """
    return np.array([aggregate(part) for part in by_scan(np.asarray(decisions), scans)])


def scan_probability(decisions: np.ndarray, platt: Platt, scan_platt: Platt) -> float:
    """Return the probability of the scan whose slices have these decisions (n,)."""
    return float(
        (platt if len(decisions) == 1 else scan_platt)(np.array([aggregate(decisions)]))[0]
    )


def smoothing_nodes(decision: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return the ONNX nodes that compute `smoothed` for one scan, `decision` (N, 1) -> "smoothed"
    (N, 1), and their constants.
    """
    shapes = {"one_line": [1, 1, -1], "beside": [0, 0, 1, 0, 0, 1], "one_column": [-1, 1]}
    constants = [
        numpy_helper.from_array(np.array(shape, np.int64), name) for name, shape in shapes.items()
    ]
    constants.append(numpy_helper.from_array(KERNEL.astype(np.float32).reshape(1, 1, 3), "kernel"))
    nodes = [
        helper.make_node("Reshape", [decision, "one_line"], ["line"]),
        helper.make_node("Pad", ["line", "beside"], ["padded"], mode="edge"),
        helper.make_node("Conv", ["padded", "kernel"], ["averaged"]),
        helper.make_node("Reshape", ["averaged", "one_column"], ["smoothed"]),
    ]
    return nodes, constants


def answer_graph(platt: Platt, scan_platt: Platt) -> onnx.ModelProto:
    """Return "decision" (N, 1) -> "slice_probability" (N,), "scan_probability" (1,): aggregation,
    then both calibrations.
    """
    nodes = [
        helper.make_node("Min", ["slices", "highest"], ["counted"]),
        helper.make_node("TopK", ["flat", "counted"], ["top", "places_of_top"]),
        helper.make_node("ReduceMean", ["top"], ["scan_decision"], axes=[0], keepdims=1),
    ]
    constants = [numpy_helper.from_array(np.array([HIGHEST], np.int64), "highest")]
    return _calibrated(nodes, constants, [], platt, scan_platt)


def calibration_graph(platt: Platt, scan_platt: Platt) -> onnx.ModelProto:
    """Return "decision" (N, 1), "scan_decision" (1,) -> both probabilities, for architectures that
    have their own scan decision.
    """
    return _calibrated(
        [],
        [],
        [helper.make_tensor_value_info("scan_decision", TensorProto.FLOAT, [1])],
        platt,
        scan_platt,
    )


def _calibrated(
    decide: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    more_inputs: list[onnx.ValueInfoProto],
    platt: Platt,
    scan_platt: Platt,
) -> onnx.ModelProto:
    """Return the graph in which `decide` makes "scan_decision" (1,) of "flat" (N,) and "slices"
    (1,), unless it is an input.
    """
    for name, value in (
        ("slope", platt.slope),
        ("offset", platt.offset),
        ("scan_slope", scan_platt.slope),
        ("scan_offset", scan_platt.offset),
    ):
        constants.append(numpy_helper.from_array(np.array([value], np.float32), name))
    constants.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    nodes = [
        helper.make_node("Squeeze", ["decision", "one"], ["flat"]),
        helper.make_node("Shape", ["flat"], ["slices"]),
        *decide,
        helper.make_node("Mul", ["flat", "slope"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["slice_probability"]),
        helper.make_node("Equal", ["slices", "one"], ["is_one_slice"]),
        helper.make_node("Where", ["is_one_slice", "slope", "scan_slope"], ["own_slope"]),
        helper.make_node("Where", ["is_one_slice", "offset", "scan_offset"], ["own_offset"]),
        helper.make_node("Mul", ["scan_decision", "own_slope"], ["scan_scaled"]),
        helper.make_node("Add", ["scan_scaled", "own_offset"], ["scan_logit"]),
        helper.make_node("Sigmoid", ["scan_logit"], ["scan_probability"]),
    ]
    inputs = [helper.make_tensor_value_info("decision", TensorProto.FLOAT, ["N", 1]), *more_inputs]
    outputs = [
        helper.make_tensor_value_info("slice_probability", TensorProto.FLOAT, ["N"]),
        helper.make_tensor_value_info("scan_probability", TensorProto.FLOAT, [1]),
    ]
    return model_of(nodes, "answers", inputs, outputs, constants)
