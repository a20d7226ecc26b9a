"""Groups of related images, and folds that never split a group.

Images of one patient, or duplicates, on both sides of a split inflate the metrics. A group
therefore comprises the images of a patient or of an entry of a groups file and their
near-duplicates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold


def assign_groups(
    keys: Sequence[Sequence[Hashable]], duplicates: Iterable[tuple[int, int]] = ()
) -> list[int]:
    """Return a group number for each image: images that share a key or are duplicates share a
    group.

    Args:
        keys: for each image, the identifier of its group (its patient, or its entry in a groups
            file); empty for none.
        duplicates: pairs of positions.

    The number is the position of the group's first image.
    """
    parent = list(range(len(keys)))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def join(first: int, second: int) -> None:
        low, high = sorted((root(first), root(second)))
        parent[high] = low

    first_with: dict[Hashable, int] = {}
    for position, keys_of_image in enumerate(keys):
        for key in keys_of_image:
            join(first_with.setdefault(key, position), position)
    for first, second in duplicates:
        join(first, second)
    return [root(position) for position in range(len(keys))]


def groups_per_class(
    labels: Sequence[int] | np.ndarray, groups: Sequence[str] | np.ndarray
) -> dict[int, int]:
    """Return how many groups hold at least one image of class 0, and of class 1; `labels` and
    `groups` have one entry per image.
    """
    counts = Counter(
        label
        for _, label in {
            (str(group), int(label)) for group, label in zip(groups, labels, strict=True)
        }
    )
    return {0: counts[0], 1: counts[1]}


def stratified_group_folds(
    labels: Sequence[int] | np.ndarray, groups: Sequence[str] | np.ndarray, n_folds: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (train, test) positions of each stratified fold; a group is never on both sides.

    The same arguments give the same folds.
    """
    splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    yield from splitter.split(np.zeros(len(labels)), np.asarray(labels), np.asarray(groups))


def dealt_folds(labels: np.ndarray, groups: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Return a fold number for each item (n,): a group shares one, and groups with and without a
    positive are distributed in turn.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    positive = np.zeros(len(names), np.int64)
    np.maximum.at(positive, group_of, labels)
    random = np.random.default_rng(seed)
    dealt = np.concatenate(
        [random.permutation(np.flatnonzero(positive == label)) for label in (1, 0)]
    )
    folds = np.zeros(len(names), np.int64)
    folds[dealt] = np.arange(len(names)) % n_folds
    return np.asarray(folds[group_of])


def grouped_folds(
    labels: np.ndarray,
    groups: np.ndarray,
    weak_labels: np.ndarray,
    weak_groups: np.ndarray,
    n_folds: int,
    seed: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield for each fold the positions of training and test slices, and which weakly labeled scans
    are tested, bool (m,).

    Such scans are distributed over the folds of the slices and do not change them: one whose group
    has labeled slices goes with them.

    Args:
        labels, groups: (n,) of the labeled slices.
        weak_labels, weak_groups: (m,) of scans with a scan-level label and no labeled slice.
        n_folds, seed: the same give the same folds.
    """
    fold_of = dealt_folds(weak_labels, weak_groups, n_folds, seed)
    by_group = list(stratified_group_folds(labels, groups, n_folds, seed))
    for fold, (_, held_out) in enumerate(by_group):
        fold_of[np.isin(weak_groups, groups[held_out])] = fold
    for fold, (learn, held_out) in enumerate(by_group):
        yield learn, held_out, fold_of == fold
