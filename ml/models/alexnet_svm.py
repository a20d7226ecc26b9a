"""AlexNet features + SVM: convolutions, pooled maps, standardisation, a support vector machine (C. Cortes, V. Vapnik 1995).

The convolutions are frozen, or fine-tuned inside each training part. The cost C of the SVM is chosen, and the decisions that the
calibration is fitted to are made, by grouped folds within the training part. Where the convolutions learn there is one such split,
since each fine-tuning takes minutes: they learn from three quarters of the part's groups, and the last quarter, which they never
saw, chooses and calibrates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper
from skl2onnx import to_onnx as sklearn_to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from ml.calibration import Platt
from ml.checkpoints import load_arrays, save_arrays
from ml.evaluation import auroc
from ml.models import FitTask, Fitted
from ml.models.aggregation import aggregate_scans, answer_graph, held_out_of, scan_probability
from ml.models.convolutions import IR_VERSION, OPSET, build, maps_shape, pooled, to_onnx
from ml.models.fine_tuning import fine_tune
from ml.models.inner_folds import inner_folds
from ml.models.weights import Weights, load_weights

COSTS = {"linear": (0.0003, 0.001, 0.003, 0.01, 0.03), "rbf": (0.3, 1.0, 3.0, 10.0)}
FEATURES_SHARE = 0.8  # of a fit's time
CHUNK = 64
ML_OPSET = 1


def fit(task: FitTask) -> Fitted:
    """Fit the architecture on `task.train`; see `ml.models`."""
    epochs = int(task.settings["fine_tune_epochs"])
    inner = inner_folds(task, one_split=epochs > 0)
    weights, features = featurise(task, inner[0][0])
    costs = COSTS[str(task.settings["kernel"])]
    decisions = np.full((len(costs), len(task.labels)), np.nan)
    scores = np.zeros(len(costs))
    for number, (learn, held) in enumerate(inner):
        for row, cost in enumerate(costs):
            machine = fit_machine(task, features, learn, cost)
            decisions[row, held] = machine.decision_function(features[held])
            scores[row] += auroc(task.labels[held], decisions[row, held]) / len(inner)
            task.report(FEATURES_SHARE + (1 - FEATURES_SHARE) * (number + (row + 1) / len(costs)) / (len(inner) + 1), {})
    best = int(np.argmax(np.round(scores, 4)))  # ties go to the smaller cost
    machine = fit_machine(task, features, task.train, costs[best])
    held_once = np.flatnonzero(np.isfinite(decisions[best]))

    layer, pooling = str(task.settings["layer"]), str(task.settings["pooling"])
    size = task.images.shape[1]

    def export(platt: Platt, scan_platt: Platt) -> dict[str, bytes]:
        head = head_to_onnx(machine, platt, scan_platt, pooling, *maps_shape(layer, size))
        return {"features.onnx": to_onnx(weights, layer, size), "head.onnx": head}

    def reference(images: np.ndarray, platt: Platt, scan_platt: Platt) -> tuple[np.ndarray, np.ndarray, float]:
        maps = np.asarray(build(weights, layer, size).predict_on_batch(np.asarray(images, np.float32)))
        found = machine.decision_function(pooled(maps, pooling))
        return maps, platt(found), scan_probability(found, platt, scan_platt)

    final = machine.decision_function(features)
    return Fitted(
        decisions=final,
        scan_decisions=aggregate_scans(final, task.scans),
        held_out=held_out_of(decisions[best], held_once, task.scans),
        chosen={"C": costs[best], "inner_auroc": float(scores[best]), "support_vectors": int(machine["svm"].n_support_.sum())},
        export=export,
        reference=reference,
        learnt_features=epochs > 0,
    )


def featurise(task: FitTask, learn: np.ndarray) -> tuple[Weights, np.ndarray]:
    """Return the convolutions and the pooled features, float32 (n, c), of all images of the task.

    Frozen convolutions see every image once in a run; fine-tuned ones learn from the images at `learn` first, so that what is
    held out from `learn` can choose C and calibrate without a fine-tuning of its own for each fold.
    """
    settings = task.settings
    layer, pooling = str(settings["layer"]), str(settings["pooling"])
    weights = load_weights(task.init, task.seed, layer)
    if not settings["fine_tune_epochs"]:
        path = task.shared / "features.npz"
        cached = load_arrays(path)
        if cached is None:
            cached = {
                "features": pooled_features(weights, task.images, layer, pooling, lambda share: task.report(share * FEATURES_SHARE, {}))
            }
            save_arrays(path, cached)
        return weights, cached["features"]
    kept = load_arrays(task.own / "weights.npz")
    if kept is None:
        state = task.own / "state.npz"
        data = task.images, task.labels, task.sources, task.masks, learn

        def report(share: float, metrics: Mapping[str, float]) -> None:
            task.report(share * FEATURES_SHARE, metrics)

        weights = fine_tune(weights, *data, layer, int(settings["fine_tune_epochs"]), task.seed, state, report).convolutions
        kept = {key: values.astype(np.float16) for key, values in weights.items()}
        save_arrays(task.own / "weights.npz", kept)
        state.unlink()
    weights = {key: values.astype(np.float32) for key, values in kept.items()}
    return weights, pooled_features(weights, task.images, layer, pooling, lambda share: task.report(FEATURES_SHARE, {}))


def pooled_features(weights: Weights, images: np.ndarray, layer: str, pooling: str, report: Callable[[float], None]) -> np.ndarray:
    """Return the pooled maps of all images, float32 (n, c); chunk by chunk, so that a large set's maps never stand in memory."""
    model = build(weights, layer, images.shape[1])
    chunks = []
    for start in range(0, len(images), CHUNK):
        report(start / len(images))
        maps = np.asarray(model.predict_on_batch(np.asarray(images[start : start + CHUNK], np.float32)))
        chunks.append(pooled(maps, pooling))
    return np.concatenate(chunks)


def fit_machine(task: FitTask, features: np.ndarray, learn: np.ndarray, cost: float) -> Pipeline:
    """Return scaler + SVM fitted to the images at `learn`."""
    weights = sample_weights(task.labels[learn], task.sources[learn], task.groups[learn])
    machine = Pipeline([("scaler", StandardScaler()), ("svm", SVC(kernel=str(task.settings["kernel"]), C=cost))])
    machine.fit(features[learn], task.labels[learn], svm__sample_weight=weights)
    return machine


def sample_weights(labels: np.ndarray, sources: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return a weight for each image, 1 on average.

    A data set weighs what its number of groups is worth, since the images of a patient repeat each other, and within it both
    classes weigh the same, so that knowing the data set says nothing about the label.
    """
    weights = np.zeros(len(labels))
    for source in np.unique(sources):
        here = sources == source
        worth = len(np.unique(groups[here]))
        for label in np.unique(labels[here]):
            cell = here & (labels == label)
            weights[cell] = worth / cell.sum()
    relative: np.ndarray = weights / weights.mean()
    return relative


def head_to_onnx(machine: Pipeline, platt: Platt, scan_platt: Platt, pooling: str, side: int, channels: int) -> bytes:
    """Return the head graph: "maps" (N, h, w, c) -> "slice_probability" (N,), "scan_probability" (1,).

    Three graphs in a row: pooling, scaler with SVM, and aggregation with calibration.
    """
    width = channels * (2 if pooling == "both" else 1)
    front = _pooling_graph(pooling, side, channels, width)
    middle = _linear_graph(machine, width) if machine["svm"].kernel == "linear" else _kernel_graph(machine, width)
    merged = compose.merge_models(front, middle, io_map=[("pooled", "features")], outputs=["svm_decision"])
    merged = compose.merge_models(merged, answer_graph(platt, scan_platt), io_map=[("svm_decision", "decision")])
    onnx.checker.check_model(merged, full_check=True)
    return bytes(merged.SerializeToString())


def _linear_graph(machine: Pipeline, width: int) -> onnx.ModelProto:
    """Return "features" (N, width) -> "svm_decision" (N, 1) of a linear SVM: scaler and machine are one row of weights.

    skl2onnx would write every support vector out, megabytes in place of kilobytes.
    """
    weights = machine["svm"].coef_[0] / machine["scaler"].scale_
    offset = machine["svm"].intercept_ - weights @ machine["scaler"].mean_
    constants = [
        numpy_helper.from_array(weights.astype(np.float32).reshape(width, 1), "weights"),
        numpy_helper.from_array(offset.astype(np.float32), "bias"),
    ]
    return _model(
        [helper.make_node("Gemm", ["features", "weights", "bias"], ["svm_decision"])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info("svm_decision", TensorProto.FLOAT, ["N", 1])],
        constants,
    )


def _kernel_graph(machine: Pipeline, width: int) -> onnx.ModelProto:
    """Return "features" (N, width) -> "svm_decision" (N, 1) of scaler and SVM as skl2onnx converts them."""
    with warnings.catch_warnings():
        # skl2onnx 1.20 asks scikit-learn 1.9 for probA_ and probB_, which are on their way out and not used here.
        warnings.filterwarnings("ignore", message="Attribute `prob", category=FutureWarning)
        converted = sklearn_to_onnx(
            machine,
            initial_types=[("features", FloatTensorType([None, width]))],
            options={"raw_scores": True, "zipmap": False},
            target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
        )
    converted.ir_version = IR_VERSION
    # The raw decision stands in the first column of the scores, its negative in the second.
    first = _model(
        [helper.make_node("Gather", ["scores", "column"], ["svm_decision"], axis=1)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("svm_decision", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(np.array([0], np.int64), "column")],
    )
    return compose.merge_models(converted, first, io_map=[("probabilities", "scores")], outputs=["svm_decision"])


def _pooling_graph(pooling: str, side: int, channels: int, width: int) -> onnx.ModelProto:
    reductions = {"average": ["ReduceMean"], "max": ["ReduceMax"], "both": ["ReduceMean", "ReduceMax"]}[pooling]
    nodes = [helper.make_node(kind, ["maps"], [kind], axes=[1, 2], keepdims=0) for kind in reductions]
    nodes.append(helper.make_node("Concat", reductions, ["pooled"], axis=1))
    return _model(
        nodes,
        [helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["N", side, side, channels])],
        [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["N", width])],
    )


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "part", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
