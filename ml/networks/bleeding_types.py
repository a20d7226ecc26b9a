"""The types of bleeding in a slice and a scan: a linear head on what a model's own maps hold, the
same for every architecture.

It answers for P(type) in two parts. The model says whether a slice bleeds, as it is calibrated to.
This head says which types a slice shows given that it bleeds: one logistic regression a type,
learned from bleeding slices only. So it does not learn once more, and worse, what blood looks like,
and no type is ever likelier than a hemorrhage. A scan has a type as its most probable slice has it,
and is no likelier to have it than to bleed. What it was compared with: docs/adr/0009.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression

from ml.catalogue import BLEEDING_TYPES
from ml.networks.onnx_graph import model_of, serialized

# that show a type, and that bleed without showing it: below, what is learned is those patients
LEAST_GROUPS = 3
# of logistic regression on standardized features: strong, since slices are few beside features
COST = 0.001
LEAST_SPREAD = 1e-3  # of a feature: one that hardly moves in training must not decide elsewhere


@dataclass(frozen=True)
class TypesHead:
    """Tells `names`, a part of `BLEEDING_TYPES` in their order: weights float32 (2c, k) and offsets
    (k,) on descriptions of slices.
    """

    names: tuple[str, ...]
    weights: np.ndarray
    offsets: np.ndarray

    def of_slices(self, descriptions: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Return the probability of each type in each slice, float64 (n, 5); NaN for types that the
        head does not tell.

        Args:
            descriptions: (n, 2c), see `ml.models.contract.Fitted`.
            probabilities: (n,) that the slices bleed at all.
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
    descriptions: np.ndarray, types: np.ndarray, groups: np.ndarray, learn: np.ndarray
) -> TypesHead:
    """Return the head, fitted to the bleeding slices among those at `learn` whose types are
    known.

    A type is left out where fewer than `LEAST_GROUPS` groups show it, or bleed without showing it.

    Args:
        descriptions: (n, 2c) of all slices.
        types: (n, 5) 0, 1 or `ml.datasets.examples.UNKNOWN`.
        groups: (n,).
        learn: positions.
    """
    at = learn[(types[learn] == 1).any(axis=1)]
    fitted = [
        number
        for number in range(len(BLEEDING_TYPES))
        if min(len(np.unique(groups[at[types[at, number] == shown]])) for shown in (0, 1))
        >= LEAST_GROUPS
    ]
    given = descriptions[at].astype(np.float64)
    fits = [_logistic(given, types[at, number]) for number in fitted]
    width = descriptions.shape[1]
    return TypesHead(
        tuple(BLEEDING_TYPES[number] for number in fitted),
        np.array([weights for weights, _ in fits], np.float32).reshape(len(fitted), width).T.copy(),
        np.array([offset for _, offset in fits], np.float32),
    )


def _logistic(given: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, float]:
    """Return weights and offset of a logistic regression, for features that are not
    standardized.

    Classes keep their weights, so that the mean answer is the share of bleeding slices that show
    the type: it is a probability as it is.
    """
    mean, spread = given.mean(axis=0), given.std(axis=0) + LEAST_SPREAD
    fitted = LogisticRegression(C=COST, max_iter=1000).fit((given - mean) / spread, shown)
    weights = fitted.coef_[0] / spread
    return weights, float(fitted.intercept_[0] - weights @ mean)
