"""Training and test parts of each fold of a cross-validation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ml.datasets.groups import grouped_folds
from ml.training.experiment import Experiment


@dataclass(frozen=True)
class Split:
    """Positions of training and test slices, and numbers of weakly labeled training and test
    scans.
    """

    learn: np.ndarray
    held_out: np.ndarray
    learn_weak: np.ndarray
    held_out_weak: np.ndarray


def splits(experiment: Experiment, folds: int, repeat: int) -> Iterator[Split]:
    """Yield folds by group, or leave-one-data-set-out folds.

    Weakly labeled scans are distributed over the folds of the slices and do not change them.
    """
    testable, first = experiment.testable, experiment.first_of_scan
    weak_scans = experiment.weak_scans[experiment.unseen[first[experiment.weak_scans]]]
    groups, weak_groups = experiment.groups[testable], experiment.groups[first[weak_scans]]
    if experiment.settings.get("folds_by") != "data set":
        weak_labels = experiment.scan_labels[weak_scans]
        for learn, held_out, is_held_out in grouped_folds(
            experiment.labels[testable],
            groups,
            weak_labels,
            weak_groups,
            folds,
            experiment.seed + repeat,
        ):
            yield Split(
                testable[learn],
                testable[held_out],
                weak_scans[~is_held_out],
                weak_scans[is_held_out],
            )
        return
    sources, weak_sources = experiment.sources[testable], experiment.sources[first[weak_scans]]
    for source in np.union1d(sources, weak_sources):
        held_out, held_out_weak = sources == source, weak_sources == source
        # An image that is in both data sets joins their groups, which must be excluded from
        # training.
        there = np.concatenate([groups[held_out], weak_groups[held_out_weak]])
        learn, learn_weak = (
            ~held_out & ~np.isin(groups, there),
            ~held_out_weak & ~np.isin(weak_groups, there),
        )
        yield Split(
            testable[learn], testable[held_out], weak_scans[learn_weak], weak_scans[held_out_weak]
        )
