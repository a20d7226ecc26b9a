"""Pooled maps, standardized, classified by a support vector machine (C. Cortes, V. Vapnik 1995);
optionally after principal component analysis.

Hyperparameters are selected by grouped folds within the training part, in two steps, since all
combinations would take hours: layer and pooling with the first kernel, then kernel and PCA; C in
both. Augmented copies are used for training only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from typing import Any, Protocol

import keras
import numpy as np
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from ml.evaluation.calibration import Platt
from ml.evaluation.metrics import auroc
from ml.models.contract import FitTask, Fitted, HeldOut
from ml.networks.aggregation import aggregate_scans, scan_probability
from ml.networks.convolutions import pooled
from ml.networks.sample_weights import sample_weights
from ml.networks.svm_graph import head_to_onnx

COSTS = {"linear": (0.0003, 0.001, 0.003, 0.01, 0.03), "rbf": (0.3, 1.0, 3.0, 10.0)}
ALLOWED = {"pooling": ("both", "average", "max"), "kernel": ("linear", "rbf"), "pca": ("no", "yes")}
VARIANCE_KEPT = 0.95  # explained by the principal components
CACHE_MB = 500  # for kernel values


class Source(Protocol):
    """A source of feature maps: convolutions or an encoder. `learned`: it was trained on images of
    one fit.
    """

    @property
    def learned(self) -> bool: ...

    @property
    def shape(self) -> tuple[int, int]: ...

    def build(self) -> keras.Model: ...

    def to_onnx(self) -> bytes: ...


@dataclass(frozen=True)
class Choice:
    """The hyperparameters selected in a training part. `pca` is "yes" or "no"."""

    layer: str
    pooling: str
    kernel: str
    pca: str
    cost: float


@dataclass(frozen=True)
class Features:
    """Average and maximum of the maps of several layers: `values` float32 (copies, n, sum of 2c),
    `channels` c of each layer, in order.
    """

    values: np.ndarray
    channels: Mapping[str, int]

    def of(self, choice: Choice) -> np.ndarray:
        """Return (copies, n, c) or, for "both", (copies, n, 2c)."""
        names = list(self.channels)
        first = 2 * sum(self.channels[name] for name in names[: names.index(choice.layer)])
        middle, last = first + self.channels[choice.layer], first + 2 * self.channels[choice.layer]
        begin, end = {"average": (first, middle), "max": (middle, last), "both": (first, last)}[
            choice.pooling
        ]
        return self.values[..., begin:end]


def summarized(maps: Iterable[np.ndarray]) -> np.ndarray:
    """Return the `values` of `Features` for some images, (m, sum of 2c), from their maps (m, h, w,
    c) of each layer.
    """
    return np.concatenate([pooled(np.asarray(layer_maps), "both") for layer_maps in maps], axis=1)


def usual_choice(chosen: Sequence[Mapping[str, Any]]) -> Choice | None:
    """Return the most frequent choice of the folds, None if there were none."""
    counted = Counter(
        Choice(*(selection[name] for name in ("layer", "pooling", "kernel", "pca", "C")))
        for selection in chosen
        if "C" in selection
    )
    return counted.most_common(1)[0][0] if counted else None


def choose(
    task: FitTask,
    features: Features,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    report: Callable[[float, Mapping[str, float]], None],
) -> tuple[Choice, float, np.ndarray]:
    """Return the best choice allowed by the settings, its mean AUROC over the folds, and its
    held-out decisions (n,), NaN where there are none.
    """
    poolings, kernels = (_allowed(task, name) for name in ("pooling", "kernel"))
    components = ("no", "yes") if task.settings["pca"] == "auto" else ("no",)
    first = [
        Choice(*layer_and_pooling, kernels[0], "no", cost)
        for layer_and_pooling in product(features.channels, poolings)
        for cost in COSTS[kernels[0]]
    ]
    tried: dict[Choice, tuple[float, np.ndarray]] = {}

    def best() -> Choice:
        # Ties go to the smaller C, then to the earlier option.
        return max(tried, key=lambda choice: round(tried[choice][0], 4))

    steps = 2 if len(kernels) * len(components) > 1 else 1
    tried |= _scores(task, features, folds, first, lambda share: report(share / steps, {}))
    if steps == 2:
        selection = best()
        more = [
            Choice(selection.layer, selection.pooling, kernel, pca, cost)
            for pca in components
            for kernel in kernels
            for cost in COSTS[kernel]
        ]
        left = [choice for choice in more if choice not in tried]
        tried |= _scores(task, features, folds, left, lambda share: report((1 + share) / 2, {}))
    return best(), *tried[best()]


def fit_svm(task: FitTask, features: Features, learn: np.ndarray, choice: Choice) -> Pipeline:
    """Return scaler, optional PCA, and SVM, fitted to all copies of the images at `learn`."""
    front = _front(choice)
    prepared = front.fit_transform(_rows(features, learn, choice))
    return Pipeline([*front.steps, ("svm", _fit_classifier(task, prepared, learn, choice))])


def answer(
    task: FitTask,
    source: Source,
    features: Features,
    choice: Choice,
    held_out: HeldOut,
    figures: Mapping[str, Any],
) -> Fitted:
    """Fit an SVM with that choice to the training part and return the result of the fit; `figures`
    are added to the selected hyperparameters.
    """
    svm = fit_svm(task, features, task.train, choice)
    decisions = svm.decision_function(features.of(choice)[0])

    def export(platt: Platt, scan_platt: Platt) -> dict[str, bytes]:
        head = head_to_onnx(svm, platt, scan_platt, choice.pooling, *source.shape)
        return {"features.onnx": source.to_onnx(), "head.onnx": head}

    def reference(
        images: np.ndarray, platt: Platt, scan_platt: Platt
    ) -> tuple[np.ndarray, np.ndarray, float]:
        maps = np.asarray(source.build().predict_on_batch(np.asarray(images, np.float32)))
        slice_decisions = svm.decision_function(pooled(maps, choice.pooling))
        return maps, platt(slice_decisions), scan_probability(slice_decisions, platt, scan_platt)

    named = {
        "layer": choice.layer,
        "pooling": choice.pooling,
        "kernel": choice.kernel,
        "pca": choice.pca,
        "C": choice.cost,
    }
    return Fitted(
        decisions=decisions,
        scan_decisions=aggregate_scans(decisions, task.scans),
        held_out=held_out,
        chosen={**named, **figures, "support_vectors": int(svm["svm"].n_support_.sum())},
        export=export,
        reference=reference,
        learned_features=source.learned,
        descriptions=features.of(replace(choice, pooling="both"))[0],
    )


def _allowed(task: FitTask, name: str) -> Sequence[str]:
    value = str(task.settings[name])
    return ALLOWED[name] if value == "auto" else (value,)


def _front(choice: Choice) -> Pipeline:
    """Return the unfitted steps before the SVM."""
    components = [("pca", PCA(VARIANCE_KEPT))] if choice.pca == "yes" else []
    return Pipeline([("scaler", StandardScaler()), *components])


def _rows(features: Features, at: np.ndarray, choice: Choice) -> np.ndarray:
    """Return the features of all copies of the images at `at`, one row each, copy by copy."""
    chosen = features.of(choice)[:, at]
    return np.asarray(chosen.reshape(len(chosen) * len(at), -1))


def _fit_classifier(task: FitTask, prepared: np.ndarray, learn: np.ndarray, choice: Choice) -> SVC:
    copies = len(prepared) // len(learn)
    weights = sample_weights(task.labels[learn], task.sources[learn], task.groups[learn])
    svm = SVC(kernel=choice.kernel, C=choice.cost, cache_size=CACHE_MB)
    # The weights of an image's copies sum to one, so that C means the same with and without
    # augmentation.
    svm.fit(
        prepared,
        np.tile(task.labels[learn], copies),
        sample_weight=np.tile(weights / copies, copies),
    )
    return svm


def _scores(
    task: FitTask,
    features: Features,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    choices: Sequence[Choice],
    report: Callable[[float], None],
) -> dict[Choice, tuple[float, np.ndarray]]:
    """Return the mean AUROC over the folds and the held-out decisions (n,) of each choice; choices
    with the same preceding steps share them.
    """
    decisions = {choice: np.full(len(task.labels), np.nan) for choice in choices}
    scores: dict[Choice, list[float]] = {choice: [] for choice in choices}
    done = 0
    for _, alike in groupby(choices, key=lambda choice: (choice.layer, choice.pooling, choice.pca)):
        together = list(alike)
        for learn, held_out in folds:
            front = _front(together[0])
            prepared = front.fit_transform(_rows(features, learn, together[0]))
            held_rows = front.transform(features.of(together[0])[0, held_out])
            for choice in together:
                decisions[choice][held_out] = _fit_classifier(
                    task, prepared, learn, choice
                ).decision_function(held_rows)
                scores[choice].append(auroc(task.labels[held_out], decisions[choice][held_out]))
                done += 1
                report(done / (len(choices) * len(folds)))
    return {choice: (float(np.mean(scores[choice])), decisions[choice]) for choice in choices}
