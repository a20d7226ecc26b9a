"""Pooled maps, standardized, classified by a support vector machine (C. Cortes, V. Vapnik 1995);
principal components where they help.

Everything that may be chosen is chosen by grouped folds within the training part, in two steps,
since all combinations would take hours: layer and pooling with a machine of the first kernel, then
kernel and components; the cost C in both. Augmented copies are learned from and never scored.
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
VARIANCE_KEPT = 0.95  # by the principal components
CACHE_MB = 500  # of kernel values


class Source(Protocol):
    """What makes maps of pictures: convolutions, or an encoder. `learned` says whether it learned
    from images of one fit.
    """

    @property
    def learned(self) -> bool: ...

    @property
    def shape(self) -> tuple[int, int]: ...

    def build(self) -> keras.Model: ...

    def to_onnx(self) -> bytes: ...


@dataclass(frozen=True)
class Choice:
    """What may be chosen inside a training part. `pca` is "yes" or "no"."""

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
    """Return what `Features` holds of some pictures, (m, sum of 2c), from their maps (m, h, w, c)
    of each layer.
    """
    return np.concatenate([pooled(np.asarray(one), "both") for one in maps], axis=1)


def usual_choice(chosen: Sequence[Mapping[str, Any]]) -> Choice | None:
    """Return what the fits of a cross-validation chose most often, None if there were none."""
    counted = Counter(
        Choice(*(one[name] for name in ("layer", "pooling", "kernel", "pca", "C")))
        for one in chosen
        if "C" in one
    )
    return counted.most_common(1)[0][0] if counted else None


def choose(
    task: FitTask,
    features: Features,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    report: Callable[[float, Mapping[str, float]], None],
) -> tuple[Choice, float, np.ndarray]:
    """Return the best choice that the settings allow, its mean AUROC in the folds, and its
    decisions (n,), NaN where no fold held out.
    """
    poolings, kernels = (_allowed(task, name) for name in ("pooling", "kernel"))
    components = ("no", "yes") if task.settings["pca"] == "auto" else ("no",)
    first = [
        Choice(*one, kernels[0], "no", cost)
        for one in product(features.channels, poolings)
        for cost in COSTS[kernels[0]]
    ]
    tried: dict[Choice, tuple[float, np.ndarray]] = {}

    def best() -> Choice:
        # Ties go to the smaller cost, and to what stands first.
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


def fit_machine(task: FitTask, features: Features, learn: np.ndarray, choice: Choice) -> Pipeline:
    """Return scaler, perhaps components, and SVM, fitted to all copies of the images at `learn`."""
    front = _front(choice)
    prepared = front.fit_transform(_rows(features, learn, choice))
    return Pipeline([*front.steps, ("svm", _fit_svm(task, prepared, learn, choice))])


def answer(
    task: FitTask,
    source: Source,
    features: Features,
    choice: Choice,
    held_out: HeldOut,
    figures: Mapping[str, Any],
) -> Fitted:
    """Return what the architecture hands back: a machine of that choice, fitted to the training
    part. `figures` join what was chosen.
    """
    machine = fit_machine(task, features, task.train, choice)
    decisions = machine.decision_function(features.of(choice)[0])

    def export(platt: Platt, scan_platt: Platt) -> dict[str, bytes]:
        head = head_to_onnx(machine, platt, scan_platt, choice.pooling, *source.shape)
        return {"features.onnx": source.to_onnx(), "head.onnx": head}

    def reference(
        images: np.ndarray, platt: Platt, scan_platt: Platt
    ) -> tuple[np.ndarray, np.ndarray, float]:
        maps = np.asarray(source.build().predict_on_batch(np.asarray(images, np.float32)))
        slice_decisions = machine.decision_function(pooled(maps, choice.pooling))
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
        chosen={**named, **figures, "support_vectors": int(machine["svm"].n_support_.sum())},
        export=export,
        reference=reference,
        learned_features=source.learned,
        descriptions=features.of(replace(choice, pooling="both"))[0],
    )


def _allowed(task: FitTask, name: str) -> Sequence[str]:
    value = str(task.settings[name])
    return ALLOWED[name] if value == "auto" else (value,)


def _front(choice: Choice) -> Pipeline:
    """Return what stands before the SVM, not fitted."""
    components = [("pca", PCA(VARIANCE_KEPT))] if choice.pca == "yes" else []
    return Pipeline([("scaler", StandardScaler()), *components])


def _rows(features: Features, at: np.ndarray, choice: Choice) -> np.ndarray:
    """Return the features of all copies of the images at `at`, one row each, copy by copy."""
    chosen = features.of(choice)[:, at]
    return np.asarray(chosen.reshape(len(chosen) * len(at), -1))


def _fit_svm(task: FitTask, prepared: np.ndarray, learn: np.ndarray, choice: Choice) -> SVC:
    copies = len(prepared) // len(learn)
    weights = sample_weights(task.labels[learn], task.sources[learn], task.groups[learn])
    svm = SVC(kernel=choice.kernel, C=choice.cost, cache_size=CACHE_MB)
    # Copies of a picture weigh together what the picture weighs, so that C means the same with and
    # without them.
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
    """Return the mean AUROC in the folds and the decisions (n,) of each choice; those that share
    what stands before the SVM fit it once.
    """
    decisions = {choice: np.full(len(task.labels), np.nan) for choice in choices}
    scores: dict[Choice, list[float]] = {choice: [] for choice in choices}
    done = 0
    for _, alike in groupby(choices, key=lambda choice: (choice.layer, choice.pooling, choice.pca)):
        together = list(alike)
        for learn, held in folds:
            front = _front(together[0])
            prepared = front.fit_transform(_rows(features, learn, together[0]))
            asked = front.transform(features.of(together[0])[0, held])
            for choice in together:
                decisions[choice][held] = _fit_svm(task, prepared, learn, choice).decision_function(
                    asked
                )
                scores[choice].append(auroc(task.labels[held], decisions[choice][held]))
                done += 1
                report(done / (len(choices) * len(folds)))
    return {choice: (float(np.mean(scores[choice])), decisions[choice]) for choice in choices}
