"""A previewed split is the one that a training makes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ml.datasets.examples import UNKNOWN, Example
from ml.datasets.read import Dataset
from ml.exploration.splits import preview_split
from ml.training.experiment import Experiment
from ml.training.folds import splits
from ml.training.inputs import Inputs
from ml.training.plan import TrainConfig, plan_of

FOLDS, SEED = 3, 5


def examples() -> Iterator[Example]:
    """Yield slices of forty patients of one to four slices: a third with a slice with hemorrhage,
    some slices without a label, and six scans of which only the whole is labeled.
    """
    random = np.random.default_rng(0)
    for patient in range(40):
        weak = patient % 7 == 6
        for number in range(1 + patient % 4):
            label = int(patient % 3 == 0 and number == 0)
            unknown = weak or (number == 3)
            yield Example(
                Path(),
                f"{patient}/{number}.png",
                None if unknown else label,
                f"p{patient}",
                number,
                f"set/{patient}/0.png",
                "set",
                sha256=f"{patient}-{number}",
                dhash=random.bytes(32).hex(),
                scan_label=patient % 2 if weak else None,
            )


def test_the_folds_are_those_of_a_training() -> None:
    given = tuple(examples())
    dataset = Dataset("set", Path(), "", given, (), "f")
    config = TrainConfig("alexnet_svm", {"folds": FOLDS}, seed=SEED, init="random")
    plan = plan_of(config, [dataset])
    nothing = np.zeros((len(plan.pool.labels), 1, 1, 1), np.float32)
    experiment = Experiment.of(
        plan.pool,
        Inputs(nothing, nothing[..., 0].astype(np.uint8)),
        architecture="alexnet_svm",
        settings=plan.settings,
        seed=SEED,
        init="random",
        shared=Path(),
    )
    trained = [
        (
            len(split.held_out),
            int((experiment.labels[split.held_out] == 1).sum()),
            len(set(experiment.groups[split.held_out])),
            len(split.held_out_weak),
        )
        for split in splits(experiment, FOLDS, 0)
    ]

    result = preview_split("set", given, [("0/0.png", "3/0.png")], FOLDS, SEED)

    assert [(f.images, f.positive, f.groups, f.weak_scans) for f in result.folds] == trained
    assert sum(fold.weak_scans for fold in result.folds) == 5
    assert sum(fold.images for fold in result.folds) == sum(e.label is not None for e in given)
    assert all(fold.positive + fold.negative == fold.images for fold in result.folds)
    assert result.crossing_groups == 0 and UNKNOWN not in {fold.negative for fold in result.folds}
    assert any("unlabeled slices" in note for note in result.notes)
    other = preview_split("set", given, [], FOLDS, SEED + 1)
    assert [fold.images for fold in other.folds] != [fold.images for fold in result.folds]


def test_near_duplicates_in_two_folds_are_counted() -> None:
    given = tuple(examples())
    pairs = [("0/0.png", f"{patient}/0.png") for patient in range(1, 40) if patient % 7 != 6]
    result = preview_split("set", given, pairs, FOLDS, SEED)
    # Groups join near-duplicates when a data set is read; these were not joined.
    assert 0 < result.crossing_duplicates < len(pairs)


def test_what_cannot_be_split_is_explained() -> None:
    result = preview_split("set", tuple(examples()), [], 10, SEED)
    assert result.folds == () and "10 folds need at least 20" in result.refused
    assert result.positive_groups == 12


def test_a_group_that_is_larger_than_a_fold_is_noted() -> None:
    given = [
        Example(Path(), f"{n}.png", n % 2, None, None, f"set/{max(0, n - 40)}.png", "set")
        for n in range(80)
    ]
    result = preview_split("set", given, [], 4, SEED)
    assert any("The largest group has 41 of the 80" in note for note in result.notes)
