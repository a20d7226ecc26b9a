"""Folds within a training part: what chooses and calibrates without having been learned from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ml.datasets.groups import dealt_folds, groups_per_class, stratified_group_folds
from ml.errors import DatasetError
from ml.models.contract import FitTask

INNER_FOLDS = 5
PARTS, PARTS_OF_MANY = 4, 6
# of each class: a sixth of them is enough to calibrate, and leaves more to learn from
MANY_GROUPS = 60


def inner_folds(task: FitTask, one_split: bool) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """Return (learn, held out) positions of grouped folds within the training part, or one such
    split.

    The one split holds out a quarter of the groups, a sixth where there are many.

    Images that the initial weights have seen always learn: their decisions would look better than
    they are.

    Raises:
        DatasetError: no fold would hold out both classes.
    """
    testable = task.train[task.unseen[task.train]]
    always = task.train[~task.unseen[task.train]]
    labels, groups = task.labels[testable], task.groups[testable]
    fewest = min(groups_per_class(labels, groups).values())
    parts = PARTS_OF_MANY if fewest >= MANY_GROUPS else PARTS
    n_folds = max(2, min(parts if one_split else INNER_FOLDS, fewest))
    folds = stratified_group_folds(labels, groups, n_folds, task.seed)
    usable = [
        (np.concatenate([always, testable[learn]]), testable[held])
        for learn, held in folds
        if len(np.unique(labels[held])) == 2
    ]
    if not usable:
        raise DatasetError(
            "Too few groups (patients) of each class are left within a training part to choose C"
            " and calibrate."
        )
    return usable[:1] if one_split else usable


def split_weak(task: FitTask, learn: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (learn, held out), numbers of `task.weak_scans`, beside a split of the slices: a scan
    goes with the slices of its group.

    Of the other scans a quarter is held out, and none that the initial weights have seen.
    """
    first = np.searchsorted(task.scans, task.weak_scans)
    groups = task.groups[first]
    labels = np.array([task.given_scan_labels[int(scan)] for scan in task.weak_scans], np.int64)
    is_held = dealt_folds(labels, groups, PARTS, task.seed) == 0
    is_held = (is_held & ~np.isin(groups, task.groups[learn]) & task.unseen[first]) | np.isin(
        groups, task.groups[held]
    )
    return task.weak_scans[~is_held], task.weak_scans[is_held]
