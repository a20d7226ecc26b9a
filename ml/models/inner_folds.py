"""Inner folds of a training part, for hyperparameter selection and calibration on held-out
images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ml.datasets.groups import dealt_folds, groups_per_class, stratified_group_folds
from ml.errors import DatasetError
from ml.models.contract import FitTask

INNER_FOLDS = 5
PARTS, PARTS_OF_MANY = 4, 6
# minimum number of groups of each class from which a sixth suffices for calibration
MANY_GROUPS = 60


def inner_folds(task: FitTask, one_split: bool) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """Return (training, held-out) positions of grouped folds within the training part, or of one
    such split.

    A single split holds out a quarter of the groups, or a sixth if there are many.

    Images that the initial weights were trained on are never held out: their decisions would be
    optimistic.

    Raises:
        DatasetError: no fold can hold out both classes.
    """
    testable = task.train[task.unseen[task.train]]
    always = task.train[~task.unseen[task.train]]
    labels, groups = task.labels[testable], task.groups[testable]
    fewest = min(groups_per_class(labels, groups).values())
    parts = PARTS_OF_MANY if fewest >= MANY_GROUPS else PARTS
    n_folds = max(2, min(parts if one_split else INNER_FOLDS, fewest))
    folds = stratified_group_folds(labels, groups, n_folds, task.seed)
    usable = [
        (np.concatenate([always, testable[learn]]), testable[held_out])
        for learn, held_out in folds
        if len(np.unique(labels[held_out])) == 2
    ]
    if not usable:
        raise DatasetError(
            "A training part has too few groups (patients) of each class for hyperparameter"
            " selection and calibration."
        )
    return usable[:1] if one_split else usable


def split_weak(
    task: FitTask, learn: np.ndarray, held_out: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Split `task.weak_scans` into (training, held-out) scan numbers in accordance with a split of
    the slices: a scan follows the slices of its group.

    A quarter of the other scans is held out, but none that the initial weights were trained on.
    """
    first = np.searchsorted(task.scans, task.weak_scans)
    groups = task.groups[first]
    labels = np.array([task.given_scan_labels[int(scan)] for scan in task.weak_scans], np.int64)
    is_held_out = dealt_folds(labels, groups, PARTS, task.seed) == 0
    is_held_out = (
        is_held_out & ~np.isin(groups, task.groups[learn]) & task.unseen[first]
    ) | np.isin(groups, task.groups[held_out])
    return task.weak_scans[~is_held_out], task.weak_scans[is_held_out]
