"""An autoencoder's bottleneck + SVM: features learned without labels by reconstructing heads; see
`ml.models.svm`.

The autoencoder (`ml.networks.autoencoder`) starts from random weights, whatever initial weights are
given, as it shares no layer with AlexNet. It is trained on the whole training part, whose inner
folds select the SVM and calibrate it.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
from onnx import TensorProto, helper

from ml.models.contract import FitTask, Fitted, held_out_of
from ml.models.features import autoencoder_of, features_of
from ml.models.inner_folds import inner_folds
from ml.models.svm import Features, answer, choose, summarized
from ml.networks import autoencoder
from ml.networks.aggregation import aggregate
from ml.networks.onnx_graph import model_of, serialized

SCAN_RULE = aggregate
LAYER = "bottleneck"
# progress of a fit after the autoencoder and after the features
LEARNING_SHARE, FEATURES_SHARE = 0.8, 0.9


@dataclass(frozen=True)
class Bottleneck:
    """The encoder of an autoencoder trained on the images of one fit."""

    weights: autoencoder.Weights
    size: int
    learned: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """The side (h = w) and the channels of the maps."""
        return autoencoder.bottleneck_side(self.size), autoencoder.BOTTLENECK_CHANNELS

    def build(self) -> keras.Model:
        """Return the Keras model: images -> maps."""
        return autoencoder.build_encoder(self.weights, self.size)

    def to_onnx(self) -> bytes:
        """Return the features graph: "images" (N, size, size, 1) -> "maps" (N, h, w, 32)."""
        side, channels = self.shape
        nodes, constants = autoencoder.encoder_nodes(self.weights, self.size, "gray", "bottleneck")
        model = model_of(
            [
                helper.make_node("Transpose", ["images"], ["gray"], perm=[0, 3, 1, 2]),
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
        return serialized(model)


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
        learned=source.learned,
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
