"""What the tests of `ml` share: where the real data may lie, and a model folder small enough to
know its answers by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from ml.artifacts.card import Card, TypeFigures
from ml.artifacts.folder import write_model
from ml.figures import Estimate, Metrics
from ml.networks.onnx_graph import model_of, serialized
from ml.typed_json import from_json, to_json

CELLS = 8
INPUT_PX = 64
OUTLINING_PX = 224
"""The side of the input of the tiny model that outlines; its outline has half as many places."""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real images beside the repository; a test that asks for them is skipped where they are
    absent.
    """
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is not here")
    return folder


def named_points_of_card() -> dict[str, Any]:
    """What a card says of its named operating points: thresholds .1, .3 and .6 by scan, by slice
    each .05 lower.
    """

    def figure(value: float) -> dict[str, Any]:
        return {"value": value, "low": max(value - 0.05, 0), "high": min(value + 0.05, 1), "n": 40}

    def point(threshold: float, sensitivity: float, specificity: float) -> dict[str, Any]:
        values = {"2": figure(0.3), "10": figure(0.5), "50": figure(0.9)}
        return {
            "threshold": threshold,
            "sensitivity": figure(sensitivity),
            "specificity": figure(specificity),
            "ppv": values,
            "npv": values,
        }

    by_scan = {"sensitive": 0.1, "balanced": 0.3, "specific": 0.6}
    rates = {"sensitive": (1.0, 0.6), "balanced": (0.9, 0.93), "specific": (0.7, 0.98)}
    return {
        level: {name: point(by_scan[name] - less, *rates[name]) for name in by_scan}
        for level, less in (("patient", 0.0), ("slice", 0.05))
    }


def metrics_of(value: float, n: int = 40, **others: Estimate) -> Metrics:
    """Metrics that all have that value, but for `others`."""
    same = Estimate(value, value - 0.1, value + 0.05, n)
    return Metrics(**{item.name: others.get(item.name, same) for item in fields(Metrics)})


def a_card(**changed: object) -> Card:
    """A card with every field filled; `changed` may be JSON."""
    given: dict[str, object] = {
        "architecture": "alexnet_svm",
        "reads": "slice",
        "created_at": "2026-01-02T03:04:05+00:00",
        "seed": 7,
        "settings": {"layer": "conv5"},
        "preprocessing": {"size": INPUT_PX, "crop_to_head": False},
        "threshold": 0.5,
        "uncertain_low": 0.4,
        "uncertain_high": 0.6,
        "data": {
            "datasets": ["phantoms"],
            "fingerprint": "f" * 64,
            "initial_weights": {"kind": "random"},
            "training": "0" * 64,
            "images": 2,
            "positive": 1,
            "negative": 1,
            "groups": 2,
            "judged": 2,
            "licence_notes": [],
        },
        "metrics": metrics_of(0.9, 2),
        "metrics_by_dataset": {},
        "roc": [[0.0, 0.0], [1.0, 1.0]],
        "confusion": {"tp": 1, "fp": 0, "tn": 1, "fn": 0},
        "protocol": "None: made by a test.",
        "export_check": {"largest_difference": 0.0, "limit": 1e-4, "passed": True},
        "versions": {"python": "3"},
        **changed,
    }
    return from_json(Card, to_json(given))


def features_graph() -> bytes:
    """Maps (N, 8, 8, 1): the mean of each 8 x 8 block of the input."""
    nodes = [
        helper.make_node("Transpose", ["images"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "AveragePool", ["nchw"], ["pooled"], kernel_shape=[CELLS, CELLS], strides=[CELLS, CELLS]
        ),
        helper.make_node("Transpose", ["pooled"], ["maps"], perm=[0, 2, 3, 1]),
    ]
    return _graph(
        nodes, {"images": ["N", INPUT_PX, INPUT_PX, 1]}, {"maps": ["N", CELLS, CELLS, 1]}, {}
    )


def outlining_graph(darkest: float = 0.65, bone: float = 0.97, beside_bone_px: int = 13) -> bytes:
    """The maps of `features_graph` for a larger input, and an outline: places brighter than
    `darkest` on average, if there is no bone around.
    """
    cell = OUTLINING_PX // CELLS
    constants = {
        "darkest": np.array(darkest, np.float32),
        "bone": np.array(bone, np.float32),
        "steep": np.array(40, np.float32),
        "forbidding": np.array(-1e4, np.float32),
        "channel": np.array([1], np.int64),
    }
    around = {"kernel_shape": [beside_bone_px] * 2, "pads": [beside_bone_px // 2] * 4}
    nodes = [
        helper.make_node("Transpose", ["images"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "AveragePool", ["nchw"], ["pooled"], kernel_shape=[cell] * 2, strides=[cell] * 2
        ),
        helper.make_node("Transpose", ["pooled"], ["maps"], perm=[0, 2, 3, 1]),
        helper.make_node("MaxPool", ["nchw"], ["brightest"], **around),
        helper.make_node("Sub", ["brightest", "bone"], ["above_bone"]),
        helper.make_node("Relu", ["above_bone"], ["bony"]),
        helper.make_node("Mul", ["bony", "forbidding"], ["forbidden"]),
        helper.make_node("Sub", ["nchw", "darkest"], ["bright"]),
        helper.make_node("Mul", ["bright", "steep"], ["brightness"]),
        helper.make_node("Add", ["brightness", "forbidden"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["blood"]),
        helper.make_node("AveragePool", ["blood"], ["halved"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Squeeze", ["halved", "channel"], ["outline"]),
    ]
    side = OUTLINING_PX // 2
    return _graph(
        nodes,
        {"images": ["N", OUTLINING_PX, OUTLINING_PX, 1]},
        {"maps": ["N", CELLS, CELLS, 1], "outline": ["N", side, side]},
        constants,
    )


def head_graph(row: int = 2, column: int = 5, gain: float = 8.0, context: float = 0.0) -> bytes:
    """sigmoid(z + context * mean of the scan's z) with z = gain * (the cell - 0.5); the scan's
    probability is the largest slice's.
    """
    weights = np.zeros((CELLS * CELLS, 1), np.float32)
    weights[row * CELLS + column] = gain
    constants = {
        "weights": weights,
        "offset": np.array([-gain / 2], np.float32),
        "context": np.array([context], np.float32),
        "flat": np.array([-1, CELLS * CELLS], np.int64),
        "line": np.array([-1], np.int64),
    }
    nodes = [
        helper.make_node("Reshape", ["maps", "flat"], ["cells"]),
        helper.make_node("MatMul", ["cells", "weights"], ["products"]),
        helper.make_node("Add", ["products", "offset"], ["columns"]),
        helper.make_node("Reshape", ["columns", "line"], ["z"]),
        helper.make_node("ReduceMean", ["z"], ["mean"], keepdims=1),
        helper.make_node("Mul", ["mean", "context"], ["added"]),
        helper.make_node("Add", ["z", "added"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["slice_probability"]),
        helper.make_node("ReduceMax", ["slice_probability"], ["scan_probability"], keepdims=1),
    ]
    return _graph(
        nodes,
        {"maps": ["N", CELLS, CELLS, 1]},
        {"slice_probability": ["N"], "scan_probability": [1]},
        constants,
    )


def types_graph() -> bytes:
    """Of what bleeds three quarters are epidural and a quarter is subdural bleeding; the scan has
    the largest slice's, within its own.
    """
    nodes = [
        helper.make_node("Unsqueeze", ["slice_probability", "line"], ["bleeds"]),
        helper.make_node("Mul", ["bleeds", "shares"], ["slice_types"]),
        helper.make_node("ReduceMax", ["slice_types"], ["most"], axes=[0], keepdims=0),
        helper.make_node("Min", ["most", "scan_probability"], ["scan_types"]),
    ]
    takes: dict[str, list[object]] = {
        "maps": ["N", CELLS, CELLS, 1],
        "slice_probability": ["N"],
        "scan_probability": [1],
    }
    constants = {"line": np.array([1], np.int64), "shares": np.array([[0.75, 0.25]], np.float32)}
    return _graph(nodes, takes, {"slice_types": ["N", 2], "scan_types": [2]}, constants)


def type_figures_of_card() -> dict[str, TypeFigures]:
    """What a card says of types: epidural and subdural are told, the second of four patients, and
    the others are not.
    """
    auroc, ece = (
        {"value": 0.8, "low": 0.7, "high": 0.9, "n": 40},
        {"value": 0.05, "low": 0.02, "high": 0.1, "n": 40},
    )
    figures = {
        "auroc": auroc,
        "ece": ece,
        "auroc_among_bleeding": {"value": 0.6, "low": 0.5, "high": 0.7, "n": 20},
    }
    counts = {"of_slices": 80, "of_patients": 40}
    scores = [{"probability": 0.5, "rank": rank, "of": 40} for rank in (2, 7)] + [
        {"probability": None, "rank": None, "of": 40}
    ]
    result: dict[str, dict[str, object]] = {
        "epidural": {
            "given": True,
            "slices": 12,
            "patients": 12,
            "slice": figures,
            "patient": figures,
        },
        "subdural": {"given": True, "slices": 4, "patients": 3, "scores": scores},
    }
    for name in ("subarachnoid", "intraparenchymal", "intraventricular"):
        result[name] = {"given": False, "slices": 0, "patients": 0, "scores": []}
    return {name: from_json(TypeFigures, {**one, **counts}) for name, one in result.items()}


def _graph(
    nodes: list[object],
    takes: dict[str, list[object]],
    gives: dict[str, list[object]],
    constants: dict[str, np.ndarray],
) -> bytes:
    def described(values: dict[str, list[object]]) -> list[object]:
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in values.items()
        ]

    initial = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return serialized(model_of(nodes, "tiny", described(takes), described(gives), initial))


@pytest.fixture
def tiny_model(tmp_path: Path) -> Callable[..., Path]:
    """`tiny_model(head={...}, **card)` writes a model folder whose answer hangs on the brightness
    of one cell, and returns it.

    `types_onnx` is its graph of types, if it shall have one.
    """

    def write(
        head: dict[str, float] | bytes | None = None,
        types_onnx: bytes | None = None,
        **card: object,
    ) -> Path:
        folder = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        head_bytes = head if isinstance(head, bytes) else head_graph(**(head or {}))
        more = {} if types_onnx is None else {"types.onnx": types_onnx}
        write_model(
            folder,
            a_card(**card),
            {"features.onnx": features_graph(), "head.onnx": head_bytes, **more},
        )
        return folder

    return write


@pytest.fixture
def outlining_model(tmp_path: Path) -> Callable[..., Path]:
    """`outlining_model(preprocessing, **card)` writes a model folder that outlines blood, to which
    every scan is positive unless the card says otherwise, and returns it.
    """

    def write(preprocessing: dict[str, object] | None = None, **card: object) -> Path:
        positive = {"threshold": 0.0, "uncertain_low": 0.0, "uncertain_high": 0.0}
        given = {"preprocessing": {"size": OUTLINING_PX, **(preprocessing or {})}, **positive}
        folder = tmp_path / f"outlining-{len(list(tmp_path.iterdir()))}"
        head = head_graph(row=3, column=4)  # where the heads of the tests bleed
        graphs = {"features.onnx": outlining_graph(), "head.onnx": head}
        write_model(folder, a_card(**{**given, **card}), graphs)
        return folder

    return write


@pytest.fixture(scope="module")
def few_repetitions() -> Iterator[None]:
    """What a training repeats for the sake of its figures it does but once or twice: controls and
    heat maps take most of its time.
    """
    # Imported here because most tests need no training and so no Keras.
    from ml.training import controls, cross_validation

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controls, "CHEAP_PERMUTATIONS", 2)
        patch.setattr(controls, "DEAR_PERMUTATIONS", 2)
        patch.setattr(controls, "TREES", 20)
        patch.setattr(cross_validation, "MOST_HEAT_MAPS", 1)
        yield


@pytest.fixture
def untraced() -> Iterator[None]:
    """Keras computes batch by batch as it is told, without a graph.

    Tracing one takes longer than the few batches of most tests. What trains for many epochs, and
    whole trainings, are traced as for a user.
    """
    # Imported here because most tests do without it.
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@pytest.fixture
def make_card() -> Callable[..., Card]:
    """`make_card(**changed)` is a card with every field filled."""
    return a_card
