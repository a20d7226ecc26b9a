"""Preview of a split before training: the contents of each fold, and what cannot be split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ml.datasets.examples import UNKNOWN, Example
from ml.datasets.groups import grouped_folds, groups_per_class
from ml.datasets.pool import Pool, join_datasets, pool_datasets, start_from
from ml.datasets.read import Dataset
from ml.errors import DatasetError

LARGE_SHARE = 0.5
"""A group with more than this fraction of an average fold's images makes folds uneven."""


@dataclass(frozen=True)
class Fold:
    """The test part of a fold: labeled images by class, their groups, and how many of these show
    hemorrhage; and scans that have only a scan-level label.
    """

    images: int
    positive: int
    negative: int
    groups: int
    positive_groups: int
    weak_scans: int


@dataclass(frozen=True)
class SplitPreview:
    """How a data set would be split.

    Attributes:
        folds: the test part of each fold; empty if the data set cannot be split.
        groups, positive_groups, negative_groups: numbers of groups with labeled images, and with an
            image of each class.
        crossing_groups, crossing_duplicates: numbers of groups, and of pairs of near-duplicates,
            that are in more than one fold.
        refused: why it cannot be split; empty if it can.
        notes: what is in no fold, and what makes folds uneven.
    """

    folds: tuple[Fold, ...]
    groups: int
    positive_groups: int
    negative_groups: int
    crossing_groups: int
    crossing_duplicates: int
    refused: str
    notes: tuple[str, ...]


def preview_split(
    name: str,
    examples: Sequence[Example],
    duplicates: Sequence[tuple[str, str]],
    folds: int,
    seed: int,
) -> SplitPreview:
    """Return how a training run on this data set alone would split it, with initial weights that
    have seen none of its images.

    Args:
        name: the data set's name.
        examples: its readable images, as `ml.datasets.read` returned them; the files are not
            needed.
        duplicates: pairs of names of near-duplicates.
        folds, seed: settings of the training.
    """
    dataset = Dataset(name, Path(), "", tuple(examples), (), "")
    labels = np.array([UNKNOWN if e.label is None else e.label for e in examples], np.int64)
    of_class = groups_per_class(
        labels[labels != UNKNOWN],
        np.array([e.group for e in examples])[labels != UNKNOWN],
    )
    labeled = {e.group for e in examples if e.label is not None}
    counts = len(labeled), of_class[1], of_class[0]
    try:
        joined = join_datasets([dataset])
        pool = pool_datasets(joined, start_from("random", (), joined, folds))
    except DatasetError as err:
        return SplitPreview((), *counts, 0, 0, str(err), ())
    test_folds, fold_of = _folds_of(pool, folds, seed)
    of_image = {e.name: fold_of.get(e.group, set()) for e in pool.examples}
    crossing = [
        (first, second)
        for first, second in duplicates
        if len(of_image.get(first, set()) | of_image.get(second, set())) > 1
    ]
    return SplitPreview(
        tuple(test_folds),
        *counts,
        sum(len(numbers) > 1 for numbers in fold_of.values()),
        len(crossing),
        "",
        (*pool.notes, *_uneven(pool, folds)),
    )


def _folds_of(pool: Pool, folds: int, seed: int) -> tuple[list[Fold], dict[str, set[int]]]:
    """Return the test part of each fold, and the folds in which each group occurs."""
    first = np.unique(pool.scans, return_index=True)[1]
    positions = np.flatnonzero(pool.known)
    weakly_labeled = np.array(sorted(pool.given_scan_labels), np.int64)
    weak_scans = np.setdiff1d(weakly_labeled, pool.scans[positions])
    labels, groups = pool.labels[positions], pool.groups[positions]
    weak_labels = np.array([pool.given_scan_labels[int(scan)] for scan in weak_scans], np.int64)
    weak_groups = pool.groups[first[weak_scans]]
    fold_of: dict[str, set[int]] = {}
    test_folds: list[Fold] = []
    for _, held_out, weak_held_out in grouped_folds(
        labels, groups, weak_labels, weak_groups, folds, seed
    ):
        for group in (*groups[held_out], *weak_groups[weak_held_out]):
            fold_of.setdefault(str(group), set()).add(len(test_folds))
        is_positive = labels[held_out] == 1
        test_folds.append(
            Fold(
                images=len(held_out),
                positive=int(is_positive.sum()),
                negative=int((~is_positive).sum()),
                groups=len(set(groups[held_out])),
                positive_groups=len(set(groups[held_out][is_positive])),
                weak_scans=int(weak_held_out.sum()),
            )
        )
    return test_folds, fold_of


def _uneven(pool: Pool, folds: int) -> list[str]:
    """Return a sentence about the largest group, if it takes more than its share of a fold."""
    labeled = int(pool.known.sum())
    _, largest = Counter(map(str, pool.groups[pool.known])).most_common(1)[0]
    if largest <= LARGE_SHARE * labeled / folds:
        return []
    return [
        f"The largest group has {largest} of the {labeled} labeled images and stays in one fold, so"
        " the folds differ in size."
    ]
