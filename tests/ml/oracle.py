"""An architecture for tests of the protocol: it learns nothing from pixels, so every figure can be
told in advance.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ml.datasets.examples import UNKNOWN
from ml.datasets.pool import Pool, join_datasets, pool_datasets, start_from
from ml.datasets.read import Dataset
from ml.datasets.seen_images import Marks
from ml.evaluation.calibration import Platt
from ml.models.contract import FitTask, Fitted, HeldOut
from ml.training.experiment import Experiment


def experiment_of(
    labels: list[int],
    shared: Path,
    scans: list[int] | None = None,
    settings: dict[str, object] | None = None,
    **changed: object,
) -> Experiment:
    """Return slices of 4 x 4 pixels that are all their own number; every scan is a group."""
    n = len(labels)
    numbers = np.arange(n) if scans is None else np.array(scans)
    given: dict[str, object] = {
        "architecture": "alexnet_svm",
        "settings": {"target_sensitivity": 0.95, **(settings or {})},
        "seed": 0,
        "init": "random",
        "images": np.broadcast_to(
            (np.arange(n, dtype=np.float32) / n)[:, None, None, None], (n, 4, 4, 1)
        ).copy(),
        "masks": np.zeros((n, 2, 2), np.uint8),
        "labels": np.array(labels),
        "groups": np.array([f"g{number:03d}" for number in numbers]),
        "sources": np.full(n, "set"),
        "scans": numbers,
        "unseen": np.ones(n, bool),
        "shared": shared,
        **changed,
    }
    return Experiment(**given)  # type: ignore[arg-type]


def pooled(datasets: list[Dataset], seen: Marks, folds: int) -> Pool:
    """Return data sets as one, where weights have seen those images."""
    joined = join_datasets(datasets)
    return pool_datasets(joined, start_from("random", seen, joined, folds))


def nothing(task: FitTask) -> np.ndarray:
    """Describe each slice by zeros."""
    return np.zeros((len(task.labels), 2), np.float32)


def fit_with(
    decide: Callable[[FitTask], np.ndarray],
    tasks: list[FitTask],
    learned_features: bool = False,
    describe: Callable[[FitTask], np.ndarray] = nothing,
) -> Callable[[FitTask], Fitted]:
    """Return a `fit` whose raw decisions are those of `decide`; a scan's is its largest slice's.
    Its tasks are written to `tasks`.

    `describe` gives what types of bleeding are told from.
    """

    def fit(task: FitTask) -> Fitted:
        tasks.append(task)
        decisions = decide(task)
        of_scans = np.full(int(task.scans.max()) + 1, -np.inf)
        np.maximum.at(of_scans, task.scans, decisions)
        for scan, label in task.given_scan_labels.items():
            of_scans[scan] = max(of_scans[scan], 2.0 * label - 1)
        held = task.train[task.unseen[task.train]]
        scans = np.union1d(task.scans[held], task.weak_scans)

        def export(of_slices: Platt, of_scans: Platt) -> dict[str, bytes]:
            raise NotImplementedError

        def reference(
            images: np.ndarray, of_slices: Platt, of_scans: Platt
        ) -> tuple[np.ndarray, np.ndarray, float]:
            raise NotImplementedError

        held_out = HeldOut(held, decisions[held], scans, of_scans[scans])
        return Fitted(
            decisions, of_scans, held_out, {}, export, reference, learned_features, describe(task)
        )

    return fit


def truth(task: FitTask) -> np.ndarray:
    """Decide what the task's own labels say: +1, -1, and -2 where nobody knows."""
    return np.where(task.labels == 1, 1.0, np.where(task.labels == UNKNOWN, -2.0, -1.0))
