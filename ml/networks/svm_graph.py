"""The head with a support vector machine as an ONNX graph: pooling, scaler, PCA, SVM, aggregation
and calibration.
"""

from __future__ import annotations

import warnings

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper
from skl2onnx import to_onnx as sklearn_to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.pipeline import Pipeline

from ml.evaluation.calibration import Platt
from ml.networks.aggregation import answer_graph
from ml.networks.onnx_graph import IR_VERSION, ML_OPSET, OPSET, model_of, serialized


def head_to_onnx(
    svm: Pipeline, platt: Platt, scan_platt: Platt, pooling: str, side: int, channels: int
) -> bytes:
    """Return the head graph: "maps" (N, h, w, c) -> "slice_probability" (N,), "scan_probability"
    (1,).

    It merges three graphs: pooling; scaler, PCA and SVM; aggregation and calibration.
    """
    width = channels * (2 if pooling == "both" else 1)
    front = _pooling_graph(pooling, side, channels, width)
    middle = (
        _linear_graph(svm, width) if svm["svm"].kernel == "linear" else _kernel_graph(svm, width)
    )
    merged = compose.merge_models(
        front, middle, io_map=[("pooled", "features")], outputs=["svm_decision"]
    )
    merged = compose.merge_models(
        merged, answer_graph(platt, scan_platt), io_map=[("svm_decision", "decision")]
    )
    return serialized(merged)


def _linear_graph(svm: Pipeline, width: int) -> onnx.ModelProto:
    """Return "features" (N, width) -> "svm_decision" (N, 1) of a linear SVM, with scaler, PCA and
    SVM folded into one weight vector.

    skl2onnx would store all support vectors: megabytes instead of kilobytes.
    """
    weights, offset = svm["svm"].coef_[0], svm["svm"].intercept_
    if "pca" in svm.named_steps:
        weights = weights @ svm["pca"].components_
        offset = offset - weights @ svm["pca"].mean_
    weights = weights / svm["scaler"].scale_
    offset = offset - weights @ svm["scaler"].mean_
    constants = [
        numpy_helper.from_array(weights.astype(np.float32).reshape(width, 1), "weights"),
        numpy_helper.from_array(offset.astype(np.float32), "bias"),
    ]
    return model_of(
        [helper.make_node("Gemm", ["features", "weights", "bias"], ["svm_decision"])],
        "part",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info("svm_decision", TensorProto.FLOAT, ["N", 1])],
        constants,
    )


def _kernel_graph(svm: Pipeline, width: int) -> onnx.ModelProto:
    """Return "features" (N, width) -> "svm_decision" (N, 1) of scaler, PCA and SVM as converted by
    skl2onnx.
    """
    with warnings.catch_warnings():
        # skl2onnx 1.20 reads probA_ and probB_ of scikit-learn 1.9, which are deprecated and not
        # used here.
        warnings.filterwarnings("ignore", message="Attribute `prob", category=FutureWarning)
        converted = sklearn_to_onnx(
            svm,
            initial_types=[("features", FloatTensorType([None, width]))],
            options={"raw_scores": True, "zipmap": False},
            target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
        )
    converted.ir_version = IR_VERSION
    # The raw decision is in the first column of the scores, its negative in the second.
    first = model_of(
        [helper.make_node("Gather", ["scores", "column"], ["svm_decision"], axis=1)],
        "part",
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("svm_decision", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(np.array([0], np.int64), "column")],
    )
    return compose.merge_models(
        converted, first, io_map=[("probabilities", "scores")], outputs=["svm_decision"]
    )


def _pooling_graph(pooling: str, side: int, channels: int, width: int) -> onnx.ModelProto:
    reductions = {
        "average": ["ReduceMean"],
        "max": ["ReduceMax"],
        "both": ["ReduceMean", "ReduceMax"],
    }[pooling]
    nodes = [
        helper.make_node(kind, ["maps"], [kind], axes=[1, 2], keepdims=0) for kind in reductions
    ]
    nodes.append(helper.make_node("Concat", reductions, ["pooled"], axis=1))
    return model_of(
        nodes,
        "part",
        [helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["N", side, side, channels])],
        [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["N", width])],
    )
