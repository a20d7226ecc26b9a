"""An autoencoder's bottleneck + SVM: what a network that has to draw heads again makes of them,
without a label; see `ml.models.svm`.

The autoencoder (`ml.networks.autoencoder`) starts from random weights, whatever initial weights
are given: it has no layer of AlexNet. It learns from the whole training part, and inner folds of
that part, with its labels, choose the machine and calibrate.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
import onnx
from onnx import TensorProto, helper

from ml.models.contract import FitTask, Fitted, held_out_of
from ml.models.features import autoencoder_of, features_of
from ml.models.inner_folds import inner_folds
from ml.models.svm import Features, answer, choose, summarized
from ml.networks import autoencoder as reconstruction
from ml.networks.aggregation import aggregate

SCAN_RULE = aggregate
LAYER = "bottleneck"
# of a fit's time: when the autoencoder is done, and when the features are
LEARNING_SHARE, FEATURES_SHARE = 0.8, 0.9


@dataclass(frozen=True)
class Bottleneck:
    """The encoder of an autoencoder, which learned from images of one fit."""

    weights: reconstruction.Weights
    size: int
    learnt: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """The side (h = w) and the channels of the maps."""
        return reconstruction.bottleneck_side(self.size), reconstruction.BOTTLENECK_CHANNELS

    def build(self) -> keras.Model:
        """Return the Keras model: images -> maps."""
        return reconstruction.build_encoder(self.weights, self.size)

    def to_onnx(self) -> bytes:
        """Return the features graph: "images" (N, size, size, 1) -> "maps" (N, h, w, 32)."""
        side, channels = self.shape
        nodes, constants = reconstruction.encoder_nodes(
            self.weights, self.size, "grey", "bottleneck"
        )
        graph = helper.make_graph(
            [
                helper.make_node("Transpose", ["images"], ["grey"], perm=[0, 3, 1, 2]),
                *nodes,
                helper.make_node("Transpose", ["bottleneck"], ["maps"], perm=[0, 2, 3, 1]),
            ],
            "encoder",
            [
                helper.make_tensor_value_info(
                    "images", TensorProto.FLOAT, ["N", self.size, self.size, 1]
                )
            ],
            [helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["N", side, side, channels])],
            constants,
        )
        opsets = [helper.make_opsetid("", reconstruction.OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=reconstruction.IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())


def fit(task: FitTask) -> Fitted:
    """Fit the architecture on `task.train`; see `ml.models.contract`."""
    folds = inner_folds(task, one_split=False)
    weights = autoencoder_of(
        task,
        task.train,
        int(task.settings["epochs"]),
        lambda share, figures: task.report(LEARNING_SHARE * share, figures),
    )
    source = Bottleneck(weights, task.images.shape[1])
    values = features_of(
        task,
        source.build,
        lambda maps: summarized([maps]),
        int(task.settings["augmentation"]),
        lambda share, figures: task.report(
            LEARNING_SHARE + (FEATURES_SHARE - LEARNING_SHARE) * share, figures
        ),
        learnt=source.learnt,
    )
    features = Features(values, {LAYER: source.shape[1]})
    choice, score, decisions = choose(
        task,
        features,
        folds,
        lambda share, figures: task.report(FEATURES_SHARE + (1 - FEATURES_SHARE) * share, figures),
    )
    held_out = held_out_of(decisions, np.flatnonzero(np.isfinite(decisions)), task.scans)
    return answer(task, source, features, choice, held_out, {"inner_auroc": score})
