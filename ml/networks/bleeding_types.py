"""Types of hemorrhage in a slice and a scan: a linear head on a model's own feature maps, the same
for every architecture.

P(type) = P(hemorrhage) x P(type | hemorrhage). The first factor is the model's calibrated
probability. The second comes from this head: one logistic regression per type, trained on positive
slices only. So it need not relearn, less accurately, what hemorrhage looks like, and no type is
more probable than hemorrhage. A scan's probability of a type is the maximum over its slices, capped
by that of hemorrhage. For the alternatives, see docs/adr/0009.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression

from ml.catalogue import BLEEDING_TYPES
from ml.networks.onnx_graph import model_of, serialized

# minimum number of groups with a type, and with hemorrhage but without the type; with fewer, the
# head would overfit to patients
LEAST_GROUPS = 3
# inverse regularization strength of logistic regression on standardized features: strong
# regularization, since there are fewer slices than features
COST = 0.001
# minimum spread of a feature, so that one that is almost constant in training cannot dominate
# elsewhere
LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class TypesHead:
    """Predicts `names`, a subset of `BLEEDING_TYPES` in the same order: weights float32 (2c, k) and
    offsets (k,) on descriptions of slices.
    """

    names: tuple[str, ...]
    weights: np.ndarray
    offsets: np.ndarray

    def of_slices(self, descriptions: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Return the probability of each type in each slice, float64 (n, 5); NaN for types that the
        head does not predict.

        Args:
            descriptions: (n, 2c), see `ml.models.contract.Fitted`.
            probabilities: (n,) of hemorrhage in the slices.
        """
        of_types = np.full((len(descriptions), len(BLEEDING_TYPES)), np.nan)
        logits = np.asarray(descriptions, np.float32) @ self.weights + self.offsets
        columns = [BLEEDING_TYPES.index(name) for name in self.names]
        of_types[:, columns] = (
            0.5
            * (1 + np.tanh(logits.astype(np.float64) / 2))
            * np.asarray(probabilities)[:, np.newaxis]
        )
        return of_types

    def to_onnx(self) -> bytes:
        """Return the graph: "maps" (N, h, w, c), "slice_probability" (N,), "scan_probability" (1,)
        of one scan -> its types.

        These are "slice_types" (N, k) and "scan_types" (k,).
        """
        nodes = [
            helper.make_node("ReduceMean", ["maps"], ["average"], axes=[1, 2], keepdims=0),
            helper.make_node("ReduceMax", ["maps"], ["largest"], axes=[1, 2], keepdims=0),
            helper.make_node("Concat", ["average", "largest"], ["description"], axis=1),
            helper.make_node("Gemm", ["description", "weights", "offsets"], ["logits"]),
            helper.make_node("Sigmoid", ["logits"], ["given_blood"]),
            helper.make_node("Unsqueeze", ["slice_probability", "one"], ["bleeds"]),
            helper.make_node("Mul", ["given_blood", "bleeds"], ["slice_types"]),
            helper.make_node("ReduceMax", ["slice_types"], ["most"], axes=[0], keepdims=0),
            helper.make_node("Min", ["most", "scan_probability"], ["scan_types"]),
        ]
        constants = {
            "weights": self.weights,
            "offsets": self.offsets,
            "one": np.array([1], np.int64),
        }
        types, channels = len(self.names), len(self.weights) // 2

        def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        model = model_of(
            nodes,
            "bleeding_types",
            [
                value("maps", "N", "h", "w", channels),
                value("slice_probability", "N"),
                value("scan_probability", 1),
            ],
            [value("slice_types", "N", types), value("scan_types", types)],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        return serialized(model)


def of_scan(types: np.ndarray, probability: float) -> np.ndarray:
    """Return the probability of each type in a scan (5,) from those in its slices (n, 5) and that
    of any hemorrhage in it.
    """
    capped: np.ndarray = np.minimum(types.max(axis=0), probability)
    return capped


def fit_types(
    descriptions: np.ndarray,
    types: np.ndarray,
    groups: np.ndarray,
    learn: np.ndarray,
    names: Collection[str] = BLEEDING_TYPES,
) -> TypesHead:
    """Fit the head to the positive slices at `learn` whose types are known.

    A type is omitted if fewer than `LEAST_GROUPS` groups have it, or have hemorrhage without it.

    Args:
        descriptions: (n, 2c) of all slices.
        types: (n, 5) 0, 1 or `ml.datasets.examples.UNKNOWN`.
        groups: (n,).
        learn: positions.
        names: the types to fit, of `BLEEDING_TYPES`.
    """
    at = learn[(types[learn] == 1).any(axis=1)]
    fitted = [
        number
        for number in range(len(BLEEDING_TYPES))
        if BLEEDING_TYPES[number] in names
        and min(len(np.unique(groups[at[types[at, number] == value]])) for value in (0, 1))
        >= LEAST_GROUPS
    ]
    features = descriptions[at].astype(np.float64)
    fits = [_logistic(features, types[at, number]) for number in fitted]
    width = descriptions.shape[1]
    return TypesHead(
        tuple(BLEEDING_TYPES[number] for number in fitted),
        np.array([weights for weights, _ in fits], np.float32).reshape(len(fitted), width).T.copy(),
        np.array([offset for _, offset in fits], np.float32),
    )


def _logistic(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Return weights and offset of a logistic regression, for unstandardized features.

    Classes are not reweighted, so that the outputs are calibrated probabilities in positive slices.
    """
    mean, spread = features.mean(axis=0), features.std(axis=0) + LEAST_SPREAD
    fitted = LogisticRegression(C=COST, max_iter=1000).fit((features - mean) / spread, labels)
    weights = fitted.coef_[0] / spread
    return weights, float(fitted.intercept_[0] - weights @ mean)
