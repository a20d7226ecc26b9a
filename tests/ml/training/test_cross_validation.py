"""The protocol, with an architecture whose answers are known in advance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ml.training.experiment
from ml.datasets.examples import UNKNOWN
from ml.models.contract import FitTask
from ml.training.cross_validation import OutOfFold, cross_validate
from ml.training.progress import TrainingStopped
from tests.ml.oracle import experiment_of, fit_with, truth


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[FitTask]:
    """The architecture knows the answers; its tasks are gathered here."""
    gathered: list[FitTask] = []
    monkeypatch.setattr(
        ml.training.experiment, "fit_of", lambda architecture: fit_with(truth, gathered)
    )
    return gathered


def ignore(stage: str, share: float, metrics: object) -> None:
    """Nobody watches."""


def judge(
    tmp_path: Path,
    labels: list[int],
    folds: int = 4,
    repeats: int = 1,
    scans: list[int] | None = None,
) -> OutOfFold:
    return cross_validate(experiment_of(labels, tmp_path, scans), folds, repeats, tmp_path, ignore)


def test_every_slice_is_judged_once_by_a_fit_that_never_saw_its_group(
    tasks: list[FitTask], tmp_path: Path
) -> None:
    result = judge(tmp_path, [0, 1] * 16)
    assert len(tasks) == 4
    tested = [sorted(set(range(32)) - set(task.train.tolist())) for task in tasks]
    assert sorted(position for test in tested for position in test) == list(range(32))
    for task, test in zip(tasks, tested, strict=True):
        assert not set(task.groups[task.train]) & set(task.groups[test])
    # Twelve of each class calibrate, all at +1 or -1, so Platt's targets 13/14 and 1/14 are met
    # exactly.
    assert sorted(set(np.round(result.slices.probabilities[0], 6))) == [
        round(1 / 14, 6),
        round(13 / 14, 6),
    ]
    assert result.slices.predicted[0].tolist() == [False, True] * 16
    assert json.loads((tmp_path / "fold-0.json").read_text())["threshold"] == pytest.approx(0.5)


def test_single_pictures_are_judged_alike_at_both_levels(
    tasks: list[FitTask], tmp_path: Path
) -> None:
    result = judge(tmp_path, [0, 1] * 8)
    assert result.scans.probabilities.tolist() == result.slices.probabilities.tolist()
    assert result.scans.labels.tolist() == result.slices.labels.tolist()


def test_a_finished_fold_is_not_fitted_again(tasks: list[FitTask], tmp_path: Path) -> None:
    first = judge(tmp_path, [0, 1] * 8)
    again = judge(tmp_path, [0, 1] * 8)
    assert len(tasks) == 4
    assert (
        again.slices.probabilities.tolist() == first.slices.probabilities.tolist()
        and again.seconds == first.seconds
    )


def test_an_interrupted_cross_validation_continues_where_it_was(
    tasks: list[FitTask], tmp_path: Path
) -> None:
    def stop(stage: str, share: float, metrics: object) -> None:
        if share >= 0.5:
            raise TrainingStopped

    with pytest.raises(TrainingStopped):
        cross_validate(experiment_of([0, 1] * 8, tmp_path), 4, 1, tmp_path, stop)
    assert len(tasks) == 2
    assert np.isfinite(judge(tmp_path, [0, 1] * 8).slices.probabilities).all() and len(tasks) == 4


def test_repeats_have_folds_of_their_own(tasks: list[FitTask], tmp_path: Path) -> None:
    result = judge(tmp_path, [0, 1] * 16, folds=4, repeats=3)
    assert len(tasks) == 12 and result.slices.probabilities.shape == (3, 32)
    assert result.slices.folds[0].tolist() != result.slices.folds[1].tolist()
    assert (result.slices.folds >= 0).all()


def test_a_scan_of_several_slices_has_its_own_calibration_and_threshold(
    tasks: list[FitTask], tmp_path: Path
) -> None:
    # Eight patients of three slices; every second one bleeds, in its middle slice.
    labels = [0, 0, 0, 0, 1, 0] * 4
    result = judge(tmp_path, labels, folds=2, scans=[n // 3 for n in range(24)])
    assert result.scans.labels.tolist() == [0, 1] * 4
    # Two of twelve slices bleed (targets 3/4, 1/12); two patients of each class move the scans'
    # calibration from there.
    assert sorted(set(np.round(result.slices.probabilities[0], 6))) == [round(1 / 12, 6), 0.75]
    low, high = sorted(set(np.round(result.scans.probabilities[0], 6)))
    assert 1 / 12 < low < 0.25 and 0.75 < high < 0.8
    assert result.scans.predicted[0].tolist() == [False, True] * 4


def test_an_unknown_slice_neither_trains_nor_tests_and_leaves_its_scan_its_label(
    tasks: list[FitTask], tmp_path: Path
) -> None:
    labels = [0, UNKNOWN, 0, 0, 1, UNKNOWN] * 4
    result = judge(tmp_path, labels, folds=2, scans=[n // 3 for n in range(24)])
    assert len(result.slices.at) == 16 and not set(result.slices.labels) & {UNKNOWN}
    assert all((task.labels[task.train] != UNKNOWN).all() for task in tasks)
    assert result.scans.labels.tolist() == [0, 1] * 4


def test_what_the_initial_weights_saw_trains_in_every_fold_and_is_never_judged(
    tasks: list[FitTask], tmp_path: Path
) -> None:
    unseen = np.array([False] * 4 + [True] * 16)
    result = cross_validate(
        experiment_of([0, 1] * 10, tmp_path, unseen=unseen), 4, 1, tmp_path, ignore
    )
    assert result.slices.at.tolist() == list(range(4, 20)) == result.scans.at.tolist()
    assert all(set(range(4)) <= set(task.train.tolist()) for task in tasks)


def test_some_folds_alone_answer_for_their_own_slices(tasks: list[FitTask], tmp_path: Path) -> None:
    result = cross_validate(experiment_of([0, 1] * 8, tmp_path), 4, 1, tmp_path, ignore, only=[2])
    assert len(tasks) == 1 and len(result.slices.at) == 4 and set(result.slices.folds[0]) == {2}


def test_a_scan_that_is_labeled_as_a_whole_is_judged_once_and_leaves_the_folds_of_the_others(
    tasks: list[FitTask], tmp_path: Path
) -> None:
    # Eight patients with labeled slices, and four of two slices each without.
    labels, scans = [0, 1] * 8 + [UNKNOWN] * 8, [n // 2 for n in range(24)]
    given_scan_labels = {8: 1, 9: 0, 10: 1, 11: 0}
    without = cross_validate(
        experiment_of(labels[:16], tmp_path, scans[:16]), 4, 1, tmp_path / "without", ignore
    )
    plain = [task.train.tolist() for task in tasks]
    tasks.clear()
    result = cross_validate(
        experiment_of(labels, tmp_path, scans, given_scan_labels=given_scan_labels),
        4,
        1,
        tmp_path / "with",
        ignore,
    )
    assert [
        task.train.tolist() for task in tasks
    ] == plain and result.slices.at.tolist() == without.slices.at.tolist()
    assert result.scans.at.tolist() == list(range(12)) and result.scans.labels.tolist() == [
        1
    ] * 8 + [
        1,
        0,
        1,
        0,
    ]
    assert result.scans.predicted[0].tolist() == [True] * 8 + [True, False, True, False]
    held = [set(range(8, 12)) - set(task.weak_scans.tolist()) for task in tasks]
    assert [len(one) for one in held] == [1, 1, 1, 1] and set.union(*held) == set(range(8, 12))
    assert [result.scans.folds[0][scan] for scan in range(8, 12)] == [
        held.index({scan}) for scan in range(8, 12)
    ]


def test_a_weakly_labeled_scan_goes_where_its_group_goes(
    tasks: list[FitTask], tmp_path: Path
) -> None:
    labels, scans = [0, 1] * 8 + [UNKNOWN] * 4, [n // 2 for n in range(20)]
    groups = np.array([f"g{scan:03d}" for scan in scans])
    groups[16:18] = "g003"
    result = cross_validate(
        experiment_of(labels, tmp_path, scans, given_scan_labels={8: 1, 9: 0}, groups=groups),
        4,
        1,
        tmp_path,
        ignore,
    )
    assert result.scans.folds[0][8] == result.scans.folds[0][3]
    for task in tasks:
        assert not set(task.groups[np.isin(task.scans, task.weak_scans)]) & (
            set(groups) - set(task.groups[task.train]) - {"g009"}
        )


def test_a_data_set_of_labeled_scans_alone_is_judged_by_what_learned_from_the_others(
    tasks: list[FitTask], tmp_path: Path
) -> None:
    labels, scans = [0, 1] * 8 + [UNKNOWN] * 8, [n // 2 for n in range(24)]
    sources = np.array(["a"] * 8 + ["b"] * 8 + ["wholes"] * 8)
    experiment = experiment_of(
        labels,
        tmp_path,
        scans,
        {"folds_by": "data set"},
        given_scan_labels={8: 1, 9: 0, 10: 1, 11: 0},
        sources=sources,
    )
    result = cross_validate(experiment, 3, 1, tmp_path, ignore)
    assert [len(task.weak_scans) for task in tasks] == [4, 4, 0] and tasks[
        2
    ].train.tolist() == list(range(16))
    assert result.scans.among(result.scans.sources == "wholes").predicted[0].tolist() == [
        True,
        False,
        True,
        False,
    ]


def test_what_the_initial_weights_saw_of_a_weakly_labeled_scan_is_never_judged(
    tasks: list[FitTask], tmp_path: Path
) -> None:
    labels, scans = [0, 1] * 8 + [UNKNOWN] * 4, [n // 2 for n in range(20)]
    unseen = np.array([True] * 18 + [False] * 2)
    result = cross_validate(
        experiment_of(labels, tmp_path, scans, given_scan_labels={8: 1, 9: 0}, unseen=unseen),
        4,
        1,
        tmp_path,
        ignore,
    )
    assert result.scans.at.tolist() == list(range(9)) and all(
        9 in task.weak_scans for task in tasks
    )
