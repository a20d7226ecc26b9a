"""A scan's answer from its slices', by hand and as a graph."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from ml.evaluation.calibration import Platt
from ml.models.contract import held_out_of
from ml.networks.aggregation import (
    aggregate,
    aggregate_scans,
    aggregate_smoothed,
    answer_graph,
    calibration_graph,
    scan_probability,
    smoothed,
    smoothing_nodes,
)
from ml.networks.onnx_graph import model_of, serialized

PLATT, SCAN_PLATT = Platt(2.0, -0.5), Platt(0.7, 1.0)


def test_one_slice_keeps_its_decision() -> None:
    assert aggregate(np.array([1.25])) == pytest.approx(1.25)


def test_the_three_highest_slices_decide() -> None:
    assert aggregate(np.array([-9.0, 1, 4, -2, 7])) == pytest.approx(4)
    assert aggregate(np.array([2.0, 4])) == pytest.approx(3)


def test_slices_that_show_nothing_change_nothing_however_many_there_are() -> None:
    decisions = np.array([-2.0, 0.5, 3.0])
    assert aggregate(np.concatenate([decisions, np.full(50, -4.0)])) == aggregate(decisions)


def test_blood_in_neighboring_slices_counts_more_than_in_one() -> None:
    once, often = np.full(20, -3.0), np.full(20, -3.0)
    once[9], often[8:12] = 4, 4
    assert aggregate(often) > aggregate(once) > aggregate(np.full(20, -3.0))


def test_the_rule_of_a_series_smooths_first() -> None:
    decisions = np.array([0.0, 0, 8, 0, 0])
    assert aggregate_smoothed(decisions) == pytest.approx((2 + 4 + 2) / 3)


def test_scans_are_distinguished_by_their_numbers() -> None:
    decisions = np.array([1.0, 5, 5, 5, -2])
    assert aggregate_scans(decisions, np.array([0, 1, 1, 1, 2])).tolist() == pytest.approx(
        [1, 5, -2]
    )


def test_held_out_slices_give_held_out_scans() -> None:
    held = held_out_of(np.array([9.0, 1, 1, 1, 4]), np.array([3, 1, 2]), np.array([0, 1, 1, 1, 2]))
    assert held.slices.tolist() == [1, 2, 3] and held.scans.tolist() == [1]
    assert held.scan_decisions.tolist() == pytest.approx([1.0])


def test_neighbors_of_the_same_scan_decide_along() -> None:
    decisions, scans = np.array([4.0, 0, 0, 8, 3, 1, 2]), np.array([0, 0, 0, 0, 1, 2, 2])
    assert smoothed(decisions, scans).tolist() == [3, 1, 2, 6, 3, 1.25, 1.75]


@pytest.mark.parametrize("length", [1, 2, 3, 40])
def test_the_graph_smooths_as_numpy_does(length: int) -> None:
    nodes, constants = smoothing_nodes("decision")
    shapes = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 1])
        for name in ("decision", "smoothed")
    ]
    model = serialized(model_of(nodes, "smoothing", shapes[:1], shapes[1:], constants))
    decisions = np.random.default_rng(length).normal(0, 2, length).astype(np.float32)
    result = onnxruntime.InferenceSession(model).run(
        ["smoothed"], {"decision": decisions[:, np.newaxis]}
    )[0]
    assert result[:, 0] == pytest.approx(smoothed(decisions, np.zeros(length, int)), abs=1e-6)


@pytest.mark.parametrize("length", [1, 2, 3, 40])
def test_the_graph_answers_as_numpy_does(length: int) -> None:
    graph = answer_graph(PLATT, SCAN_PLATT)
    onnx.checker.check_model(graph, full_check=True)
    decisions = np.random.default_rng(length).normal(0, 2, length)
    given = {"decision": decisions.astype(np.float32)[:, np.newaxis]}
    slices, scan = onnxruntime.InferenceSession(graph.SerializeToString()).run(
        ["slice_probability", "scan_probability"], given
    )
    assert slices == pytest.approx(PLATT(decisions), abs=1e-6)
    assert scan == pytest.approx([scan_probability(decisions, PLATT, SCAN_PLATT)], abs=1e-6)
    if length == 1:
        assert scan[0] == slices[0]


@pytest.mark.parametrize(("length", "platt"), [(1, PLATT), (3, SCAN_PLATT)])
def test_a_decision_about_the_scan_itself_is_calibrated_by_its_length(
    length: int, platt: Platt
) -> None:
    session = onnxruntime.InferenceSession(calibration_graph(PLATT, SCAN_PLATT).SerializeToString())
    given = {
        "decision": np.zeros((length, 1), np.float32),
        "scan_decision": np.array([1.5], np.float32),
    }
    slices, scan = session.run(["slice_probability", "scan_probability"], given)
    assert slices == pytest.approx(PLATT(np.zeros(length)), abs=1e-6)
    assert scan == pytest.approx(platt(np.array([1.5])), abs=1e-6)
