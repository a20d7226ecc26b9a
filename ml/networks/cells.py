"""Cell scores of a slice: its decision and a few regional scores that generalize across hospitals,
in numpy and in ONNX.

Pooled feature maps also encode the scanner and the level of the slice, to which a network over
slices overfits if there are few patients (docs/results/journal.md, "What fine-tuning unlearns").
"""

from __future__ import annotations

import keras
import numpy as np
from onnx import helper, numpy_helper

from ml.networks.fine_tuning import Tuned, slice_decisions
from ml.networks.onnx_graph import Part

REGIONS = 4
"""Maximum number of regions per side that summarize the grid of cells: 4 x 4, overlapping by a row
or column of cells.
"""


def decisions_of(maps: np.ndarray, tuned: Tuned) -> np.ndarray:
    """Return the decisions of slices, float64 (n,), from their maps (n, h, w, c)."""
    return _decisions_of(_cells_of(maps, tuned))


def evidence_of(maps: np.ndarray, tuned: Tuned) -> np.ndarray:
    """Return float32 (n, 1 + r * r) from maps (n, h, w, c): the slice's decision, and the maximum
    cell score in each region.

    r is `REGIONS`, or h for smaller maps.
    """
    cells = _cells_of(maps, tuned)
    parts, stride, kernel = _regions(cells.shape[1])
    bands = [slice(stride * part, stride * part + kernel) for part in range(parts)]
    regions = [cells[:, rows, columns].max(axis=(1, 2)) for rows in bands for columns in bands]
    return np.column_stack([_decisions_of(cells), *regions]).astype(np.float32)


def decision_nodes(tuned: Tuned, side: int, channels: int) -> Part:
    """Return `decisions_of` in ONNX: "maps" (N, side, side, channels) ->
    "cells_decision" (N, 1).
    """
    constants: dict[str, np.ndarray] = {
        "cell_W": tuned.cell_weights.astype(np.float32).reshape(channels, 1),
        "cell_b": np.array([tuned.cell_bias], np.float32),
        "cells_of_a_slice": np.array([-1, side * side], np.int64),
        "typical": np.array(np.log(10.0), np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["maps", "cell_W"], ["weighed"]),
        helper.make_node("Add", ["weighed", "cell_b"], ["cells"]),
        helper.make_node("Reshape", ["cells", "cells_of_a_slice"], ["flat_cells"]),
        helper.make_node("ReduceLogSumExp", ["flat_cells"], ["summed_cells"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["summed_cells", "typical"], ["cells_decision"]),
    ]
    return nodes, [numpy_helper.from_array(value, name) for name, value in constants.items()]


def evidence_nodes(tuned: Tuned, side: int, channels: int) -> Part:
    """Return `evidence_of` in ONNX: "maps" (N, side, side, channels) -> "features"
    (N, 1 + r * r).
    """
    nodes, constants = decision_nodes(tuned, side, channels)
    parts, stride, kernel = _regions(side)
    shapes = {"one_map": [-1, 1, side, side], "regions_of_a_slice": [-1, parts * parts]}
    constants += [
        numpy_helper.from_array(np.array(shape, np.int64), name) for name, shape in shapes.items()
    ]
    nodes += [
        helper.make_node("Reshape", ["cells", "one_map"], ["cells_as_map"]),
        helper.make_node(
            "MaxPool",
            ["cells_as_map"],
            ["regions"],
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
        ),
        helper.make_node("Reshape", ["regions", "regions_of_a_slice"], ["flat_regions"]),
        helper.make_node("Concat", ["cells_decision", "flat_regions"], ["features"], axis=1),
    ]
    return nodes, constants


def _cells_of(maps: np.ndarray, tuned: Tuned) -> np.ndarray:
    return np.asarray(maps, np.float32) @ tuned.cell_weights.astype(np.float32) + np.float32(
        tuned.cell_bias
    )


def _decisions_of(cells: np.ndarray) -> np.ndarray:
    flat = keras.ops.convert_to_tensor(cells.reshape(len(cells), -1))
    return np.asarray(keras.ops.convert_to_numpy(slice_decisions(flat)), np.float64)[:, 0]


def _regions(side: int) -> tuple[int, int, int]:
    """Return number, spacing and width of the regions along a side of that many cells."""
    parts = min(REGIONS, side)
    stride = side // parts
    return parts, stride, side - stride * (parts - 1)
