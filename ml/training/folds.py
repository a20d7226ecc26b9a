"""What each fit of a cross-validation learns from and what it is judged on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ml.datasets.groups import dealt_folds, stratified_group_folds
from ml.training.experiment import Experiment


@dataclass(frozen=True)
class Split:
    """Positions of slices to learn from and to judge, and numbers of weakly labeled scans."""

    learn: np.ndarray
    held: np.ndarray
    learn_weak: np.ndarray
    held_weak: np.ndarray


def splits(experiment: Experiment, folds: int, repeat: int) -> Iterator[Split]:
    """Yield folds by group, or one fold for each data set that is then never learned from.

    The folds of the slices are what they are without weakly labeled scans, which are dealt to them.
    """
    testable, first = experiment.testable, experiment.first_of_scan
    weak_scans = experiment.weak_scans[experiment.unseen[first[experiment.weak_scans]]]
    groups, weak_groups = experiment.groups[testable], experiment.groups[first[weak_scans]]
    if experiment.settings.get("folds_by") != "data set":
        seed = experiment.seed + repeat
        fold_of = dealt_folds(experiment.scan_labels[weak_scans], weak_groups, folds, seed)
        by_group = list(stratified_group_folds(experiment.labels[testable], groups, folds, seed))
        for fold, (_, held) in enumerate(by_group):
            fold_of[np.isin(weak_groups, groups[held])] = fold
        for fold, (learn, held) in enumerate(by_group):
            yield Split(
                testable[learn],
                testable[held],
                weak_scans[fold_of != fold],
                weak_scans[fold_of == fold],
            )
        return
    sources, weak_sources = experiment.sources[testable], experiment.sources[first[weak_scans]]
    for source in np.union1d(sources, weak_sources):
        held, held_weak = sources == source, weak_sources == source
        # A picture that stands in both data sets joins their groups, and must not be learned from
        # either.
        there = np.concatenate([groups[held], weak_groups[held_weak]])
        learn, learn_weak = (
            ~held & ~np.isin(groups, there),
            ~held_weak & ~np.isin(weak_groups, there),
        )
        yield Split(testable[learn], testable[held], weak_scans[learn_weak], weak_scans[held_weak])
